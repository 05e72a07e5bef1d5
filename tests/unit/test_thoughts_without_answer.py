"""A thought that was cut has no answer, whatever it says: for the grader, in chains of local models and servers, in the
texts of students, and in answers to a user's questions. And the tags of thoughts of every family of models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from test_cut_thoughts import OPENS
from test_evaluation import ask, question

import tiny
from chat_model import save_chat_model
from potstill import evaluation, inference, models, prompts, teachers, thoughts
from potstill.evaluation.query import read_answer
from potstill.grading import grade, grade_chain, remove_reasoning
from potstill.inference import Decode, Generation, cache, open_engine
from potstill.inference.transformers import TransformersEngine
from potstill.recipe import parse_recipe
from potstill.records import CUT_IN_THOUGHT, Chain, Prompt, Question, StopReason, Turn
from potstill.stages import open_stage
from potstill.storage import parquet
from potstill.storage.flat_chains import decode_row, encode_row, flatten
from potstill.teachers.local_model import build_chain
from potstill.teachers.openai_api.chain_reader import read_chain
from potstill.teachers.openai_api.response import Choice, Message
from potstill.teachers.openai_api.token_entries import ReaderContext
from potstill.tokenization import thought_tags_identity
from special_tags import ids_of, with_tags

STATED = "2 + 2 = 4. The answer is 4.\nBut wait"
PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
)
ASKED = Question("mine/1", "What is 2 + 2?", "4", "mine", "train", "number")


# --- Tags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), PAIRS)
def test_the_tags_of_every_family(start: str, end: str) -> None:
    """The parts of a text, with and without the opening tag; where it is cut; and what the grader reads."""
    whole = f"{start}The answer is 4.{end}\nThe answer is 5."
    for text in (whole, whole.removeprefix(start)):
        parts = [(text.encode()[a:b].decode(), answer) for a, b, answer in thoughts.split_tags(text)]
        assert parts == [("The answer is 4.", False), ("The answer is 5.", True)]
        assert not thoughts.ends_in_thought(text)
        assert grade(text, "5", "number", "length").grade == "right"
    cut = f"{start}The answer is 4. But"
    assert thoughts.ends_in_thought(cut) and thoughts.has_tags(start) and thoughts.has_tags(end)
    assert grade(cut, "4", "number", "length").grade == "truncated"
    assert thoughts.is_tag_token(start.removesuffix("thought\n")) and thoughts.is_tag_token(end)


@pytest.mark.parametrize("kind", ["RESPONSE", "TEXT"])
def test_the_answer_of_cohere_stands_between_tags(kind: str) -> None:
    for end in ("", f"<|END_{kind}|>"):
        text = f"<|START_THINKING|>2 + 3<|END_THINKING|>\n<|START_{kind}|>The answer is 5{end}"
        assert [text[part.start : part.end] for part in thoughts.split_tags(text)] == ["2 + 3", "The answer is 5"]
        assert grade(text, "5", "number").grade == "right"
    plain = f"<|START_{kind}|>The answer is 5<|END_{kind}|>"
    assert [plain[part.start : part.end] for part in thoughts.split_tags(plain)] == ["", "The answer is 5"]


def test_tags_that_are_special_tokens_stay_in_the_text(tmp_path: Path) -> None:
    """And in the identity of the stages, so that runs of other models stay as they are."""
    names = ["<|START_THINKING|>", "<|END_THINKING|>", "<|inner_prefix|>", "<|inner_suffix|>", "<|other|>"]
    tokenizer = with_tags(tmp_path / "tags", special=True, names=names)
    tags = tokenizer.vocabulary.thought_tags
    assert sorted(name.decode() for name in tags.values()) == sorted(names[:-1])
    for start, end in (names[:2], names[2:4]):
        ids = ids_of(tokenizer, (start, "2 + 3", end, "5", "<|other|>"))
        engine = TransformersEngine(models.random_student(tiny_shape(tokenizer.size), tokenizer, 1))
        assert engine.to_generation(("q", 0), [*ids], [], None).text == f"{start}2 + 3{end}5"
    for file, content in tokenizer.files.items():
        (tmp_path / file).write_bytes(content)
    assert thought_tags_identity(tmp_path, "k")["k (tags of thoughts)"].startswith("<|END_THINKING|>, ")


def tiny_shape(vocabulary: int) -> models.Shape:
    return models.Shape("causal", d_model=16, layers=1, heads=2, d_ff=16, d_kv=8, vocabulary=vocabulary)


# --- The grader ------------------------------------------------------------------------------------------------------

TEXTS = some.text(some.sampled_from("The answer is 4.\n,#")).map(lambda text: f"{text} The answer is 4. {text}")


@given(TEXTS, some.sampled_from([None, "number", "math", "choice", "function: operator:eq"]))
def test_a_thought_without_its_end_has_no_answer_of_any_type(text: str, task: str | None) -> None:
    gold = "A" if task == "choice" else "4"
    for stop in ("length", "repeat"):
        assert grade(text, gold, task, stop, opened=True).grade == "truncated"
    for stop in ("end", "cut", None):  # a text that was not cut is graded as a text without a thought
        assert grade(text, gold, task, stop, opened=True) == grade(text, gold, task, stop)


@given(TEXTS, some.sampled_from(PAIRS), some.sampled_from(["length", "end"]))
def test_a_closed_thought_is_no_part_of_the_answer(text: str, tags: tuple[str, str], stop: str) -> None:
    start, end = tags
    for thought in (text, f"{start}{text}"):
        closed = f"{thought}{end} The answer is 7"
        assert grade(closed, "7", "number", stop, opened=True).grade == "right"
        assert remove_reasoning(closed, True, True) == " The answer is 7"
    again = f"{text}{end} The answer is 7. {start}{text}"
    assert grade(again, "7", "number", "length", opened=True).grade == "right", "an answer stands outside"


# --- Chains ----------------------------------------------------------------------------------------------------------


def generated(text: str, stop: StopReason, *, opened: bool) -> Generation:
    tokens = tuple(bytes([byte]) for byte in text.encode())
    steps = tuple(((token, -0.1),) for token in tokens)
    return Generation(("mine/1", 0), tuple(range(len(tokens))), tokens, text.encode(), steps, stop, None, opened)


@pytest.mark.parametrize("reasoning", ["both", "reasoning", "answer", "shortened"])
@pytest.mark.parametrize("tag", ["", "<think>", "[THINK]"])
def test_a_chain_that_a_limit_cut_in_its_thought_is_not_right(tag: str, reasoning: str) -> None:
    made = generated(tag + STATED, "length", opened=not tag)
    chain = build_chain(made, "t", True, reasoning)
    assert chain.defects == (CUT_IN_THOUGHT,) and chain.stop == "length"
    assert chain.text == ("" if reasoning == "answer" else STATED), "nothing is cut after the thought's own answer"
    assert grade_chain(chain.text, ASKED, chain.stop, chain.defects).grade == "truncated"
    assert grade_chain(STATED, ASKED, chain.stop, ()).grade == "right", "what its text says"
    assert decode_row(encode_row(flatten(chain))).as_chain() == chain


def test_a_thought_that_was_closed_or_ended_is_as_before() -> None:
    for text, stop, opened in (
        (f"<think>{STATED}</think>The answer is 4", "length", False),
        (f"{STATED}</think>The answer is 4", "length", True),
        (STATED, "end", True),
        (STATED, "length", False),
    ):
        chain = build_chain(generated(text, stop, opened=opened), "t", True)  # type: ignore[arg-type]
        assert not chain.defects and grade_chain(chain.text, ASKED, chain.stop, chain.defects).grade == "right"
        plain = build_chain(generated(text, stop, opened=opened), "t", False)  # type: ignore[arg-type]
        assert plain == build_chain(generated(text, stop, opened=False), "t", False)  # type: ignore[arg-type]


def test_a_text_cut_between_thought_and_answer_has_no_answer() -> None:
    chain = build_chain(generated(f"{STATED}</think>\n", "length", opened=True), "t", True)
    assert chain.defects == (CUT_IN_THOUGHT,)


@pytest.mark.parametrize("reasoning", ["both", "reasoning", "answer", "shortened"])
@pytest.mark.parametrize("in_field", [True, False])
def test_a_chain_of_a_server_that_a_limit_cut_in_its_thought(in_field: bool, reasoning: str) -> None:
    """Whether the server has a field for thoughts or not."""
    context = ReaderContext("teacher", "raw", reasoning=reasoning)  # type: ignore[arg-type]

    def read(thought: str, answer: str, reason: str) -> Chain:
        between = "</think>" if answer else ""
        message = (
            Message(content=answer, reasoning_content=thought)
            if in_field
            else Message(content=f"<think>{thought}{between}{answer}")
        )
        return read_chain(Choice(message=message, finish_reason=reason), "mine/1", 0, context)

    cut = read(STATED, "", "length")
    assert CUT_IN_THOUGHT in cut.defects and cut.text == ("" if reasoning == "answer" else STATED)
    assert grade_chain(cut.text, ASKED, cut.stop, cut.defects).grade == "truncated"
    for whole in (read(STATED, "The answer is 4", "length"), read(STATED, "The answer is 4", "stop")):
        assert CUT_IN_THOUGHT not in whole.defects


def test_a_filter_keeps_no_chain_that_was_cut_in_its_thought(world: Path, tmp_path: Path) -> None:
    """Chains of a file, too: the mark is a part of a chain."""
    chains = tmp_path / "chains.jsonl"
    rows = [
        {"question": row["question"], "text": f"The answer is {row['answer']}.", "stop": "length", "defects": defects}
        for row in tiny.rows("sums", 12)
        for defects in ([], [CUT_IN_THOUGHT])
    ]
    chains.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = tiny.make(world, tmp_path / "run", f"teacher={{kind: replay, chains: {chains}}}", until="filter")
    verdicts = dict(parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet"))
    for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet"):
        assert verdicts[chain.key].grade == ("truncated" if chain.defects else "right")


# --- Students --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template opens a thought, and which never closes it: its weights are random."""
    return save_chat_model(tmp_path_factory.mktemp("thinker") / "model", OPENS)


