"""Reference page of the command line, from typer."""

from __future__ import annotations

from enum import Enum
from typing import Any

from names import CLI, load
from recipe_keys import HEADER, escape_tags


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
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(["potstill", name, *["[OPTIONS]"] * bool(options), *map(_metavar, arguments)])
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n"))
    lines = [f"\n## potstill {name} {{ #{name} }}\n", f"{_escape(text)}\n", f"```text\n{usage}\n```\n"]
    lines += ["| argument or option | meaning |", "|---|---|"] if arguments or options else []
    for argument in arguments:
        lines.append(f"| `{_metavar(argument)}` | {_escape(argument.help or '')} |")
    for option in options:
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        value = "" if option.is_flag else f" `{_metavar(option)}`"
        required = " Required." if option.required else ""
        has_default = option.default and not option.is_flag and not callable(option.default)
        default = f" Default: `{option.default}`." if has_default else ""
        lines.append(f"| {names}{value} | {_escape(option.help or '')}{required}{default} |")
    return lines


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return parameter.metavar
    descriptor = getattr(parameter, "type_descriptor", None)  # since typer 0.29
    kind = getattr(descriptor, "annotation", None) or parameter.type
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(choice.value) for choice in kind)
    choices = getattr(kind, "choices", None)
    return "|".join(map(str, choices)) if choices else "TEXT"


def _escape(text: str) -> str:
    return escape_tags(" ".join(text.split())).replace("|", "\\|")
