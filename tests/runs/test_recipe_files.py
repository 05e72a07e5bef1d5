"""`potstill recipes`: what is copied can be run, and nothing is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.cli import recipe_files
from potstill.errors import UserError
from potstill.recipe import load_recipe


def test_every_recipe_is_listed_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    recipe_files.run((), Path("unused"))
    lines = capsys.readouterr().out.splitlines()
    names = {path.stem for path in recipe_files.FOLDER.glob("*.yaml")} | {"demo"}
    assert {line.split()[0] for line in lines if line and not line.startswith((" ", "copy one"))} == names
    assert all(20 < len(line) <= 80 for line in lines if line)


def test_every_copy_loads_with_all_files_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [name for name, _ in recipe_files.list_recipes()]
    recipe_files.run(names, Path("recipes"))
    for name in names:
        recipe = load_recipe(Path("recipes") / f"{name}.yaml")
        files = [spec.file for spec in recipe.sets.values() if spec.file is not None and spec.hub is None]
        assert all(Path(file).is_file() for file in files if file.startswith("recipes/")), files
        first = Path("recipes", f"{name}.yaml").read_text("utf-8").splitlines()[0]
        assert first == f"# yaml-language-server: $schema={recipe_files.SCHEMA}"
    recipe_files.run(names, Path("recipes"))  # equal files may be copied again


def test_the_copy_of_the_demo_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe_files.run(["demo"], Path("my recipes"))
    recipe = load_recipe(Path("my recipes/demo.yaml"))
    assert not recipe.report.controls, "only `potstill demo` makes the control runs"
    assert all(Path("my recipes", str(spec.file)).is_file() for spec in recipe.sets.values())
    assert Path("my recipes", str(recipe.student.model)).is_dir()


def test_nothing_is_replaced_and_an_unknown_name_copies_nothing(tmp_path: Path) -> None:
    recipe_files.run(["flan-t5-base.yaml"], tmp_path)
    (tmp_path / "flan-t5-base.yaml").write_text("name: mine")
    with pytest.raises(UserError) as raised:
        recipe_files.run(["aime", "flan-t5-base"], tmp_path)
    assert raised.value.code == "E-recipes-exists" and not (tmp_path / "aime.yaml").exists()
    with pytest.raises(UserError) as raised:
        recipe_files.run(["aime", "flan-t5-bse"], tmp_path)
    assert raised.value.code == "E-recipes-unknown" and "flan-t5-base" in str(raised.value.hint)
    assert not (tmp_path / "aime.yaml").exists()
