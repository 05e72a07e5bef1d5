"""What `potstill export` writes into a folder is read by the program that it is for, and compared with the run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import tiny
from chat_model import save_chat_model
from expect import user_error
from potstill import models, storage
from potstill.cli.export import export_folder
from potstill.evaluation import checkpoint
from potstill.export import gguf as gguf_export
from potstill.export import lm_eval, preference
from potstill.export.source import EXPORT_FILE, ExportedRun, open_exported_run
from potstill.grading import grade
from potstill.run_reader import open_run

needs_gguf = pytest.mark.skipif(
    find_spec("gguf") is None, reason="gguf is not installed (pip install 'potstill[gguf]')"
)
needs_ctranslate2 = pytest.mark.skipif(
    find_spec("ctranslate2") is None, reason="CTranslate2 is not installed (pip install 'potstill[fast]')"
)
LM_EVAL = os.environ.get("POTSTILL_LM_EVAL") or (sys.executable if find_spec("lm_eval") else None)
LLAMA_CPP = os.environ.get("POTSTILL_LLAMA_CPP")


@pytest.fixture(scope="module")
def plain_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder-only student with plain prompts, some of whose answers are right."""
    return tiny.make(world, tmp_path_factory.mktemp("plain") / "run", "student={model: teacher}")


@pytest.fixture(scope="module")
def chat_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder-only student with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    save_chat_model(folder / "model")
    return tiny.make(world, folder / "run", f"student={{model: {folder / 'model'}}}")


def export(run_dir: Path, form: str, folder: Path, **options: Any) -> list[str]:
    settings = {"weights": None, "questions": 5, "pairs": 1} | options
    return export_folder(run_dir, form, folder, settings["weights"], settings["questions"], settings["pairs"])


def about(folder: Path) -> dict[str, Any]:
    return storage.read_json(folder / EXPORT_FILE)