@pytest.mark.parametrize("kind", ["transformers", "ctranslate2", "cache"])
def test_every_engine_says_whether_the_prompt_opened_a_thought(thinker: Path, tmp_path: Path, kind: str) -> None:
    for kwargs, opened in (({}, True), ({"enable_thinking": False}, False)):
        student = models.open_student(thinker, chat_template=models.ChatSettings(True, kwargs))
        engine = open_engine(student, "transformers" if kind == "cache" else kind)  # type: ignore[arg-type]
        requests = [inference.Request(("q", 0), engine.encode(Prompt((Turn("user", "2 + 2?"),))))]
        if kind == "cache":
            with cache.CachingEngine(engine, tmp_path / f"{opened}.jsonl") as caching:
                found = [caching.generate(requests, Decode(max_tokens=4))[0].opened for _ in range(2)]
            assert found == [opened, opened], "also a text of the cache"
        assert engine.opens_thought == opened == engine.generate(requests, Decode(max_tokens=4))[0].opened


class Opened:
    """An engine whose prompts open a thought, and which writes the text behind the # of a prompt."""

    opens_thought = True

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(prompt.plain.encode())

    def generate(self, requests, decode, on_tokens=None) -> list[Generation]:
        texts = [bytes(request.prompt).partition(b"#")[2] for request in requests]
        return [
            replace(generated(text.decode(), "length", opened=True), key=request.key)
            for request, text in zip(requests, texts, strict=True)
        ]


