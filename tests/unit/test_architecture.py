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

SOURCE = Path(__file__).parents[2] / "src" / "potstill"

# A package or module of the first level imports only what stands in a line above its own, except for `INSIDE`.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "records", "serialization"),
    ("recipe", "storage", "progress", "process", "http_body", "prompts", "thoughts", "hub", "object_store"),
    ("calculator", "grading", "losses", "tokenization"),
    ("alignment", "data", "models"),
    ("inference", "cut_thoughts"),
    ("evaluation", "teachers"),
    ("training",),
    ("report",),
    ("stages",),
    (
        "preflight",
        "shared_work",
        "runner",
        "run_reader",
        "run_status",
        "study_status",
        "existing_run",
        "run_cost",
        "dry_run",
        "demo",
        "export",
        "tracking",
    ),
    ("study",),
    ("cli",),
)
INSIDE: dict[str, set[str]] = {
    "records": {"errors"},
    "serialization": {"records"},
    "storage": {"progress"},
    "object_store": {"progress", "storage"},
    "recipe": {"object_store"},
    "runner": {"preflight", "shared_work"},
    "run_reader": {"runner"},
    "run_status": {"run_reader"},
    "study_status": {"run_status", "run_reader"},
    "existing_run": {"runner", "run_status"},
    "run_cost": {"existing_run"},
    "dry_run": {"preflight", "runner", "existing_run", "run_cost"},
    "demo": {"runner"},
    "export": {"run_reader"},
}
# Library -> the packages or modules that may import it.
OWNERS: dict[str, set[str]] = {
    "torch": {"records", "losses", "models", "inference", "training"},
    "transformers": {"models", "inference"},
    "safetensors": {"models", "training"},
    "peft": {"models.lora", "models.adapter_files"},
    "bitsandbytes": {"models.lora"},
    "tokenizers": {"tokenization", "models.gguf"},
    "tiktoken": {"tokenization"},
    "pydantic": {"recipe"},
    "ruamel": {"recipe"},
    "pyarrow": {"storage"},
    "filelock": {"storage"},
    "aiohttp": {"teachers"},
    "httpx2": {"data.download", "hub"},
    "huggingface_hub": {"hub"},
    "fsspec": {"object_store"},
    "gguf": {"models.gguf", "models.gguf_writer"},
    "msgspec": {"storage", "teachers"},
    "rich": {"progress", "cli"},
    "typer": {"cli"},
    "rapidfuzz": {"alignment"},
    "numba": {"alignment.compiled"},
    "re2": {"grading"},
    "math_verify": {"grading.expressions"},
    "scipy": {"evaluation.intervals"},
    "matplotlib": {"report.canvas", "report.figures", "report.own_text_figures", "report.study_figures"},
    "jinja2": {"report.html", "models.chat_template"},
    "markupsafe": {"report"},
    "ctranslate2": {"inference.ctranslate2"},
    "vllm": {"inference.vllm"},
    "tensorboard": {"tracking"},
    "wandb": {"tracking"},
    "trackio": {"tracking"},
}
# Functions of their arguments alone: they import each other, the values of `VALUES`, and nothing that depends on the
# machine, the time or chance.
PURE = {
    "calculator",
    "prompts",
    "thoughts",
    "grading",
    "tokenization.vocabulary",
    "tokenization.encoder",
    "alignment.time_warping",
    "alignment.char_spans",
    "alignment.cross_tokenizer",
    "alignment.exact_rules",
    "alignment.pre_tokens",
    "alignment.text_rule",
    "alignment.text_rule_completions",
    "alignment.rewrite",
    "alignment.coverage",
    "data.splits",
    "data.contamination",
    "data.chain_filter",
    "training.data_order",
    "evaluation.decoding",
    "evaluation.self_consistency",
    "evaluation.intervals",
    "evaluation.optimism",
    "evaluation.selection",
    "report.calibration",
    "report.group_scores",
    "report.model",
    "report.model_comparison",
    "report.own_text_panels",
    "report.question_views",
    "report.sentences",
    "report.study_model",
    "report.study_numbers",
    "report.summary",
}
STAGE_PROTOCOL = {"potstill.stages.Stage", "potstill.stages.StageResult"}  # all that a stage may import of stages
VALUES = {"errors", "records", "process", "alignment"}
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