@needs_gguf
@pytest.mark.parametrize("kind", [None, "BF16", "Q8_0"])
def test_a_gguf_file_states_how_far_it_equals_the_student(plain_run: Path, tmp_path: Path, kind: str | None) -> None:
    printed = export(plain_run, "gguf", tmp_path / "out", weights=kind)
    found = about(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", EXPORT_FILE, "student.gguf"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert found["weights"] == (kind or "F32") and printed[:3] == found["parity"]["sentences"]
    parity = found["parity"]
    assert parity["weights"]["equal"] == parity["weights"]["tensors"] > 0
    assert (parity["weights"]["largest_rounding"] == 0) == (kind is None)
    assert parity["texts"]["equal"] == parity["texts"]["texts"] > parity["answers"]["questions"] == 5
    if kind is None:
        assert parity["answers"]["equal"] == 5
    assert found["prompt"] == "Q: {question}\nLet's think step by step\n" and found["stop"] == ["<|endoftext|>"]


@needs_gguf
def test_the_modelfile_asks_as_the_student_was_taught(chat_run: Path, tmp_path: Path) -> None:
    export(chat_run, "gguf", tmp_path / "out")
    modelfile = (tmp_path / "out" / "Modelfile").read_text("utf-8")
    match = re.search(r'^TEMPLATE """(.*?)"""$', modelfile, re.DOTALL | re.MULTILINE)
    assert match is not None
    run = open_exported_run(chat_run)
    student, [question] = run.open_student(), run.validation_questions(1)
    filled = match[1].replace("{{ .Prompt }}", question.text).replace("{{ .Response }}", "")
    assert filled == student.render(run.prompt_of(question)) and "<|start|>assistant\n" in filled
    assert "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\nPARAMETER num_predict 6\n" in modelfile


def test_braces_of_a_prompt_are_no_template_of_ollama(chat_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_exported_run(chat_run)
    monkeypatch.setattr(ExportedRun, "prompt_text", lambda self, student, inserted: f"{{{{ x }}}} {inserted}")
    assert gguf_export.ollama_template(run, run.open_student()) == '{{ "{{" }} x }} {{ .Prompt }}'


@needs_gguf
def test_a_file_that_is_not_the_student_is_refused(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf_export.gguf_writer.stored_tensors

    def with_a_fault(student: models.Student) -> Any:
        for key, value in write(student):
            yield key, value + 1e-3 * key.endswith("1.mlp.up_proj.weight")

    monkeypatch.setattr(gguf_export.gguf_writer, "stored_tensors", with_a_fault)
    with user_error("E-export-parity", found="model.layers.1.mlp.up_proj.weight"):
        export(plain_run, "gguf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@needs_gguf
@pytest.mark.skipif(LLAMA_CPP is None, reason="POTSTILL_LLAMA_CPP names no interpreter with llama-cpp-python")
def test_llama_cpp_reads_the_same_tokens_and_gives_the_same_answers(plain_run: Path, tmp_path: Path) -> None:
    export(plain_run, "gguf", tmp_path / "out")
    run = open_exported_run(plain_run)
    student, questions = run.open_student(), run.validation_questions(9)
    rendered = [student.render(run.prompt_of(question)) for question in questions]
    program = (
        "import json, sys; from llama_cpp import Llama\n"
        "model, rows = Llama(sys.argv[1], n_ctx=256, verbose=False), json.loads(sys.argv[2])\n"
        "ids = [model.tokenize(row.encode(), add_bos=False, special=True) for row in rows]\n"
        "texts = [model.create_completion(row, max_tokens=6, temperature=0, repeat_penalty=1.0) for row in ids]\n"
        "print(json.dumps([ids, [text['choices'][0]['text'] for text in texts]]))"
    )
    assert LLAMA_CPP is not None
    arguments = [LLAMA_CPP, "-c", program, str(tmp_path / "out" / "student.gguf"), json.dumps(rendered)]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True)
    ids, texts = json.loads(told.stdout)
    assert ids == [student.encode(text) for text in rendered]
    stored = checkpoint.read_predictions(
        plain_run / "evaluate", checkpoint.read_choice(plain_run).checkpoint, "zero-shot-rationale", "greedy"
    )
    own = {row.question: row.text for row in stored}
    assert texts == [own[question.id] for question in questions]


@needs_ctranslate2
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_ctranslate2_folder_answers_as_the_student(finished: Path, tmp_path: Path, weights: str) -> None:
    printed = export(finished, "ctranslate2", tmp_path / "out", weights=weights)
    parity = about(tmp_path / "out")["parity"]
    assert parity["answers"]["questions"] == 5 and printed[0] == parity["sentences"][0]
    if weights == "float32":
        assert parity["answers"]["equal"] == 5


@needs_ctranslate2
def test_a_ctranslate2_folder_is_used_with_the_strings_of_its_tokenizer(plain_run: Path, tmp_path: Path) -> None:
    """As the documentation of CTranslate2 says: the tokenizer makes strings, and the generator reads them."""
    import ctranslate2
    from transformers import AutoTokenizer

    export(plain_run, "ctranslate2", tmp_path / "out")
    run = open_exported_run(plain_run)
    questions, found = run.validation_questions(9), about(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompts = [found["prompt"].replace("{question}", question.text) for question in questions]
    special = {"add_special_tokens": found["add_special_tokens"]}
    rows = [tokenizer.convert_ids_to_tokens(tokenizer(prompt, **special)["input_ids"]) for prompt in prompts]
    generator = ctranslate2.Generator(str(tmp_path / "out"))
    results = generator.generate_batch(
        rows, max_length=found["max_tokens"], sampling_topk=1, include_prompt_in_result=False, end_token=found["stop"]
    )
    texts = [tokenizer.decode(result.sequences_ids[0]) for result in results]
    stored = checkpoint.read_predictions(
        plain_run / "evaluate", checkpoint.read_choice(plain_run).checkpoint, "zero-shot-rationale", "greedy"
    )
    own = {row.question: row.text for row in stored}
    assert texts == [own[question.id] for question in questions]


def test_pairs_have_one_right_and_one_wrong_chain_of_a_question(
    plain_run: Path, chat_run: Path, tmp_path: Path
) -> None:
    chains: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for chain, verdict in open_run(plain_run).chains():
        chains[chain.question].add((chain.text, "right" if verdict.kept else verdict.grade))
    questions = {question.id: question for question in open_run(plain_run).questions("train")}
    both = {name for name, rows in chains.items() if {"right", "wrong"} <= {grade for _, grade in rows}}
    student = models.open_student(plain_run / "student")
    export(plain_run, "preference", tmp_path / "plain")
    rows = [row for _, row in storage.read_jsonl(tmp_path / "plain" / "pairs.jsonl")]
    parity = about(tmp_path / "plain")["parity"]
    assert len(rows) == parity["pairs"] == parity["questions_in_pairs"] == len(both) > 0
    run = open_exported_run(plain_run)
    by_prompt = {student.render(run.prompt_of(question)): name for name, question in questions.items()}
    for row in rows:
        question = questions[by_prompt[row["prompt"]]]
        assert {(row["chosen"], "right"), (row["rejected"], "wrong")} <= chains[question.id]
        verdicts = [grade(row[name], question.gold, question.task).grade for name in ("chosen", "rejected")]
        assert verdicts == ["right", "wrong"]

    export(chat_run, "preference", tmp_path / "chat", pairs=3)
    for _, row in storage.read_jsonl(tmp_path / "chat" / "pairs.jsonl"):
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"


def test_pairs_are_a_function_of_seed_and_question() -> None:
    right, wrong = [f"right {i}" for i in range(6)], [f"wrong {i}" for i in range(4)]
    settings: dict[str, Any] = {"seed": 3, "question": "m/1", "most": 9}
    pairs = preference.choose_pairs(right, wrong, **settings)
    assert preference.choose_pairs(right[::-1], [*wrong, wrong[0]], **settings) == pairs
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 4
    others = [
        preference.choose_pairs(right, wrong, **(settings | change)) for change in ({"seed": 4}, {"question": "m/2"})
    ]
    assert all(other != pairs for other in others)
    assert preference.choose_pairs(right, wrong, **(settings | {"most": 2})) == pairs[:2]


def test_a_run_without_wrong_chains_has_no_pairs(world: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", "teacher={kind: human}")
    with user_error("E-export-no-pairs", found="kept"):
        export(run_dir, "preference", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tasks_of_the_harness_have_the_test_questions_and_our_grader(plain_run: Path, tmp_path: Path) -> None:
    printed = export(plain_run, "lm-eval", tmp_path / "out")
    parity = about(tmp_path / "out")["parity"]
    chosen = checkpoint.read_choice(plain_run).checkpoint
    scores = [s for s in checkpoint.read_scores(plain_run / "test", chosen) if s.decoding == "greedy"]
    assert {lm_eval.task_name(s.set, s.format): (s.right, s.n) for s in scores} == {
        name: (row["right"], row["questions"]) for name, row in parity.items()
    }
    assert any(row["right"] for row in parity.values())
    assert all(row["equal"] == row["questions"] for row in parity.values())
    rows = [row for _, row in storage.read_jsonl(tmp_path / "out" / "potstill_other_zero_shot_rationale.jsonl")]
    test = {question.id: question for question in open_run(plain_run).questions("test")}
    assert all(row["prompt"] == f"Q: {test[row['id']].text}\nLet's think step by step\n" for row in rows)
    assert (
        printed[-1].startswith("lm_eval run --model hf --model_args pretrained=")
        and "dtype=float32,add_bos_token=False" in printed[-1]
    )
    assert all("acc must be" in row["sentence"] for row in parity.values())


def test_a_run_before_its_test_shows_no_test_question(plain_run: Path, tmp_path: Path) -> None:
    early = tiny.before(plain_run, tmp_path / "early", "test")
    export(early, "lm-eval", tmp_path / "out")
    found = about(tmp_path / "out")
    assert (found["split"], found["parity"]) == ("validation", {})
    shown = {row["id"] for path in (tmp_path / "out").glob("*.jsonl") for _, row in storage.read_jsonl(path)}
    assert shown.isdisjoint(question.id for question in open_run(early).questions("test"))


def test_the_exported_grader_knows_answers_that_ran_out_of_tokens(plain_run: Path, tmp_path: Path) -> None:
    export(plain_run, "lm-eval", tmp_path / "out")
    results = lm_eval._load_grader(tmp_path / "out")
    document = {
        "potstill_gold": "7",
        "potstill_task": "number",
        "potstill_max_tokens": 4,
        "potstill_stop_at_answer": False,
        "potstill_opens_thought": False,
    }
    assert results(document, ["so 7"]) == {"acc": 0.0}  # four tokens, no marked answer
    assert results(document | {"potstill_max_tokens": 40}, ["so 7"]) == {"acc": 1.0}
    more = "The answer is 7. No. The answer is 8."
    assert results(document | {"potstill_max_tokens": 80}, [more]) == {"acc": 0.0}
    assert results(document | {"potstill_max_tokens": 80, "potstill_stop_at_answer": True}, [more]) == {"acc": 1.0}
    cut = document | {"potstill_gold": "8"}
    assert results(cut, [more]) == {"acc": 1.0} and results(cut | {"potstill_opens_thought": True}, [more]) == {
        "acc": 0.0
    }


@pytest.mark.slow
@pytest.mark.skipif(
    LM_EVAL is None, reason="lm_eval is not installed, and POTSTILL_LM_EVAL names no interpreter with it"
)
@pytest.mark.parametrize("name", ["plain_run", "chat_run", "finished"])
def test_the_table_of_the_harness_shows_our_scores(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run_dir = request.getfixturevalue(name)
    command = export(run_dir, "lm-eval", tmp_path / "out")[-1].split()
    assert LM_EVAL is not None and command[0] == "lm_eval"
    source = str(Path(storage.__file__).parents[2])
    subprocess.run(
        [LM_EVAL, "-m", *command, "--device", "cpu", "--output_path", str(tmp_path / "results")],
        env=os.environ | {"PYTHONPATH": source, "HF_HOME": str(tmp_path / "home")},
        check=True,
        capture_output=True,
    )
    [path] = (tmp_path / "results").rglob("results_*.json")
    table = {task: row["acc,none"] for task, row in storage.read_json(path)["results"].items()}
    assert table == {task: row["accuracy"] for task, row in about(tmp_path / "out")["parity"].items()}


@pytest.mark.parametrize(
    ("form", "weights"), [("gguf", "int8"), ("ctranslate2", "F32"), ("preference", "F32"), ("lm-eval", "F32")]
)
def test_a_type_of_weights_that_an_export_has_not_is_refused(
    plain_run: Path, tmp_path: Path, form: str, weights: str
) -> None:
    with user_error("E-cli-export-weights", found=weights):
        export(plain_run, form, tmp_path / "out", weights=weights)


def test_a_folder_of_something_else_is_not_replaced(plain_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with user_error("E-export-folder", found=str(tmp_path)):
        export(plain_run, "preference", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    for _ in range(2):  # an earlier export is
        export(plain_run, "preference", tmp_path / "out")


def test_a_run_without_a_student_is_one_message(plain_run: Path, tmp_path: Path) -> None:
    early = tiny.before(plain_run, tmp_path / "early", "report")
    with user_error("E-export-no-student", hint="potstill report"):
        export(early, "preference", tmp_path / "out")


@needs_gguf
def test_every_end_token_of_the_student_ends_an_answer(chat_run: Path, tmp_path: Path) -> None:
    import gguf

    export(chat_run, "gguf", tmp_path / "out")
    specials = open_exported_run(chat_run).open_student().tokenizer.vocabulary.specials
    fields = gguf.GGUFReader(str(tmp_path / "out" / "student.gguf")).fields
    ends = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot")]
    assert about(tmp_path / "out")["stop"] == ["<|stop|>", "<|endoftext|>"]
    assert ends == [specials["<|stop|>"], specials["<|endoftext|>"]]
    modelfile = (tmp_path / "out" / "Modelfile").read_text("utf-8")
    assert 'PARAMETER stop "<|stop|>"\nPARAMETER stop "<|endoftext|>"\n' in modelfile


@needs_gguf
def test_template_arguments_and_system_message_of_the_recipe_are_exported(world: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|stop|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}(no thought)\n{% endif %}{% endif %}"
    )
    model = save_chat_model(tmp_path / "model", template)
    settings = "chat_template_kwargs: {enable_thinking: false}, system_prompt: Be brief."
    run_dir = tiny.make(world, tmp_path / "run", f"student={{model: {model}, {settings}}}")
    export(run_dir, "gguf", tmp_path / "gguf")
    start, end = "<|start|>system\nBe brief.<|stop|>\n<|start|>user\nQ: ", "<|start|>assistant\n(no thought)\n"
    prompt = f"{start}{{}}\nLet's think step by step<|stop|>\n{end}"
    assert about(tmp_path / "gguf")["prompt"] == prompt.format("{question}")
    modelfile = (tmp_path / "gguf" / "Modelfile").read_text("utf-8")
    assert f'TEMPLATE """{prompt.format("{{ .Prompt }}")}{{{{ .Response }}}}"""' in modelfile
    export(run_dir, "preference", tmp_path / "pairs")
    for _, row in storage.read_jsonl(tmp_path / "pairs" / "pairs.jsonl"):
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert row["chat_template_kwargs"] == {"enable_thinking": False}


@needs_gguf
def test_a_student_with_plain_prompts_is_asked_by_the_template_of_its_run(plain_run: Path, tmp_path: Path) -> None:
    """So that a chat in llama.cpp asks as the student was taught."""
    import gguf
    from jinja2 import Environment

    export(plain_run, "gguf", tmp_path / "out")
    template = gguf.GGUFReader(str(tmp_path / "out" / "student.gguf")).fields["tokenizer.chat_template"].contents()
    text = Environment().from_string(template).render(messages=[{"role": "user", "content": "What is 1 + 1?"}])
    assert text == about(tmp_path / "out")["prompt"].replace("{question}", "What is 1 + 1?")