def test_an_evaluated_answer_that_was_cut_in_its_thought_is_truncated() -> None:
    texts = {"cut": "The answer is 4. But", "closed": "Is it 3?</think>The answer is 4. But"}
    asked = [question(name, text) for name, text in texts.items()]
    batches = evaluation.predict_answers(Opened(), asked, ask, Decode(max_tokens=9), budget=999)
    grades = {prediction.question: prediction.grade for batch in batches for prediction in batch}
    assert grades == {"mine/cut": "truncated", "mine/closed": "right"}


@pytest.mark.parametrize(("task", "example"), [("number", "7"), ("", None), ("function: operator:eq", None)])
def test_a_user_gets_no_answer_from_a_cut_thought(task: str, example: str | None) -> None:
    text = "So the answer is 4. But wait"
    assert read_answer(text, task, example, "length", opened=True) is None
    assert read_answer(text, task, example, "cut", opened=True) is not None
    assert read_answer(f"3?</think>{text}", task, example, "length", opened=True) is not None


def test_own_texts_and_evaluated_texts_of_a_run(world: Path, thinker: Path, tmp_path: Path) -> None:
    """Every text that is cut counts as truncated, in training with rewards and in evaluation."""
    section = "share: 0.5, max_tokens: 6, rewards: {wrong_weight: 0.5}, scorers: {own: {sets: [sums], model: base}}"
    own = f"train.on_policy={{{section}}}"
    changes = (f"student={{model: {thinker}}}", own, "train.steps=2", "evaluate.max_tokens=6")
    run_dir = tiny.make(world, tmp_path / "run", *changes, until="test")
    rows = [json.loads(line) for line in (run_dir / "train" / "own_texts.jsonl").read_text().splitlines()]
    assert any(row["stop"] == "length" for row in rows)
    for row in rows:
        assert row["stop"] != "length" or row["grade"] == "truncated"
    answers = list((run_dir / "test").rglob("*.greedy.jsonl"))
    predictions = [json.loads(line) for path in answers for line in path.read_text().splitlines()]
    cut = [row for row in predictions if row["stop"] == "length"]
    assert cut and all(row["grade"] == "truncated" and row.get("answer") is None for row in cut)