def package(dotted: str) -> str:
    """The package, or module of the first level, of a module: `potstill.storage.atomic` is in `storage`."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def belongs(dotted: str, names: set[str]) -> bool:
    """Whether a module, or a package that holds it, is among names such as `report` and `report.figures`."""
    inside = dotted.removeprefix("potstill.")
    return any(inside == name or inside.startswith(f"{name}.") for name in names)


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
        here = package(dotted)
        if here in ("", "__main__"):
            continue
        if here not in level:
            faults.append(f"{dotted}: {here} is in no layer")
            continue
        for name, line in imported(dotted, path, tree):
            if not name.startswith("potstill."):
                continue
            there = package(name)
            if there == here and (here != "stages" or name in STAGE_PROTOCOL):
                continue
            if there == here:
                faults.append(f"{path.name}:{line}: a stage imports {name}")
            elif there not in level:
                faults.append(f"{path.name}:{line}: {name} is in no layer")
            elif level[there] > level[here]:
                faults.append(f"{path.name}:{line}: {here} imports {there}, which is in a layer above")
            elif level[there] == level[here] and there not in INSIDE.get(here, set()):
                faults.append(f"{path.name}:{line}: {here} imports {there}, which is in the same layer")
    return faults


def owner_faults(source: Path = SOURCE) -> list[str]:
    faults = []
    for dotted, path, tree in modules(source):
        for name, line in imported(dotted, path, tree):
            library = name.split(".")[0]
            if library in OWNERS and not belongs(dotted, OWNERS[library]):
                faults.append(f"{path.name}:{line}: {dotted} imports {library}")
    return faults


def pure_faults(source: Path = SOURCE) -> list[str]:
    faults = []
    for dotted, path, tree in modules(source):
        if not belongs(dotted, PURE):
            continue
        for name, line in imported(dotted, path, tree):
            if name.split(".")[0] in IMPURE_MODULES:
                faults.append(f"{path.name}:{line}: {dotted} imports {name}")
            elif name.startswith("potstill.") and not belongs(name, PURE | VALUES):
                faults.append(f"{path.name}:{line}: {dotted} is pure and imports {name}")
    return faults


def writing_faults(source: Path = SOURCE) -> list[str]:
    """Calls that write to a disk outside of `storage`. A library may be handed a folder (`save_pretrained`)."""
    faults = []
    for dotted, path, tree in modules(source):
        if package(dotted) == "storage":
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


# `report.example_questions` asserts that the run has no teacher. `cli.compare` reads the split that it compares on.
TEST_READERS = {"potstill.stages.test", "potstill.report.example_questions"}


def split_faults(source: Path = SOURCE) -> list[str]:
    """Who asks for the questions of the test split: `stages.test`, and the page of a run that selects nothing."""
    faults = []
    for dotted, path, tree in modules(source):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("read_questions", "evaluate_checkpoint", "begin_checkpoint", "answer_shard")
            ):
                asks = any(isinstance(value, ast.Constant) and value.value == "test" for value in node.args)
                if asks and dotted not in TEST_READERS:
                    faults.append(f"{path.name}:{node.lineno}: {dotted} opens a test split")
    return faults


RULES = [layer_faults, owner_faults, pure_faults, writing_faults, split_faults]


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_holds(rule) -> None:
    assert rule() == []


@pytest.mark.parametrize(
    "rule, file, content",
    [
        (layer_faults, "records.py", "from potstill import storage"),
        (layer_faults, "data/splits.py", "def f():\n    from potstill.models import load"),
        (layer_faults, "data/bbh.py", "from potstill.alignment import dtw"),
        (layer_faults, "stages/filter.py", "from potstill.stages import sample"),
        (layer_faults, "helpers.py", "import json"),
        (owner_faults, "grading/numbers.py", "import torch"),
        (owner_faults, "runner.py", "def f():\n    import pyarrow.parquet"),
        (owner_faults, "report/collect.py", "import matplotlib"),
        (owner_faults, "teachers/vllm.py", "def f():\n    from vllm import LLM"),
        (pure_faults, "training/data_order.py", "import random"),
        (pure_faults, "data/splits.py", "from time import monotonic"),
        (pure_faults, "evaluation/selection.py", "from potstill.storage import read"),
        (writing_faults, "report/html.py", "def f(p): p.write_text('x')"),
        (writing_faults, "runner.py", "def f(p): open(p, 'w')"),
        (writing_faults, "runner.py", "import shutil\ndef f(p): shutil.rmtree(p)"),
        (split_faults, "stages/report.py", "def f(c): c.collected.read_questions(1, 2, 'test')"),
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
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return LIGHT & {name.split(".")[0] for name in completed.stdout.split()}


def test_the_command_line_is_light_before_a_command_is_chosen() -> None:
    help_of = (
        "from typer.testing import CliRunner\nimport potstill.cli\nCliRunner().invoke(potstill.cli.app, ['--help'])"
    )
    assert loaded(help_of) == set()


def test_importing_the_package_and_its_records_is_light() -> None:
    assert (
        loaded("import potstill, potstill.records, potstill.serialization, potstill.errors, potstill.prompts") == set()
    )


def test_status_loads_only_what_reads_a_recipe() -> None:
    assert loaded("from potstill.cli import check, status") <= {"pydantic", "ruamel"}


def test_commands_that_only_read_load_no_torch() -> None:
    assert loaded("import potstill.cli.grade_rows, potstill.cli.compare, potstill.tracking").isdisjoint(
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
    "losses": ["sparse_kl"],
    "grading": ["grade"],
    "recipe": ["Recipe", "load_recipe", "parse_recipe"],
    "runner": ["run"],
    "records": ["END", "Chain", "Choice", "Prediction", "Prompt", "Question", "Score", "Target", "Turn", "Verdict"],
    "serialization": ["from_json", "to_json"],
    "errors": ["UserError"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_importable_from_their_modules(module: str) -> None:
    found = importlib.import_module(f"potstill.{module}")
    assert [name for name in PUBLIC[module] if not hasattr(found, name)] == []


def name_faults(source: Path = SOURCE) -> list[str]:
    """Names in the `__all__` of a package that one of its modules has too, but for exported modules."""
    faults = []
    for dotted, path, tree in modules(source):
        if path.name != "__init__.py":
            continue
        inside = {other.stem for other in path.parent.glob("*.py")} | {
            other.parent.name for other in path.parent.glob("*/__init__.py")
        }
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = [ast.literal_eval(item) for item in node.value.elts]  # type: ignore[attr-defined]
                exported = {"losses", "teachers"} if dotted == "potstill" else set()
                faults += [f"{dotted} exports {name}, a module" for name in names if name in inside - exported]
    return faults


def test_no_exported_name_is_also_a_module(tmp_path: Path) -> None:
    assert name_faults() == []
    (tmp_path / "sparse.py").write_text("")
    (tmp_path / "__init__.py").write_text('__all__ = ["sparse", "other"]')
    assert len(name_faults(tmp_path)) == 1
