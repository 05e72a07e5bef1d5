"""The built wheel, installed into an empty folder, runs the demo there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tiny

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools" / "docs"))

import library_notebook as notebook  # noqa: E402


def run(*command: object, cwd: Path, **environment: str) -> str:
    own = {name: value for name, value in os.environ.items() if name != "POTSTILL_DATA"}
    completed = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**own, **environment}, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_code_and_package_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    kept = {name for name in names if ".dist-info/" not in name}
    source = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*") if p.is_file()}
    recipes = {f"potstill/recipes/{p.name}" for p in (ROOT / "recipes").iterdir()}
    assert kept == {name for name in source if "__pycache__" not in name and ".egg-info" not in name} | recipes
    assert any(name.endswith("LICENSE") for name in names)


def install(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """A folder with the installed wheel, for PYTHONPATH, and an empty one."""
    site, empty = folder / "site", folder / "empty"
    empty.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    run(*pip, cwd=empty)
    return site, empty


def write_empty_wheel(folder: Path, requirement: Requirement) -> None:
    """A wheel without files, of the lowest version that a requirement allows."""
    version = next((one.version for one in requirement.specifier if one.operator == ">="), "1")
    name = requirement.name.replace("-", "_")
    about = f"{name}-{version}.dist-info"
    files = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {requirement.name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_uvx_runs_the_wheel_from_a_local_index(wheel: Path, tmp_path: Path) -> None:
    """In an empty folder, without a network. The dependencies are empty wheels, and their modules those of the tests."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("the extra `test` installs uv")
    index, empty = tmp_path / "index", tmp_path / "empty"
    index.mkdir(), empty.mkdir()
    shutil.copy(wheel, index)
    for line in metadata.requires("potstill") or []:
        requirement = Requirement(line)
        if requirement.marker is None:  # no extra
            write_empty_wheel(index, requirement)
    paths = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    options = (
        "--offline",
        "--no-index",
        "--find-links",
        index,
        "--cache-dir",
        tmp_path / "cache",
        "--python",
        sys.executable,
    )
    code = run(uv, "tool", "run", *options, "potstill", "recipes", "gsm8k-human", cwd=empty, PYTHONPATH=paths)
    assert (empty / "recipes" / "gsm8k-human.yaml").is_file(), code
    where = "import potstill; print(potstill.__file__)"
    made = run(uv, "tool", "run", *options, "--from", "potstill", "python", "-P", "-c", where, cwd=empty)
    assert Path(made.strip()).is_relative_to(tmp_path / "cache"), "the wheel, not the checkout"


@pytest.mark.slow
def test_the_tutorial_notebook_runs_with_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """From top to bottom, in a real kernel. Outputs that do not depend on the machine are those of the page."""
    for library in ("nbclient", "ipykernel", "pandas", "duckdb"):
        pytest.importorskip(library, reason=f"the extra `test` installs {library}")
    site, empty = install(wheel, tmp_path)
    page = notebook.read_page(notebook.PAGE.read_text("utf-8"))
    first = page[1]._replace(source=page[1].source + "\nprint(ps.__file__)")
    made = notebook.read_notebook(notebook.execute([page[0], first, *page[2:]], empty, PYTHONPATH=str(site)))
    assert made[1].output == str(site / "potstill" / "__init__.py")
    for old, new in zip(page[2:], made[2:], strict=True):
        same = bool(old.output) == bool(new.output) if notebook.VARIES in old.source else old.output == new.output
        assert same, (
            f"tools/docs/library_notebook.py writes the outputs again:\n{old.source}\n\n{old.output}\n\n{new.output}"
        )


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = install(wheel, tmp_path)
    where = run(sys.executable, "-c", "import potstill; print(potstill.__file__)", cwd=empty, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    imports = "from potstill.cli import results; from potstill.demo import run_demo"
    code = f"{imports}; results.print_summary(run_demo(*{tiny.DEMO}))"
    run(sys.executable, "-m", "potstill", "recipes", "smollm2", "flan-t5-base", cwd=empty, PYTHONPATH=str(site))
    copies = {path.name for path in (empty / "recipes").iterdir()}
    assert copies == {
        "recipe.schema.json",
        "smollm2.yaml",
        "flan-t5-base.yaml",
        "smollm2-instructions.jsonl",
        "smollm2-prose.txt",
    }
    result = run(sys.executable, "-c", code, cwd=empty, PYTHONPATH=str(site))
    assert "right answers on test" in result and "in-distribution" in result
    for who in ("base", "specialized", "control: bare answers", "control: the sets' own rationales"):
        assert result.count(f"    {who} ") == 6, who  # five sets, and the mean of three
    assert (empty / "runs" / "demo" / "report" / "index.html").is_file()
    made = [(path, path.stat().st_mtime_ns) for path in sorted(empty.rglob("demo*/**/manifest.json"))]
    answers = empty / "runs" / "demo-answers"
    shutil.rmtree(answers)  # the report was made from it: it is made again first, and nothing else is
    assert run(sys.executable, "-c", code, cwd=empty, PYTHONPATH=str(site)) == result
    now = [(path, path.stat().st_mtime_ns) for path in sorted(empty.rglob("demo*/**/manifest.json"))]
    assert [path for path, _ in now] == [path for path, _ in made]
    assert {path for path, _ in set(now) - set(made)} == set(answers.rglob("manifest.json"))
