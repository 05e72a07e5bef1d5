"""Reference page of the command line, from typer."""

from __future__ import annotations

from enum import Enum
from typing import Any

from names import CLI, load
from recipe_keys import HEADER


def page() -> str:
    """One heading for each command, with usage, arguments, options and their help."""
    import typer.main

    group: Any = typer.main.get_command(load(CLI))
    lines = [HEADER.format(title="Command line"), "# Command line\n", f"{group.help}\n"]
    lines += [f"{group.epilog}\n"] if group.epilog else []
    lines += ["| command | what it does |", "|---|---|"]
    for name, command in group.commands.items():
        first = " ".join((command.help or "").split("\n\n")[0].split())
        lines.append(f"| [`potstill {name}`](#{name}) | {_escape(first)} |")
    for name, command in group.commands.items():
        lines += _command(name, command)
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> list[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join(["potstill", name, *["[OPTIONS]"] * bool(options), *map(_metavar, arguments)])
    text = "\n\n".join(" ".join(each.split()) for each in (command.help or "").split("\n\n"))
    lines = [f"\n## potstill {name} {{ #{name} }}\n", f"{_escape(text)}\n", f"```text\n{usage}\n```\n"]
    lines += ["| argument or option | meaning |", "|---|---|"] if arguments or options else []
    for each in arguments:
        lines.append(f"| `{_metavar(each)}` | {_escape(each.help or '')} |")
    for each in options:
        spelled = ", ".join(f"`{one}`" for one in [*each.opts, *each.secondary_opts])
        value = "" if each.is_flag else f" `{_metavar(each)}`"
        need = " Required." if each.required else ""
        default = (
            f" Default: `{each.default}`." if each.default and not each.is_flag and not callable(each.default) else ""
        )
        lines.append(f"| {spelled}{value} | {_escape(each.help or '')}{need}{default} |")
    return lines


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return parameter.metavar
    kind = (
        getattr(getattr(parameter, "type_descriptor", None), "annotation", None) or parameter.type
    )  # before typer 0.29
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(each.value) for each in kind)
    choices = getattr(kind, "choices", None)
    return "|".join(map(str, choices)) if choices else "TEXT"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
