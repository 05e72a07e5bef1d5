"""Everything that determines a score, a target or the order of data has a version, and a raised version is refused.

The versions are raised in a process of their own.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import potstill
import tiny
from potstill.storage import manifest
from tiny import ON_POLICY, REPLAY

PACKAGE = Path(potstill.__file__).parent
EXAM = {"evaluate", "test", "repair", "train"}  # train where it stops by what its checkpoints answer

# Module with a VERSION -> the stages that are refused when it is raised.
READ_BY = {
    "alignment": {"align", "repair", "train"},  # train with texts of the student
    "alignment.cross_tokenizer": {"align", "train", "repair"},
    "alignment.rewrite": {"align"},
    "alignment.target_store": {"align"},
    "calculator": EXAM,
    "calculator.equations": {"filter", "align"},
    "data": {"collect"},
    "data.chain_filter": {"filter"},
    "data.contamination": {"collect"},
    "data.splits": {"collect", "filter", "train", "report"},
    "evaluation": EXAM,
    "evaluation.checkpoint": {*EXAM, "select", "report"},
    "evaluation.decoding": EXAM,
    "evaluation.intervals": {*EXAM, "select", "report"},
    "evaluation.selection": {"select", "train", "test", "report"},  # test: with other choices
    "evaluation.self_consistency": EXAM,
    "grading": {*EXAM, "filter", "report"},
    "inference": {*EXAM, "sample"},
    "losses": {"train", "repair"},
    "models": {*EXAM, "sample"},
    "prompts": {*EXAM, "collect", "sample"},
    "report.card": {"report"},
    "report.html": {"report"},
    "teachers": {"sample", "repair", "train"},
    "teachers.openai_api.stored_scores": {"train", "sample"},
    "tokenization": {*EXAM, "sample", "align"},
    "training": {"train", "repair"},
    "training.data_order": {"collect", "train", "repair"},
    "training.examples": {"train", "repair"},
    "training.own_texts": {"train", "repair"},
}

# Packages without a version of their own, and the one that counts for them; None: they determine no byte of a result.
COUNTED_AS = {
    "report": "report.html",  # and report.card for the card
    "process": "grading",  # what a worker process is asked, and for how long
    "thoughts": "teachers",
    "preflight": None,  # refuses what would stop a run later
    "object_store": None,  # the digests of what it copies are in the identities
    "hub": None,  # the commit of what it downloads is in the identities
    "http_body": None,  # limits of time and size
    "records": None,  # values and their form in JSON: another form is another file format
    "serialization": None,
    "errors": None,
    "storage": None,
    "recipe": None,  # its values are in the identities themselves
    "cut_thoughts": None,  # counts for a warning
    "progress": None,
    "tracking": None,
    "stages": None,  # what they call has the versions
    "run_reader": None,  # reads what a run has written
    "run_status": None,
    "study_status": None,
    "existing_run": None,
    "runner": None,
    "shared_work": None,  # the units that processes share have the bytes of one process
    "export": None,  # reads a finished run
    "dry_run": None,
    "run_cost": None,
    "demo": None,
    "study": None,  # makes runs
    "cli": None,
    "__main__": None,
}

OWN_TEXTS = "train.on_policy={share: 0.5, scorers: {a: {sets: [sums]}, b: {sets: [more], kind: openai, model: m}}}"

# Together these read everything.
RECIPES = (
    (OWN_TEXTS,),
    (
        *(REPLAY, ON_POLICY, "transfer.calculator_marks=insert", "filter.wrong_sums=drop"),
        "select.also=[in-distribution]",
    ),
    ("teacher={kind: human, score: {kind: openai, model: m}}",),
    (
        "train.early_stopping_patience=1",
        REPLAY,
        ON_POLICY.replace("on_policy={", "on_policy={scorer: teacher, ").replace(", keep: 0.3", ""),
    ),
)
PROGRAM = """
import importlib, json, sys, tiny
from pathlib import Path
from potstill.stages import open_stage, recipe_stages
from potstill.storage import manifest

def identities():
    found = {}
    for number, changes in enumerate(recipes):
        recipe = tiny.recipe(Path(world), *changes)
        for name in recipe_stages(recipe):
            stage = open_stage(name)
            found[name, number] = manifest.Identity(name, stage.versions(), {}, stage.inputs(recipe))
    return found

world, recipes, names = json.loads(sys.argv[1])
before, refused = identities(), {}
for name in names:
    module = importlib.import_module(f"potstill.{name}")
    module.VERSION += 1
    now = identities()
    refused[name] = sorted({key[0] for key in now if manifest.identity_differences(before[key], now[key])})
    module.VERSION -= 1
print(json.dumps(refused))
"""


def versioned() -> set[str]:
    """Every module of the package that has a VERSION."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        names = [
            target.id
            for node in ast.parse(path.read_text("utf-8")).body
            for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
            if isinstance(target, ast.Name)
        ]
        if "VERSION" in names:
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_every_version_that_is_raised_is_refused_by_the_stages_that_depend_on_it(world: Path) -> None:
    asked = json.dumps([str(world), RECIPES, sorted(versioned())])
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM, asked], cwd=Path(tiny.__file__).parent, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    refused = {name: set(stages) for name, stages in json.loads(completed.stdout).items()}
    unread = [name for name, stages in refused.items() if not stages]
    assert not unread, f"no stage reads the version of {unread}"
    assert refused == READ_BY, "a new version, or one that another stage reads: say here by which"


def test_every_package_has_a_version_or_is_counted_by_one() -> None:
    packages = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    own = {name.partition(".")[0] for name in versioned() if "." not in name}
    assert packages - own - COUNTED_AS.keys() - {"__init__"} == set(), (
        "give it a VERSION, or say here why it needs none"
    )
    assert not own & COUNTED_AS.keys()
    assert {name for name in COUNTED_AS.values() if name} <= READ_BY.keys()


def test_a_version_that_an_older_manifest_does_not_name_is_the_first() -> None:
    """So that the chains of an older run are not paid again because a version began to be recorded."""
    before = manifest.Identity("sample", {"prompts": 1}, {}, {})
    now = manifest.Identity("sample", {"prompts": 1, "engines": 1}, {}, {"version of students": "1"})
    assert manifest.identity_differences(before, now) == manifest.identity_differences(now, before) == []
    later = manifest.Identity("sample", {"prompts": 1, "engines": 3}, {}, {"version of students": "2"})
    assert manifest.identity_differences(before, later) == ["version of engines: 1 -> 3", "version of students: 1 -> 2"]
    lost = manifest.Identity("sample", {"prompts": 1}, {}, {"teacher.prompt": "ab"})
    assert manifest.identity_differences(before, lost) == ["content of teacher.prompt (none before)"]


def test_a_raised_version_stops_a_run_with_one_message(world: Path, finished: Path, tmp_path: Path) -> None:
    """One that no manifest named before, in a process of its own."""
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    program = (
        "import tiny; from pathlib import Path; from potstill import evaluation; evaluation.VERSION += 1; "
        f"tiny.make(Path({str(world)!r}), Path({str(run_dir)!r}))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(tiny.__file__).parent, capture_output=True, text=True
    )
    assert "UserError" in completed.stderr and "version of evaluation: 1 -> 2" in completed.stderr
    assert "--redo evaluate (makes evaluate, select, test, report again)" in completed.stderr
    assert tiny.contents(run_dir) == tiny.contents(finished)
