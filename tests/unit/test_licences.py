"""Where the licence of a base model and of a data set is found, and what a model card says where nobody stated one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from chat_model import save_chat_model
from potstill import hub
from potstill.models import ModelSource
from potstill.recipe import Recipe, parse_recipe
from potstill.report import licences
from potstill.report.card import CardFacts, render_card
from potstill.report.licences import BaseModel, SetSource, find_base, list_sets
from potstill.report.model import ReportData

RECIPE = """
name: mine
sets: {sums: {file: sums.jsonl}, remote: {hub: owner/sums, file: a.jsonl, revision: %s}}
questions: {train: [gsm8k, sums], in_distribution: [gsm8k], out_of_distribution: [multiarith, remote], generic: []}
teacher: {kind: human}
""" % ("a" * 40)


def recipe(folder: Path | str, **licences: str) -> Recipe:
    return parse_recipe(
        RECIPE, "mine.yaml", [f"student={{model: {folder}}}", f"report.licences={json.dumps(licences)}"]
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "tuned")


def card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)


def test_the_recipe_precedes_the_models_card_and_that_precedes_its_gguf_file(base: Path) -> None:
    assert find_base(recipe(base)) == BaseModel(str(base))
    (base / "gguf.json").write_text(json.dumps({"license": "gemma", "file": "x.gguf"}))
    found = find_base(recipe(base))
    assert found is not None and (found.licence, "GGUF" in found.told_by) == ("gemma", True)
    card(
        base, "---\nlicense: other\nlicense_name: lab-terms\nlicense_link: https://example.org/terms\n---\n# A model\n"
    )
    found = find_base(recipe(base))
    assert found is not None and (found.licence, found.link) == ("lab-terms", "https://example.org/terms")
    found = find_base(recipe(base, tuned="MIT"))
    assert found is not None and (found.licence, found.told_by) == ("MIT", "the recipe")


@pytest.mark.parametrize(
    "text", ["# No metadata", "---\nlicense: [a, b]\n---\n", "---\n{torn\n---\n", "---\n- a\n---\n", ""]
)
def test_a_card_that_states_nothing_states_nothing(base: Path, text: str) -> None:
    card(base, text)
    found = find_base(recipe(base))
    assert found is not None and found.licence is None


def test_a_student_with_random_weights_has_no_base() -> None:
    assert find_base(parse_recipe(RECIPE, "mine.yaml", [])) is None


def test_the_sets_of_a_recipe_with_their_licences() -> None:
    rows = {row.name: row for row in list_sets(recipe("m", sums="CC0-1.0", gsm8k="my own words"))}
    assert list(rows) == ["gsm8k", "sums", "multiarith", "remote"]
    assert rows["gsm8k"] == SetSource(
        "gsm8k", "training", "my own words", "https://github.com/openai/grade-school-math", "openai/gsm8k", "en"
    )
    assert (rows["sums"].licence, rows["sums"].source, rows["sums"].language) == ("CC0-1.0", "", None)
    assert (rows["multiarith"].licence, rows["multiarith"].use) == (None, "evaluation")
    assert rows["remote"].source == "https://huggingface.co/datasets/owner/sums"


def written(facts: CardFacts) -> dict[str, Any]:
    text = render_card(ReportData("mine", "tiny", "human", groups={}, recipe="seed: 1"), facts)
    return ModelCard(text).data.to_dict()


def test_the_metadata_name_what_is_known_and_nothing_else() -> None:
    gsm8k = SetSource("gsm8k", "training", "mit", "", "openai/gsm8k", "en")
    base = BaseModel("owner/tiny", "owner/tiny", "0" * 40, "Apache-2.0", "the model's card")
    known = written(CardFacts("causal", base, (gsm8k, SetSource("mine", "evaluation"))))
    assert known == {
        "base_model": "owner/tiny",
        "base_model_relation": "finetune",
        "datasets": ["openai/gsm8k"],
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["potstill", "chain-of-thought"],
    }
    local = BaseModel("models/tiny", licence="Lab Terms", told_by="the recipe", link="https://example.org/terms")
    unknown = written(CardFacts("t5", local, (gsm8k, SetSource("mine", "training")), has_teacher_chains=True))
    assert unknown["license"] == "other" and unknown["license_name"] == "lab-terms"
    assert unknown["license_link"] == "https://example.org/terms"
    assert not {"base_model", "language"} & unknown.keys() and unknown["pipeline_tag"] == "text2text-generation"
    assert written(CardFacts("t5", BaseModel("models/tiny")))["license"] == "unknown"


def test_a_model_of_the_hub_is_named_with_its_commit(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences.models, "find_model", lambda *_: ModelSource(base, "c" * 40))
    found = find_base(recipe("owner/tiny"))
    assert found is not None and (found.hub_id, found.commit) == ("owner/tiny", "c" * 40)


def test_names_of_repositories_are_those_of_huggingface_hub() -> None:
    assert hub.is_repository_name("owner/tiny") and not hub.is_repository_name("tiny")
    assert not any(map(hub.is_repository_name, ("a/b/c", "owner/..", "owner/-x", "owner/" + "x" * 99)))