# --- Identities ------------------------------------------------------------------------------------------------------


def test_only_models_that_may_think_name_the_version(thinker: Path, tmp_path: Path) -> None:
    """Runs of all other models stay valid."""
    named, plain = "version of thoughts", save_chat_model(tmp_path / "plain")
    version = str(thoughts.READING_VERSION)
    for model, expected in ((thinker, version), (plain, None)):
        teacher = parse_recipe("name: x", "x.yaml", [f"teacher={{kind: local, model: {model}}}"])
        assert open_stage("sample").inputs(teacher).get(named) == expected
        scored = parse_recipe("name: x", "x.yaml", [f"teacher={{kind: human, score: {{model: {model}}}}}"])
        assert named not in open_stage("sample").inputs(scored), "a scorer reads no thoughts"
        student = parse_recipe("name: x", "x.yaml", [f"student={{model: {model}}}"])
        for stage in ("evaluate", "test"):
            assert open_stage(stage).inputs(student).get(named) == expected
    quiet = f"student={{model: {thinker}, chat_template_kwargs: {{enable_thinking: false}}}}"
    assert named not in open_stage("test").inputs(parse_recipe("name: x", "x.yaml", [quiet]))
    for api, expected in (("chat", version), ("completions", None)):
        server = parse_recipe("name: x", "x.yaml", [f"teacher={{kind: openai, model: m, server: {{api: {api}}}}}"])
        assert teachers.from_recipe(server).inputs().get(named) == expected
    assert prompts.VERSION == 1, "no prompt has changed"
