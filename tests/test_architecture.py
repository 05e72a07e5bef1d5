"""The layers are law: who may import whom, who owns which library, who may write, what `--help` loads.

Each rule is a function from a tree of modules to its violations, so that planted faults show that it can fail.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "potstill"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "contenders", "records", "encoding"),
    ("recipe", "files", "progress", "processes", "bounded", "workers"),
    (
        "answers", "prompts", "vocabulary", "alignment", "transfer", "rewriting", "coverage", "order", "splits",
        "contamination", "sifting", "selection", "intervals", "story", "calculator", "votes", "decoding",
    ),
    (
        "questions", "teachers", "students", "engines", "tokenizers", "targets", "loss", "evaluation", "training",
        "lessons", "exam", "account", "plots", "page", "card", "trackers", "miniature",
    ),
    ("stages",),
    ("run", "plan", "training_plan", "checks", "demo"),
    ("cli",),
)  # fmt: skip
INSIDE: dict[str, set[str]] = {
    # layer 0 and 1
    "errors": set(),
    "records": {"contenders"},
    "encoding": {"contenders", "records"},
    # layer 2
    "transfer": {"alignment", "prompts", "vocabulary"},
    "alignment": {"vocabulary"},
    "coverage": {"transfer", "vocabulary"},
    "selection": {"intervals"},
    "rewriting": {"calculator"},
    "sifting": {"calculator", "splits"},
    "splits": {"contamination"},
    "decoding": {"intervals", "votes"},
    # layer 3
    "targets": {"tokenizers"},
    "students": {"loss", "tokenizers"},
    "training": {"students", "loss"},
    "engines": {"students", "tokenizers"},
    "evaluation": {"engines"},
    "teachers": {"engines", "tokenizers"},
    "lessons": {"engines", "questions", "students", "targets", "teachers", "tokenizers"},
    "exam": {"engines", "evaluation", "questions", "students", "tokenizers"},
    "account": {"exam", "lessons", "questions", "teachers"},
    "card": {"page"},
    "trackers": {"exam"},
    "miniature": {"training", "students", "tokenizers", "engines"},
    # layer 5
    "run": {"checks"},
    "plan": {"checks", "run", "training_plan"},
    "demo": {"run"},
}
OWNERS: dict[str, set[str]] = {
    "torch": {"students", "engines", "loss", "training"},
    "transformers": {"students", "engines"},
    "safetensors": {"students", "training"},
    "peft": {"students"},
    "tokenizers": {"tokenizers"},
    "tiktoken": {"tokenizers"},
    "pydantic": {"recipe"},
    "ruamel": {"recipe"},
    "pyarrow": {"files"},
    "filelock": {"files"},
    "httpx2": {"teachers", "questions"},
    "msgspec": {"files", "teachers"},
    "rich": {"progress", "cli"},
    "typer": {"cli"},
    "rapidfuzz": {"alignment"},
    "re2": {"answers"},
    "math_verify": {"answers"},
    "scipy": {"intervals"},
    "matplotlib": {"plots"},
    "jinja2": {"page"},
    "ctranslate2": {"engines"},
    "vllm": {"engines"},
    "markupsafe": {"page"},
    "tensorboard": {"trackers"},
    "wandb": {"trackers"},
    "trackio": {"trackers"},
}
PURE = {
    "answers",
    "prompts",
    "vocabulary",
    "alignment",
    "transfer",
    "rewriting",
    "coverage",
    "order",
    "splits",
    "contamination",
    "sifting",
    "selection",
    "intervals",
    "story",
    "calculator",
    "votes",
    "decoding",
}
IMPURE_MODULES = {"time", "datetime", "socket", "urllib", "http", "subprocess", "random", "os", "shutil", "tempfile"}
WRITERS = {"write_text", "write_bytes", "mkdir", "unlink", "rename", "rmdir", "touch", "symlink_to", "hardlink_to"}
WRITING_CALLS = {"os.replace", "os.rename", "os.remove", "os.unlink", "os.makedirs", "os.mkdir", "os.truncate"}
LIGHT = {
    "numpy",
    "pyarrow",
    "pydantic",
    "torch",
    "transformers",
    "scipy",
    "matplotlib",
    "jinja2",
    "tokenizers",
    "ruamel",
}

Module = tuple[str, Path, ast.Module]


def modules(source: Path = SOURCE) -> Iterator[Module]:
    for path in sorted(source.rglob("*.py")):
        dotted = ".".join(("potstill", *path.relative_to(source).with_suffix("").parts))
        yield dotted.removesuffix(".__init__"), path, ast.parse(path.read_text("utf-8"))


def room(dotted: str) -> str:
    """The room of a module: `potstill.files.disk` is in `files`."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(dotted: str, path: Path, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every imported name, as written out in full, wherever in the module the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def layer_faults(source: Path = SOURCE) -> list[str]:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    faults = []
    for dotted, path, tree in modules(source):
        here = room(dotted)
        if here in ("", "__main__"):
            continue
        if here not in level:
            faults.append(f"{dotted}: {here} stands in no layer")
            continue
        for name, line in imported(dotted, path, tree):
            if not name.startswith("potstill."):
                continue
            there = room(name)
            if there == here and here != "stages":
                continue
            if there == here:
                faults.append(f"{path.name}:{line}: a stage imports {name}")
            elif there not in level:
                faults.append(f"{path.name}:{line}: {name} stands in no layer")
            elif level[there] > level[here]:
                faults.append(f"{path.name}:{line}: {here} imports {there}, which lies above it")
            elif level[there] == level[here] and level[here] != 1 and there not in INSIDE.get(here, set()):
                faults.append(f"{path.name}:{line}: {here} imports {there}, which lies beside it")
    return faults


