"""The documentation: its examples run, its recipes have keys that exist, its commands exist, and no page is left out.

That every link and anchor has a target is what `make docs` holds: a warning of the builder is an error there.
"""

from __future__ import annotations

import doctest
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from potstill.recipe.study import parse_study
from potstill.study.grid import expand_study

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools" / "docs"))

import build  # noqa: E402
import cli_pages  # noqa: E402
import error_codes  # noqa: E402
import prompts_page  # noqa: E402
import python_api  # noqa: E402
import recipe_keys  # noqa: E402
from meanings import MEANINGS  # noqa: E402
from names import CLI, load  # noqa: E402

PAGES = sorted(path for path in DOCS.rglob("*.md") if "reference" not in path.relative_to(DOCS).parts)
IDS = [path.relative_to(DOCS).as_posix() for path in PAGES]
# Mappings whose keys are the reader's own.
FREE = {
    "select.retain",
    "select.weights",
    "sets.NAME.fields",
    "teacher.server.extra",
    "transfer.rewrite",
    "report.licences",
    "train.lr_multipliers",
    "train.formats",
}
FREE |= {"train.on_policy.share"}
FREE |= {"train.loss_weights", "train.sources", "student.chat_template_kwargs", "select.weights", "select.retain"}
STUDY_KEYS = {"grid", "experiments"}  # a block with one of them is (a part of) a study
# Sections whose keys the reader names.
NAMED = {("sets",), ("teachers",), ("evaluate", "texts"), ("train", "on_policy", "scorers")}


def fences(path: Path, language: str) -> Iterator[str]:
    """The code blocks of a page in one language, without their indentation."""
    for indent, inside in re.findall(rf"^( *)```{language}\n(.*?)^ *```", path.read_text("utf-8"), re.M | re.S):
        yield re.sub(rf"^{indent}", "", inside, flags=re.M)


@pytest.mark.parametrize("path", [path for path in PAGES if ">>> " in path.read_text("utf-8")], ids=str)
def test_examples_give_what_the_page_says(path: Path) -> None:
    failed, tried = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert tried and not failed


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_recipes_on_pages_have_keys_that_exist(path: Path) -> None:
    known = {key.name for key in recipe_keys.every_key()}
    for block in fences(path, "yaml"):
        written = YAML(typ="safe").load(block)
        if STUDY_KEYS & written.keys():
            study = parse_study(
                json.dumps({"name": "s", "recipe": "demo"} | written), path.name, quick="quick" in written
            )
            assert all(set(flat_keys(run.changes)) <= known for run in expand_study(study).runs)
            continue
        keys = {re.sub(r"^teachers\.NAME\.", "teacher.", key) for key in dotted(written)}
        assert keys <= known, keys - known


def flat_keys(changes: Sequence[str]) -> Iterator[str]:
    """The dotted names of the keys that changes in the form of `--set` name."""
    return (change.partition("=")[0] for change in changes)


def dotted(node: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted names of all keys of a recipe; a name that the reader chooses is NAME, as in the reference."""
    for name, value in node.items():
        own = (*before, "NAME" if before in NAMED else name)
        if own[-1] != "NAME":
            yield ".".join(own)
        if isinstance(value, dict) and ".".join(own) not in FREE:
            yield from dotted(value, own)


def commands() -> list[tuple[str, str]]:
    found = []
    for path in PAGES:
        for block in fences(path, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.partition(" #")[0]
                found += [(path.name, each) for each in re.findall(r"(?:^|-m )\s*(potstill \w+.*)", line)]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_on_pages_exist_with_their_options(page: str, command: str) -> None:
    import typer.main

    group: Any = typer.main.get_command(load(CLI))
    name = command.split()[1]
    assert name in group.commands, f"{page}: {command}"
    options = {option for each in group.commands[name].params for option in each.opts}
    assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", command)) <= options, f"{page}: {command}"


def test_the_navigation_has_every_page_and_no_other() -> None:
    with open(ROOT / "zensical.toml", "rb") as opened:
        listed = list(leaves(tomllib.load(opened)["project"]["nav"]))
    generated = [f"reference/recipe/{name}.md" for name in recipe_keys.pages()]
    generated += [f"reference/{name}.md" for name in ("index", "study", "cli", "files", "prompts", "errors", "api")]
    assert sorted(listed) == sorted(IDS + generated)


def leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        for inner in node.values() if isinstance(node, dict) else node:
            yield from leaves(inner)


def test_no_meaning_is_written_for_a_key_that_is_gone_or_describes_itself() -> None:
    described = {key.name for key in recipe_keys.every_key(written={}) if key.meaning}
    known = {key.name for key in recipe_keys.every_key()}
    assert set(MEANINGS) <= known and not set(MEANINGS) & described


def test_a_key_a_command_and_a_name_each_have_a_heading() -> None:
    train = recipe_keys.pages()["train"]
    assert "## `train.learning_rate` { #learning_rate }" in train and "**Default** `0.0005`" in train
    assert "## potstill sample { #sample }" in cli_pages.page() and "`--batch-out` `FOLDER`" in cli_pages.page()
    assert "transfer" in python_api.page() and "Let's think step by step" in prompts_page.page()
    assert "reference" in build.INDEX.lower()


def test_an_error_code_gets_a_heading_with_what_and_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(
        'raise UserError(f"unknown key {name}", where=w, code="E-recipe-unknown-key", hint="correct the key")\n'
        'raise UserError("E-set-empty", "the set " + "is empty", hint="add a question" if x else "name another")\n'
        'raise UserError("no code here")\n'
    )
    monkeypatch.setattr(error_codes, "SOURCE", tmp_path)
    page = error_codes.page()
    assert "## `E-recipe-unknown-key`" in page and "unknown key …" in page and "correct the key" in page
    assert "the set is empty" in page and "add a question / name another" in page and "no code here" not in page


def test_generated_pages_show_no_escapes_addresses_or_torn_sentences() -> None:
    api = python_api.page()
    for text in (api, cli_pages.page(), error_codes.page()):
        assert not re.search(r"`[^`\n]*&lt;[^`\n]*`", text) and not re.search(r"0x[0-9a-f]{6,}", text)
    assert not re.search(r"\bRaises\s*\n\s*\n", api)
    lines = ["task   `<a>/<b>` or <c>", "  and more", "Returns a grade. Raises", "UserError for none."]
    (markdown,) = python_api._arguments(lines)  # pyright: ignore[reportPrivateUsage]
    assert markdown == "- `task`: `<a>/<b>` or &lt;c> and more\n\nReturns a grade. Raises UserError for none.\n"
