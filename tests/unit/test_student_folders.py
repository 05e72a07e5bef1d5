"""Folders that people download, cut off or edit: each is refused with one message, before a teacher is asked.

Every case is opened in both ways: `students.open` builds the model, `students.check_weights` only reads the folder. A
folder that one of them refuses is refused by the other.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from expect import user_error
from potstill import dry_run, models, preflight
from potstill.errors import UserError
from potstill.models import Shape
from potstill.stages import recipe_stages
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["Q: Tom has 2 apples and buys 3. How many? A: 2 + 3 = 5. The answer is 5"]
UNIGRAM, BPE = train_unigram(TEXTS, 60), train_bpe(TEXTS, 270)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS = {
    "t5": Shape("t5", 16, 2, 2, 24, 8, UNIGRAM.size),
    "t5 tied": Shape("t5", 16, 2, 2, 24, 8, UNIGRAM.size, tied=True, gated=False),
    "llama": Shape("causal", 16, 2, 2, 24, 8, BPE.size),
    "llama tied": Shape("causal", 16, 2, 2, 24, 8, BPE.size, tied=True),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def made(folder: Path, kind: str = "llama") -> Path:
    shape = KINDS[kind]
    models.random_student(shape, UNIGRAM if shape.family == "t5" else BPE, 1).save(folder)
    return folder


def refused(folder: Path) -> UserError:
    """What both ways of reading a folder say of it."""
    told = []
    for read in (models.check_weights, models.open_student):
        with pytest.raises(UserError) as error:
            read(folder)
        told.append(error.value)
        assert error.value.where and error.value.hint, "where it is, and what to do about it"
        assert len(str(error.value)) < 1000
    return told[0]


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Edit the tensors in place."""
    tensors = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def configure(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def spread(folder: Path, names: tuple[str, str] = ("model-1.safetensors", "model-2.safetensors")) -> Path:
    """The same weights in two files and an index."""
    tensors = load_file(folder / WEIGHTS)
    by_name = {name: names[at % 2] for at, name in enumerate(sorted(tensors))}
    for file in names:
        own = {name: tensors[name] for name, other in by_name.items() if other == file}
        save_file(own, folder / file, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": by_name}))
    return folder


def rename(folder: Path, name: str) -> Path:
    """Let the index name another file in place of the first."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {
        tensor: name if file == "model-1.safetensors" else file for tensor, file in index["weight_map"].items()
    }
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_whole_folders_pass(kind: str, tmp_path: Path) -> None:
    models.check_weights(made(tmp_path, kind))
    models.check_weights(spread(tmp_path))
    assert models.open_student(tmp_path).family == KINDS[kind].family


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_precisions_pass(dtype: torch.dtype, tmp_path: Path) -> None:
    change(made(tmp_path), lambda tensors: tensors.update({name: v.to(dtype) for name, v in tensors.items()}))
    models.check_weights(tmp_path)
    assert models.open_student(tmp_path).model.dtype == torch.float32


def test_the_files_of_the_hubs_cache_are_links_and_pass(tmp_path: Path) -> None:
    whole = tmp_path / "models--one" / "snapshots" / "abc"
    whole.mkdir(parents=True)
    spread(made(whole))
    blobs = tmp_path / "models--one" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(whole.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), whole))
    models.check_weights(whole)
    models.open_student(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_told_with_its_tensor(kind: str, value: float, tmp_path: Path) -> None:
    name = "decoder.final_layer_norm.weight" if kind.startswith("t5") else "model.norm.weight"

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3] = value

    error = refused(change(made(tmp_path, kind), edit))
    assert error.code == "E-model-weights-not-finite" and name in error.found


def test_the_head_of_a_t5_that_is_missing_is_not_replaced_by_the_embedding(tmp_path: Path) -> None:
    error = refused(change(made(tmp_path, "t5"), lambda tensors: tensors.pop("lm_head.weight")))
    assert error.code == "E-model-weights-incomplete" and "lm_head.weight" in error.found


@pytest.mark.parametrize("lost", [0, 1, 5, -1])
def test_any_tensor_that_is_missing_is_told(kind: str, lost: int, tmp_path: Path) -> None:
    name = sorted(load_file(made(tmp_path, kind) / WEIGHTS))[lost]
    error = refused(change(tmp_path, lambda tensors: tensors.pop(name)))
    assert error.code == "E-model-weights-incomplete" and name in error.found


def test_layers_that_config_json_leaves_out_are_not_dropped(kind: str, tmp_path: Path) -> None:
    made(tmp_path, kind)
    configure(tmp_path, **({"num_decoder_layers": 1} if kind.startswith("t5") else {"num_hidden_layers": 1}))
    assert refused(tmp_path).code == "E-model-bad-config"


def test_a_head_beside_a_tied_embedding_is_two_models(tmp_path: Path) -> None:
    """transformers 5 computes with the head, vLLM and transformers 4 with the embedding."""
    made(tmp_path, "llama tied")
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(BPE.size, 16)}))
    with user_error("E-model-tied-head"):
        models.open_student(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 1e-5, 0.3, 0.999])
def test_files_that_are_cut_off(kind: str, kept: float, tmp_path: Path) -> None:
    whole = (made(tmp_path, kind) / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: int(len(whole) * kept)])
    assert refused(tmp_path).code == "E-model-weights-damaged"


def test_a_file_that_is_missing_or_cut_off_among_several(tmp_path: Path) -> None:
    spread(made(tmp_path))
    whole = (tmp_path / "model-2.safetensors").read_bytes()
    (tmp_path / "model-2.safetensors").write_bytes(whole[:-1])
    assert refused(tmp_path).where.endswith("model-2.safetensors")
    (tmp_path / "model-2.safetensors").unlink()
    assert refused(tmp_path).code == "E-model-bad-index"


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (made(tmp_path) / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert refused(tmp_path).code == "E-model-lfs-pointer"


def test_adapters_are_not_a_model(tmp_path: Path) -> None:
    (made(tmp_path) / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "other/model"}'
    )
    error = refused(tmp_path)
    assert error.code == "E-model-adapters" and "other/model" in error.found


def write_files(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "code", "found", "hint"),
    [
        (
            ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"),
            "E-model-adapters",
            "no base",
            "merge",
        ),
        (("Model.Q4_1.gguf", "README.md"), "E-model-only-gguf", "Model.Q4_1.gguf", "model/Model.Q4_1.gguf"),
        (("config.json", "a.gguf", "b.gguf", "tokenizer.json"), "E-model-only-gguf", "a.gguf, b.gguf", "model/a.gguf"),
        (("config.json", "pytorch_model.bin", "tokenizer.json"), "E-model-pickled-weights", "", "save_pretrained"),
        (("pytorch_model-00001-of-00002.bin",), "E-model-pickled-weights", "", "save_pretrained"),
        (("tokenizer.json", "tokenizer_config.json"), "E-model-only-tokenizer", "", "student.shape"),
        (("config.json", "tokenizer.json"), "E-model-no-weights", "", ""),
        (("README.md",), "E-model-no-config", "", ""),
    ],
)
def test_a_folder_without_a_whole_model_is_told_what_it_is(
    names: tuple[str, ...], code: str, found: str, hint: str, tmp_path: Path, world: Path
) -> None:
    """Wherever it is named: a student, a teacher, and before a run costs anything."""
    folder = write_files(tmp_path / "model", *names)
    error = refused(folder)
    assert error.code == code and found in error.found and hint in error.hint
    for recipe in (
        tiny.recipe(world, f"student={{model: {folder}}}"),
        tiny.recipe(world, f"teacher={{kind: local, model: {folder}}}"),
    ):
        problems = preflight.find_problems(recipe, recipe_stages(recipe))
        if code not in ("E-model-no-weights", "E-model-no-config"):  # other checks see these first
            assert {problem.fault.code for problem in problems} == {code}
        assert problems and dry_run.describe_run(recipe)


def test_a_gguf_file_that_is_not_there(tmp_path: Path, world: Path) -> None:
    write_files(tmp_path / "models", "SmolLM2-135M.Q4_1.gguf")
    for name in (tmp_path / "models" / "SmolLM2-135M.Q4_0.gguf", "owner/absent.gguf", "absent.gguf"):
        recipe = tiny.recipe(world, f"student={{model: {name}}}")
        with user_error("E-model-no-gguf", where="student.model", hint="Q4_1" if "Q4_0" in str(name) else "correct"):
            models.from_recipe(recipe)
    with user_error("E-model-no-gguf"):
        models.locate_model("owner/absent.GGUF", key="teacher.model")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "{root}/outside.safetensors", "a/../../outside.safetensors", "sub/model.safetensors",
     "pytorch_model-1.bin", "model.pt", "..\\outside.safetensors", ".", "", "model-1.safetensors\0.bin"],
)  # fmt: skip
def test_an_index_names_files_of_its_folder_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    spread(made(folder))
    good = (folder / "model-1.safetensors").read_bytes()
    (folder / "sub").mkdir()
    for path in (tmp_path / "outside.safetensors", folder / "sub" / "model.safetensors"):
        path.write_bytes(good)

    class Ran:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    for path in ("pytorch_model-1.bin", "model.pt"):
        (folder / path).write_bytes(pickle.dumps(Ran()))
    error = refused(rename(folder, name.format(root=tmp_path)))
    assert error.code == "E-model-bad-index" and error.where.endswith(INDEX)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_under_the_name_of_safetensors_is_not_run(tmp_path: Path) -> None:
    class Ran:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (made(tmp_path) / WEIGHTS).write_bytes(pickle.dumps(Ran()))
    assert refused(tmp_path).code == "E-model-weights-damaged"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_the_folder(absolute: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    spread(made(folder))
    (folder / "model-1.safetensors").rename(tmp_path / "outside.safetensors")
    link = tmp_path / "outside.safetensors" if absolute else Path("../outside.safetensors")
    (folder / "model-1.safetensors").symlink_to(link)
    assert refused(folder).code == "E-model-bad-index"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 5000])
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    (spread(made(tmp_path)) / INDEX).write_text(content)
    assert refused(tmp_path).where.endswith(INDEX)


def test_an_index_whose_files_lack_a_tensor(tmp_path: Path) -> None:
    index = json.loads((spread(made(tmp_path)) / INDEX).read_text())
    index["weight_map"]["model.more.weight"] = "model-1.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "model.more.weight" in refused(tmp_path).found


# --- quantized -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "mxfp4", "torchao"])
@pytest.mark.parametrize("place", ["quantization_config", "compression_config", "nested"])
def test_a_quantized_model_is_told_by_its_config(method: str, place: str, tmp_path: Path) -> None:
    stated = {"quant_method": method, "bits": 4}
    section = {"text_config": {"quantization_config": stated}} if place == "nested" else {place: stated}
    error = refused(configure(made(tmp_path), **section))
    assert error.code == "E-model-quantized" and method in error.found


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_integers_or_eight_bits_are_told_by_their_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    """config.json says nothing of it, and there are no scales: transformers would read the integers as weights."""
    name = "model.layers.0.self_attn.q_proj.weight"
    change(made(tmp_path), lambda tensors: tensors.update({name: (tensors[name] * 100).to(dtype)}))
    error = refused(tmp_path)
    assert error.code == "E-model-quantized" and name in error.found


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_older_notes_of_quantization(name: str, tmp_path: Path) -> None:
    (made(tmp_path) / name).write_text('{"bits": 4}')
    assert refused(tmp_path).code == "E-model-quantized"


def test_vllm_may_read_quantized_weights_itself(tmp_path: Path) -> None:
    configure(made(tmp_path), quantization_config={"quant_method": "gptq", "bits": 4})
    assert models.open_student(tmp_path, weights=False).folder == tmp_path


# --- config.json -----------------------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    *({"vocab_size": value} for value in (-1, 0, "60", None, 1.5, [3], 10**30, True)),
    *({"num_hidden_layers": value} for value in (10**9, -1, 0)),
    *({"hidden_size": value} for value in (-4, 0, 10**20, "16")),
    *({"num_attention_heads": value} for value in (0, -2)),
    *({"model_type": value} for value in (5, None, ["llama"], "unheard-of", "")),
    {"num_labels": 10**12},
    {"pad_token_id": 10**9},
    {"eos_token_id": {"a": 1}},
    {"dtype": "float3"},
    {"max_position_embeddings": "x"},
    {"head_dim": 10**15},
    {"final_logit_softcapping": 30.0},
    {"attention_dropout": -2},
    {"hidden_act": "nope"},
    {"rope_parameters": {"rope_type": "nope"}},
    {"id2label": 5},
    {"auto_map": 5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_of_a_decoder_that_no_model_has(settings: dict[str, Any], tmp_path: Path) -> None:
    refused(configure(made(tmp_path), **settings))


@pytest.mark.parametrize(
    "settings",
    [
        *({"decoder_start_token_id": value} for value in ("x", -1, 10**9)),
        *({"num_layers": value} for value in (10**12, 3, 1)),
        {"num_decoder_layers": 10**12},
        {"d_model": 0},
        {"dropout_rate": "x"},
        {"dropout_rate": 5},
        {"dense_act_fn": "nope"},
        {"relative_attention_num_buckets": -2},
        {"layer_norm_epsilon": "x"},
        {"is_encoder_decoder": "maybe"},
    ],
    ids=str,
)
def test_settings_of_a_t5_that_no_model_has(settings: dict[str, Any], tmp_path: Path) -> None:
    refused(configure(made(tmp_path, "t5"), **settings))


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"",
        b"[]",
        b"7",
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000,
    ],
    ids=["bytes", "empty", "list", "number", "nested", "nested deep", "digits"],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_files_that_are_not_what_they_should_be(name: str, content: bytes, tmp_path: Path) -> None:
    (made(tmp_path) / name).write_bytes(content)
    refused(tmp_path)


def test_end_tokens_that_are_none_are_passed_over(tmp_path: Path) -> None:
    from potstill import inference

    (made(tmp_path) / "generation_config.json").write_text('{"eos_token_id": ["a", -1, 1000000]}')
    engine = inference.open_engine(tmp_path)
    [text] = engine.generate([inference.Request(("q", 0), (5, 6))], inference.Decode(max_tokens=2))
    assert len(text.ids) <= 2


def test_parameters_are_counted_in_the_files_that_are_read(kind: str, tmp_path: Path) -> None:
    """Some folders hold the same weights in another form too (Mistral's `consolidated.safetensors`)."""
    made(tmp_path, kind)
    (tmp_path / "consolidated.safetensors").write_bytes((tmp_path / WEIGHTS).read_bytes())
    assert models.count_stored_parameters(tmp_path) == models.count_parameters(KINDS[kind])
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1])
    with user_error("E-model-weights-damaged"):
        models.count_stored_parameters(tmp_path)