def owner_faults(source: Path = SOURCE) -> list[str]:
    faults = []
    for dotted, path, tree in modules(source):
        for name, line in imported(dotted, path, tree):
            library = name.split(".")[0]
            if library in OWNERS and room(dotted) not in OWNERS[library]:
                faults.append(f"{path.name}:{line}: {room(dotted)} imports {library}")
    return faults


def pure_faults(source: Path = SOURCE) -> list[str]:
    faults = []
    for dotted, path, tree in modules(source):
        if room(dotted) in PURE:
            for name, line in imported(dotted, path, tree):
                if name.split(".")[0] in IMPURE_MODULES:
                    faults.append(f"{path.name}:{line}: {dotted} imports {name}")
    return faults


def writing_faults(source: Path = SOURCE) -> list[str]:
    """Calls that write to a disk outside of `files`. A library may be handed a folder (`save_pretrained`)."""
    faults = []
    for dotted, path, tree in modules(source):
        if room(dotted) == "files":
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            opens = called == "open" and any(
                isinstance(value, ast.Constant) and isinstance(value.value, str) and set(value.value) & set("wax+")
                for value in [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
            )
            if opens or called in WRITING_CALLS or called.startswith("shutil.") or last in WRITERS:
                faults.append(f"{path.name}:{node.lineno}: {dotted} calls {called}")
    return faults


def split_faults(source: Path = SOURCE) -> list[str]:
    """Who asks for the questions of the test split: `stages.test` alone."""
    faults = []
    for dotted, path, tree in modules(source):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("collected.questions", "exam.sit")):
                asks = any(isinstance(value, ast.Constant) and value.value == "test" for value in node.args)
                if asks and dotted != "potstill.stages.test":
                    faults.append(f"{path.name}:{node.lineno}: {dotted} opens a test split")
    return faults


RULES = [layer_faults, owner_faults, pure_faults, writing_faults, split_faults]


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_holds(rule) -> None:
    assert rule() == []


@pytest.mark.parametrize(
    "rule, file, content",
    [
        (layer_faults, "records.py", "from potstill import files"),
        (layer_faults, "order.py", "def f():\n    from potstill.students import open"),
        (layer_faults, "page.py", "from potstill import plots"),
        (layer_faults, "stages/filter.py", "from potstill.stages import sample"),
        (layer_faults, "helpers.py", "import json"),
        (owner_faults, "answers.py", "import torch"),
        (owner_faults, "run.py", "def f():\n    import pyarrow.parquet"),
        (owner_faults, "teachers/vllm.py", "def f():\n    from vllm import LLM"),
        (pure_faults, "order.py", "import random"),
        (pure_faults, "splits.py", "from time import monotonic"),
        (writing_faults, "page.py", "def f(p): p.write_text('x')"),
        (writing_faults, "run.py", "def f(p): open(p, 'w')"),
        (writing_faults, "run.py", "import shutil\ndef f(p): shutil.rmtree(p)"),
        (split_faults, "stages/report.py", "def f(c): c.collected.questions(1, 2, 'test')"),
    ],
)
def test_the_rule_can_fail(tmp_path: Path, rule, file: str, content: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert len(rule(tmp_path)) == 1


def loaded(statement: str) -> set[str]:
    """The heavy libraries that a statement loads, in a process of its own."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return LIGHT & {name.split(".")[0] for name in told.stdout.split()}


def test_the_command_line_is_light_before_a_command_is_chosen() -> None:
    help_of = (
        "from typer.testing import CliRunner\nimport potstill.cli\nCliRunner().invoke(potstill.cli.app, ['--help'])"
    )
    assert loaded(help_of) == set()


def test_importing_the_package_and_its_records_is_light() -> None:
    assert loaded("import potstill, potstill.records, potstill.encoding, potstill.errors, potstill.prompts") == set()


def test_commands_that_only_read_load_no_torch() -> None:
    assert loaded("import potstill.cli.grading, potstill.cli.compare, potstill.trackers").isdisjoint(
        {"torch", "transformers", "tokenizers"}
    )


@pytest.mark.parametrize("statement, library", [("import potstill.recipe", "pydantic"), ("import numpy", "numpy")])
def test_the_light_test_can_fail(statement: str, library: str) -> None:
    assert library in loaded(statement)


def test_files_stay_short() -> None:
    long = {path.name: n for _, path, _ in modules() if (n := len(path.read_text("utf-8").splitlines())) > 500}
    assert long == {}


PUBLIC = {
    "alignment": ["dtw", "spans"],
    "transfer": ["completions", "transfer"],
    "loss": ["sparse"],
    "answers": ["grade"],
    "recipe": ["Recipe", "load", "parse"],
    "run": ["run"],
    "records": ["END", "Chain", "Choice", "Prediction", "Prompt", "Question", "Score", "Target", "Turn", "Verdict"],
    "encoding": ["from_json", "to_json"],
    "errors": ["UserError"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_importable_from_their_modules(module: str) -> None:
    found = importlib.import_module(f"potstill.{module}")
    assert [name for name in PUBLIC[module] if not hasattr(found, name)] == []


def test_no_name_of_the_package_is_also_a_module() -> None:
    import potstill

    exported = set(getattr(potstill, "__all__", ()))
    assert exported.isdisjoint(path.stem for path in SOURCE.iterdir())
