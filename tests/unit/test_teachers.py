"""Teachers: chains are truncated with their tokens, counted once, and reproduced exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expect import user_error
from markov import markov, writer
from potstill import demo, inference, teachers
from potstill.errors import UserError
from potstill.inference import Decode, Engine
from potstill.prompts import PAPER_STYLE, Demonstration
from potstill.recipe import parse_recipe, recipe_to_yaml
from potstill.recipe.teacher import INPUT_FILE, KINDS, TeacherSection
from potstill.records import END, Chain, Prompt, Question, Turn
from potstill.serialization import to_json
from potstill.storage import parquet, write_jsonl
from potstill.teachers import SamplingState, local_model, protocol, replay
from potstill.teachers.chain_parts import truncate_at_answer
from tools.toy_models.tokenizer_training import train_bpe


def question(name: str, text: str = "", rationale: str | None = None) -> Question:
    return Question(f"s/{name}", text or f"What is {name}?", "4", "s", "train", "number", rationale)


def probability(step, what) -> float:
    return sum(math.exp(value) for outcome, value in step if outcome == what)


def mass(step) -> float:
    return sum(math.exp(value) for _, value in step)


# --- cut -------------------------------------------------------------------------------------------------------------


def test_cut_at_a_token_that_is_the_newline() -> None:
    steps = [
        [(b"The answer is", 0.0)],
        [(b" 4", -0.5), (b"\n", -1.0)],
        [(b"\n", -0.7), (b"\n\n", -1.9), (END, -2.0), (b".", -3.0)],
    ]
    chain = Chain.from_tokens("q", 0, [b"The answer is", b" 4", b"\n", b"Q"], [*steps, [(b"Q", -0.1)]], "length")
    done = truncate_at_answer(chain)
    assert (done.text, done.stop, done.tokens, done.spans) == (
        "The answer is 4",
        "cut",
        (b"The answer is", b" 4"),
        ((0, 13), (13, 15)),
    )
    assert done.candidates[:2] == chain.candidates[:2]  # what was said before the last step stays as it was
    assert [what for what, _ in done.candidates[2]] == [END, b"."]
    assert probability(done.candidates[2], END) == pytest.approx(
        math.exp(-0.7) + math.exp(-1.9) + math.exp(-2), abs=1e-6
    )


def test_cut_inside_a_token() -> None:
    steps = [
        [(b"answer is 4", 0.0)],
        [(b".\n", -0.5), (b".", -1.5), (b"\n", -2.5), (END, -3.0), (b" dollars.\nQ", -4.0)],
    ]
    chain = Chain.from_tokens("q", 0, [b"answer is 4", b".\n", b"Q"], [*steps, [(b"Q", -0.1)]], "length")
    done = truncate_at_answer(chain)
    assert (done.text, done.stop, done.tokens) == ("answer is 4.", "cut", (b"answer is 4", b"."))
    assert len(done.candidates) == 2  # nobody asked what follows the full stop
    assert [what for what, _ in done.candidates[1]] == [b".", END, b" dollars."]
    assert probability(done.candidates[1], b".") == pytest.approx(math.exp(-0.5) + math.exp(-1.5), abs=1e-6)
    assert probability(done.candidates[1], END) == pytest.approx(math.exp(-2.5) + math.exp(-3), abs=1e-6)


def test_cut_leaves_what_has_no_whole_answer_line() -> None:
    for text in ("", "2 + 2\n= 4", "The answer is 4", "\n\nTHE ANSWER IS 4."):
        chain = Chain.from_text("q", 0, text, source="s", stop="length")
        assert truncate_at_answer(chain) is chain


def test_cut_takes_the_first_answer_line() -> None:
    chain = Chain.from_text("q", 0, "1\nSo the Answer Is 4\nThe answer is 5\n", source="s")
    assert truncate_at_answer(chain) == replace(chain, content=b"1\nSo the Answer Is 4", stop="cut")


def test_cut_counts_bytes_where_the_text_is_no_text() -> None:
    tokens = ["İé".encode(), b"\xff\xe2\x82", b" answer is", b"\n", b"\xac"]
    done = truncate_at_answer(Chain.from_tokens("q", 0, tokens))
    assert done.tokens == tuple(tokens[:3]) and done.content == b"".join(tokens[:3]) and done.candidates == ()


def test_cut_where_a_source_left_tokens_out() -> None:
    chain = replace(Chain.from_text("q", 0, "answer is 4\nQ", source="s"), tokens=(b"answer",), spans=((0, 6),))
    chain = replace(chain, candidates=(((b"answer", -0.1),), ((END, -0.3),)), semantics="raw")
    done = truncate_at_answer(chain)
    assert done.text == "answer is 4" and done.tokens == (b"answer",) and done.candidates == (((b"answer", -0.1),),)


pieces = st.sampled_from(
    [b"\n", b".\n", b" answer is", b"The", b" 4", b"answer", b" is", b"", b"\n\n", b"\xc3", b"\xa9", b".\nQ\n"]
)
steps = st.lists(
    st.tuples(st.one_of(pieces, st.just(END)), st.floats(-9, -3)), max_size=4, unique_by=lambda one: one[0]
)


@given(st.lists(st.tuples(pieces, steps), max_size=12), st.booleans(), st.sampled_from(["end", "length"]))
def test_cut_keeps_text_tokens_and_candidates_in_step(parts, last, stop) -> None:
    tokens = [token for token, _ in parts]
    candidates = [[(token, -0.3), *(one for one in step if one[0] != token)] for token, step in parts]
    chain = Chain.from_tokens("q", 0, tokens, [*candidates, [(END, -0.2)]] if last else candidates, stop)
    done = truncate_at_answer(chain)
    assert chain.content.startswith(done.content) and b"".join(done.tokens) == done.content
    assert truncate_at_answer(done) is done
    if done is chain:
        return
    assert done.stop == "cut" and chain.content[len(done.content) :].startswith(b"\n")
    assert len(done.candidates) in (len(done.tokens), len(done.tokens) + 1)
    for old, new in zip(chain.candidates, done.candidates, strict=False):
        assert mass(new) == pytest.approx(mass(old), abs=1e-5)
        assert len({what for what, _ in new}) == len(new)
    for token, step in zip(done.tokens, done.candidates, strict=False):
        assert token in {what for what, _ in step}
    if len(done.candidates) > len(done.tokens):
        assert END in {what for what, _ in done.candidates[-1]}


# --- local -----------------------------------------------------------------------------------------------------------


def solver() -> Engine:
    """Half of its solutions go on behind the answer, half end there; one token of them is open."""
    text = "step So it was. The answer is four\nQ"
    tokenizer = train_bpe([text, "step So he was"] * 20, 300)
    names = {
        name: tokenizer.encode(name).ids[0]
        for name in ("\n", "So", " it", " he", " was", ".", " The", " answer", " is", " four", "Q")
    }
    row = [names[name] for name in ("\n", "So", " it", " was", ".", " The", " answer", " is", " four")]
    table = {here: {there: 0.0} for here, there in pairwise(row)}
    table[names["So"]] = {names[" it"]: math.log(0.75), names[" he"]: math.log(0.25)}
    table[names[" he"]] = {names[" was"]: 0.0}
    table[names[" four"]] = {names["\n"]: math.log(0.5), tokenizer.eos: math.log(0.5)}
    return markov(tokenizer, table)


QUESTIONS = [question(str(number) * (1 + number % 3)) for number in range(6)]
DECODE = Decode(max_tokens=20, temperature=1.0, seed=1, top_logprobs=3, stop_at_answer="line")


def drawn(
    engine: Engine, asked: list[Question], decode: Decode = DECODE, state: SamplingState | None = None, samples: int = 4
) -> list[list[Chain]]:
    prompt_of, state = protocol.make_prompt_builder(), state or SamplingState()
    return list(
        local_model.sample(
            engine, asked, prompt_of, decode, samples=samples, source="tiny", batch_tokens=400, state=state
        )
    )


def test_local_chains_are_cut_behind_the_answer_and_know_how_likely_the_end_was() -> None:
    batches = drawn(solver(), QUESTIONS)
    chains = [chain for batch in batches for chain in batch]
    assert len(batches) > 1
    assert sorted(chain.key for chain in chains) == sorted(
        (one.id, "tiny", index) for one in QUESTIONS for index in range(4)
    )
    assert {chain.text for chain in chains} == {"So it was. The answer is four", "So he was. The answer is four"}
    assert {chain.stop for chain in chains} == {"end", "cut"}
    for chain in chains:
        assert chain.semantics == "raw" and len(chain.candidates) == len(chain.tokens) + 1
        assert probability(chain.candidates[1], chain.tokens[1]) == pytest.approx(
            0.75 if b"it" in chain.content else 0.25, abs=1e-4
        )
        assert probability(chain.candidates[-1], END) == pytest.approx(1.0 if chain.stop == "cut" else 0.5, abs=1e-4)


def test_local_resumes_by_batch() -> None:
    whole = drawn(solver(), QUESTIONS)
    stored = {chain.key for chain in whole[0]} | {whole[1][0].key}
    rest = drawn(solver(), QUESTIONS[::-1], state=SamplingState(stored))
    assert rest == whole[1:]  # the half stored batch comes whole, and as it was
    assert drawn(solver(), QUESTIONS, state=SamplingState({c.key for b in whole for c in b})) == []


def test_local_without_candidates() -> None:
    [batch, *_] = drawn(solver(), QUESTIONS, replace(DECODE, top_logprobs=0))
    assert all(chain.tokens and not chain.candidates and chain.semantics == "none" for chain in batch)


def test_a_text_that_ran_out_keeps_its_stop() -> None:
    [batch] = local_model.sample(
        writer(), [question("1")], lambda _: Prompt((Turn("user", "So"),)), replace(DECODE, max_tokens=3),
        samples=1, source="tiny", batch_tokens=400, state=SamplingState(),
    )  # fmt: skip
    assert [(chain.text, chain.stop, len(chain.candidates)) for chain in batch] == [(" it was.", "length", 3)]


def test_how_a_teacher_is_asked() -> None:
    one = question("1", "Is {x} it?")
    assert protocol.make_prompt_builder()(one) == Prompt(
        (Turn("user", "Question: Is {x} it?\nLet's think step by step"),), "\n"
    )
    assert protocol.make_prompt_builder(prefix="...\nThe answer is 52\n")(one).plain == (
        "...\nThe answer is 52\n\nQuestion: Is {x} it?\nLet's think step by step"
    )
    shots = [Demonstration("2 + 2?", "4", "2 + 2 = 4.")]
    assert protocol.make_prompt_builder(style=PAPER_STYLE, demonstrations=shots)(one).plain == (
        "Q: 2 + 2?\nLet's think step by step\n2 + 2 = 4.\nThe answer is 4\n\nQ: Is {x} it?\nLet's think step by step"
    )


# --- human -----------------------------------------------------------------------------------------------------------


def test_human_chains() -> None:
    questions = [question(str(number), rationale=f"{number} it is.") for number in range(5)]
    teacher = teachers.from_recipe(parse_recipe("name: a", "a.yaml"))
    [batch] = teacher.sample(questions)
    assert [chain.key for chain in batch] == [(f"s/{number}", "human", 0) for number in range(5)]
    assert list(teacher.sample(questions, SamplingState({chain.key for chain in batch}))) == []
    chain = batch[4]
    assert (chain.text, chain.tokens, chain.candidates, chain.semantics, chain.stop) == (
        "4 it is.\nThe answer is 4",
        (),
        (),
        "none",
        "end",
    )


def test_human_needs_rationales_and_says_so_at_once() -> None:
    teacher = teachers.from_recipe(parse_recipe("name: a", "a.yaml"))
    with pytest.raises(UserError, match="E-teacher-no-solutions") as raised:
        teacher.sample([question("1", rationale="so"), question("2"), question("3", rationale="")])
    assert raised.value.where == "teacher" and raised.value.found == "the first one is s/2"


# --- replay ----------------------------------------------------------------------------------------------------------

FULL = Chain.from_tokens(
    "s/1", 3, [b"4", b"\xff"], [[(b"4", -0.1), (END, -2.5)], [(b"\xff", -0.3)], [(END, -0.2)]], source="gpt"
)


def numbered(rows):
    return ((f"line {number}", row) for number, row in enumerate(rows, 1))


def replayed(*rows, questions=QUESTIONS, **settings) -> list[Chain]:
    return [
        chain
        for batch in replay.build_chains(numbered(rows), questions, where="old.jsonl", **settings)
        for chain in batch
    ]


def refused(*rows, questions=QUESTIONS, **settings) -> str:
    with pytest.raises(UserError) as raised:
        replayed(*rows, questions=questions, **settings)
    return str(raised.value)


def test_replayed_chains_are_those_that_were_stored() -> None:
    questions = [question("1"), question("2")]
    assert replayed(to_json(FULL), questions=questions) == [FULL]
    assert replayed(FULL, questions=questions) == [FULL]
    rows = [
        {"question": "s/2", "text": "a"},
        {"question": "WHAT is 2 ?", "text": "b", "stop": "length"},
        {"question": "s/1", "text": "c"},
    ]
    assert replayed(*rows, questions=questions, source="old") == [
        Chain.from_text("s/2", 0, "a", source="old"),
        Chain.from_text("s/2", 1, "b", source="old", stop="length"),
        Chain.from_text("s/1", 0, "c", source="old"),
    ]


def test_candidates_without_a_word_on_their_meaning_mean_nothing_known() -> None:
    [chain] = replayed({"question": "s/0", "text": "4", "tokens": ["4"], "candidates": [[["4", -0.1], [None, -3.0]]]})
    assert chain.semantics == "unknown"


def test_replay_passes_over_what_the_run_knows_and_does_not_want() -> None:
    held_out = question("9")
    rows = [{"question": name, "text": "x"} for name in ("s/9", "s/0", "What is 9?")]
    assert [chain.key for chain in replayed(*rows, known=[held_out])] == [("s/0", "replay", 0)]


def test_replay_counts_strangers_and_yields_nothing_behind_them() -> None:
    rows = [{"question": "s/0", "text": "x"}, {"question": "t/1", "text": "x"}, {"question": "t/2", "text": "x"}]
    message = refused(*rows)
    assert message.startswith("old.jsonl: 2 chains ") and "\n  found: the first one is line 2: 't/1'\n" in message
    assert "E-data-unknown-question" in message


def test_replay_refuses_a_key_that_comes_twice() -> None:
    rows = [
        {"question": "s/0", "text": "x"},
        {"question": "s/00", "text": "y"},
        {"question": "s/0", "text": "z", "index": 0},
    ]
    message = refused(*rows, questions=[question("0"), question("00")])
    assert message.startswith("old.jsonl line 3: question 's/0', source 'replay', index 0 ")
    assert "\n  found: the same key in line 1\n" in message and "E-data-duplicate-chain" in message


def test_replay_refuses_an_ambiguous_text() -> None:
    twins = [question("1", "The same?"), question("2", "the SAME?")]
    message = refused({"question": "The same?", "text": "x"}, questions=twins)
    assert message.startswith("old.jsonl line 1: ") and "E-data-ambiguous-question" in message


GOOD = {"question": "s/0", "text": "4.", "tokens": ["4", "."], "candidates": [[["4", -0.1]], [[".", -0.1]]]}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"question": None}, "question: None"),
        ({"text": 4}, "neither text nor base64: 4"),
        ({"text": {"base64": "*"}}, ""),
        ({"tokens": ["4"]}, "the joined tokens are not the text"),
        ({"spans": [[0, 1]]}, "1 spans"),
        ({"spans": [[0, 1], [1, 9]]}, "token b'.' at bytes 1 to 9 of a text of 2"),
        ({"candidates": [[["4", -0.1]]]}, "1 steps for 2 tokens"),
        ({"candidates": [[["4", 0.9]], [[".", -0.1]]]}, "0.9 is not a natural log-probability"),
        ({"candidates": [[["4", float("nan")]], [[".", -0.1]]]}, "nan is not a natural log-probability"),
        ({"candidates": [["4"], [[".", -0.1]]]}, ""),
        ({"semantics": "none"}, "there are candidates, but semantics is none"),
        ({"semantics": "exact"}, "semantics: 'exact' is not one of raw,"),
        ({"stop": "eos"}, "stop: 'eos' is not one of end, length, cut"),
        ({"index": "0"}, "index: '0' is not a number"),
        ({"index": True}, "index: True is not a number"),
        ({"source": ""}, "source: '' is not a name"),
    ],
)
def test_replay_refuses_what_is_no_chain(change, found) -> None:
    assert replayed(GOOD)[0].text == "4."
    message = refused(GOOD | {"question": "s/11"}, GOOD | change)
    assert message.startswith("old.jsonl line 2: ") and found in message and "`question` (id or text)" in message


def test_replay_needs_a_text() -> None:
    assert "found: no field 'text'" in refused({"question": "s/0"})


def test_replay_resumes_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_SIZE", 2)
    write_jsonl(tmp_path / "old.jsonl", [{"question": one.id, "text": "x"} for one in QUESTIONS])
    teacher = teachers.from_recipe(
        parse_recipe(f"name: a\nteacher: {{kind: replay, chains: {tmp_path}/old.jsonl}}", "a.yaml")
    )
    batches = list(teacher.sample(QUESTIONS))
    stored = {chain.key for chain in [*batches[0], batches[1][0]]}
    assert list(teacher.sample(QUESTIONS, SamplingState(stored))) == batches[1:]


def test_rows_of_a_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "old.jsonl", [to_json(FULL)])
    parquet.write_chains(tmp_path / "old.parquet", [replace(FULL, candidates=())])
    assert [(place, row["index"]) for place, row in replay.read_rows(tmp_path / "old.jsonl")] == [("line 1", 3)]
    assert list(replay.read_rows(tmp_path / "old.parquet")) == [("record 1", replace(FULL, candidates=()))]
    (tmp_path / "torn.jsonl").write_text('{"question": "s/1", "te')
    with pytest.raises(UserError, match=r"torn\.jsonl line 1: "):
        list(replay.build_chains(replay.read_rows(tmp_path / "torn.jsonl"), QUESTIONS, where="torn.jsonl"))


# --- by recipe -------------------------------------------------------------------------------------------------------


def test_a_recipe_chooses_its_teacher(tmp_path: Path) -> None:
    one = question("1", rationale="so")
    recipe = parse_recipe("name: a\nteacher: {kind: human, name: people}", "r.yaml")
    assert [chain.key for batch in teachers.from_recipe(recipe).sample([one]) for chain in batch] == [
        ("s/1", "people", 0)
    ]

    write_jsonl(tmp_path / "old.jsonl", [{"question": "s/1", "text": "4"}, {"question": "s/2", "text": "4"}])
    recipe = parse_recipe(f"name: a\nteacher: {{kind: replay, chains: {tmp_path}/old.jsonl}}", "r.yaml")
    found = teachers.from_recipe(recipe).sample([one], SamplingState(other_questions=[question("2")]))
    assert [chain.key for batch in found for chain in batch] == [("s/1", "replay", 0)]

    solver().student.save(tmp_path)
    (tmp_path / "shots.txt").write_text("Question: ...\n")
    local_plan = f"kind: local, model: {tmp_path}, prompt: {tmp_path}/shots.txt, samples: 2, max_tokens: 20"
    recipe = parse_recipe(f"name: a\nteacher: {{{local_plan}}}", "r.yaml")
    chains = [chain for batch in teachers.from_recipe(recipe).sample([one]) for chain in batch]
    assert [chain.key for chain in chains] == [("s/1", "local", 0), ("s/1", "local", 1)]
    assert all(chain.text.endswith("The answer is four") for chain in chains)
    assert list(teachers.from_recipe(recipe).sample([one], SamplingState({chain.key for chain in chains}))) == []


# --- score -----------------------------------------------------------------------------------------------------------


def test_chains_that_exist_get_the_distributions_of_a_model() -> None:
    engine = writer()
    asked = Prompt((Turn("user", "So"),))
    stored = [
        Chain.from_text("q1", 3, " it was. The answer is four", source="human"),
        Chain.from_text("q2", 0, " it was.", source="old", stop="length"),
        Chain.from_text("q1", 0, " it was. The answer is four", source="old", stop="cut"),
    ]
    read = local_model.score_chains(engine, [(asked, chain) for chain in stored], top_logprobs=2, batch_tokens=30)
    for before, after in zip(stored, read, strict=True):
        assert replace(after, tokens=(), spans=(), candidates=(), semantics="none") == before
        assert after.semantics == "raw" and b"".join(after.tokens) == after.content
        assert len(after.candidates) == len(after.tokens) + (before.stop != "length")
        for token, step in zip(after.tokens, after.candidates, strict=False):
            assert probability(step, token) == pytest.approx(1, abs=1e-4)  # it is what this model would have written
    # The model goes on with a newline, which ends the last line as END does.
    assert probability(read[0].candidates[-1], END) == pytest.approx(1, abs=1e-4)
    assert read[0].candidates == read[2].candidates


def test_the_chains_of_a_recipe_are_scored(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    writer().student.save(tmp_path / "model")
    asked = [replace(question(str(position), "So"), rationale="it was.") for position in range(4)]
    recipe = parse_recipe(
        "name: x", "x.yaml", [f"teacher={{kind: human, top_logprobs: 3, score: {{model: {tmp_path}/model}}}}"]
    )
    [batch] = teachers.from_recipe(recipe).sample(asked)
    assert [chain.text for chain in batch] == ["it was.\nThe answer is 4"] * 4
    assert all(chain.semantics == "raw" and len(chain.candidates) == len(chain.tokens) + 1 for chain in batch)
    assert all(chain.tokens and b"".join(chain.tokens) for chain in batch)
    assert list(teachers.from_recipe(recipe).sample(asked, SamplingState({chain.key for chain in batch}))) == []
    with pytest.raises(UserError, match="E-recipe-teacher-key"):
        parse_recipe("name: x", "x.yaml", ["teacher={kind: local, model: m, score: {model: m}}"])


def test_a_local_teacher_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights have 16 bits, and its probabilities are those of float32 up to the rounding of the weights."""
    opened: list[torch.dtype] = []
    open_engine = inference.open_engine

    def spy(*args: Any, **settings: Any) -> Any:
        engine: Any = open_engine(*args, **settings)
        opened.append(engine.student.model.dtype)
        return engine

    monkeypatch.setattr(local_model.inference, "open_engine", spy)
    model = demo.DATA / "models" / "teacher"
    asked = [replace(question(str(number), "How many are 2 + 3?"), rationale="2 + 3 = 5.") for number in range(3)]
    scores: dict[str, list[Chain]] = {}
    for dtype in ("float32", "bfloat16"):
        teacher = f"teacher={{kind: human, top_logprobs: 3, dtype: {dtype}, score: {{model: {model}}}}}"
        [scores[dtype]] = teachers.from_recipe(parse_recipe("name: x", "x.yaml", [teacher])).sample(asked)
    exact, rounded = (
        [
            probability(step, token)
            for chain in scores[dtype]
            for step, token in zip(chain.candidates, chain.tokens, strict=False)
        ]
        for dtype in ("float32", "bfloat16")
    )
    assert exact != rounded and exact == pytest.approx(rounded, abs=0.05)
    sampled = parse_recipe(
        "name: x", "x.yaml", [f"teacher={{kind: local, model: {model}, dtype: bfloat16, max_tokens: 8}}"]
    )
    assert next(teachers.from_recipe(sampled).sample(asked))
    assert opened == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_the_default_dtype_of_a_teacher_leaves_earlier_runs_valid() -> None:
    plain, half = (
        parse_recipe("name: x", "x.yaml", ["teacher={kind: local, model: m}", f"teacher.dtype={dtype}"])
        for dtype in ("float32", "bfloat16")
    )
    assert "teacher.dtype" in teachers.from_recipe(plain).free_keys()
    assert "teacher.dtype" not in teachers.from_recipe(half).free_keys()


# --- backends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_every_teacher_kind_has_a_backend_that_opens(kind: str) -> None:
    entry = KINDS[kind]
    assert set(entry.required) <= set(entry.reads) <= TeacherSection.model_fields.keys()
    given = {"kind": kind, **dict.fromkeys(entry.required, "m")}
    teacher = teachers.from_recipe(parse_recipe(json.dumps({"name": "a", "teacher": given}), "a.yaml"))
    assert teachers.Teacher in type(teacher).__mro__
    assert ("score" in entry.reads) == (teachers.TextTeacher in type(teacher).__mro__)
    for name in entry.required:
        left = {key: value for key, value in given.items() if key != name}
        with user_error("E-recipe-teacher-incomplete", where="a.yaml line 1"):
            parse_recipe(json.dumps({"name": "a", "teacher": left}), "a.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_the_kind_does_not_read_is_refused(kind: str) -> None:
    """A default is no fault: a run folder's recipe names every key."""
    values = {"score": {"model": "m"}, "vllm": {"gpus": 2}, "server": {"timeout": 5.0}, "budget": {"tokens": 5},
              "chat_template_kwargs": {"a": 1}, "chat": True, "trust_remote_code": True, "unsolved": "skip",
              "prompt_style": "student", "seed": 7, "reasoning": "answer", "dtype": "bfloat16"}  # fmt: skip
    section = {"kind": kind, **dict.fromkeys(KINDS[kind].required, "m")}
    for name, field in TeacherSection.model_fields.items():
        if name in ("kind", "name"):
            continue
        value = values.get(name, "m" if field.default is None and name != "enough" else 7)
        text = json.dumps({"name": "a", "teacher": {**section, name: value}})
        if name in KINDS[kind].reads:
            parse_recipe(text, "a.yaml")
            continue
        settings_of_a_server = kind == "openai" and name in ("chat_template_kwargs", "system_prompt")
        with user_error("E-recipe-chat-settings" if settings_of_a_server else "E-recipe-teacher-key") as error:
            parse_recipe(text, "a.yaml")
        assert name in error.value.what
    recipe = parse_recipe(json.dumps({"name": "a", "teacher": section}), "a.yaml")
    assert parse_recipe(recipe_to_yaml(recipe), "again.yaml") == recipe


def test_a_scorer_reads_keys_too() -> None:
    scored = "name: a\nteacher: {kind: human, top_logprobs: 3, prompt: shots.txt, score: {%s}}\n"
    parse_recipe(scored % "model: m", "a.yaml")
    with user_error("E-recipe-teacher-key", where="--set teacher.chat=true"):
        parse_recipe(scored % "model: m, kind: openai", "a.yaml", ["teacher.chat=true"])


def test_a_teacher_opens_no_file_whose_change_would_go_unnoticed(tmp_path: Path) -> None:
    marked = {name for name, field in TeacherSection.model_fields.items() if field.json_schema_extra == INPUT_FILE}
    assert marked >= {"chains", "prompt"}
    teacher = teachers.from_recipe(parse_recipe("name: a\nteacher: {kind: human}", "a.yaml"))
    (tmp_path / "mine.csv").touch()
    with pytest.raises(AssertionError, match=r"mark teacher\.path"):
        teacher.find_path(f"{tmp_path}/mine.csv", "teacher.path")


def test_a_change_in_the_middle_of_a_large_file_of_chains_is_noticed(tmp_path: Path) -> None:
    row = {"question": "s/1", "text": "x" * 1000}
    teacher = stored_chains(tmp_path / "old.jsonl", *[row] * 5000)
    before, content = teacher.inputs(), (tmp_path / "old.jsonl").read_bytes()
    (tmp_path / "old.jsonl").write_bytes(content[:2_500_000] + b"y" + content[2_500_001:])
    assert teacher.inputs().keys() == before.keys() and teacher.inputs() != before


# --- no chains -------------------------------------------------------------------------------------------------------


def stored_chains(path: Path, *rows: dict[str, str]) -> teachers.Teacher:
    write_jsonl(path, rows)
    return teachers.from_recipe(parse_recipe(f"name: a\nteacher: {{kind: replay, chains: {path}}}", "a.yaml"))


def test_the_plan_counts_the_chains_of_training_questions(tmp_path: Path) -> None:
    teacher = stored_chains(tmp_path / "old.jsonl", *({"question": f"s/{i}", "text": "x"} for i in range(9)))
    asked = [question(str(i)) for i in range(4)]
    assert teacher.count_chains(asked) == 4
    [line] = teacher.forecast(asked)
    assert "replay: 4 chains in " in line and line.endswith("; and 5 chains for other questions")
    teacher.check_questions(asked)
    with user_error("E-teacher-no-chains"):
        teacher.check_questions([question("99")])


def test_a_file_without_chains_stops_sampling(tmp_path: Path) -> None:
    teacher = stored_chains(tmp_path / "old.jsonl")
    with user_error("E-teacher-no-chains"):
        list(teacher.sample([question("1")]))
    with user_error("E-teacher-no-chains"):
        for check in teacher.checks():
            check()
    teacher = stored_chains(tmp_path / "old.jsonl", {"question": "s/2", "text": "x"})
    with user_error("E-teacher-no-chains"):
        list(teacher.sample([question("1")], SamplingState(other_questions=[question("2")])))


def test_no_solution_at_all_stops_sampling() -> None:
    recipe = parse_recipe("name: a\nteacher: {kind: human, unsolved: skip}", "a.yaml")
    solved, unsolved = question("1", rationale="so"), question("2")
    assert len(list(teachers.from_recipe(recipe).sample([solved, unsolved]))) == 1
    with user_error("E-teacher-no-solutions"):
        teachers.from_recipe(recipe).sample([unsolved])


def test_bare_answers_are_chains_if_the_recipe_says_so() -> None:
    recipe = parse_recipe("name: a\nteacher: {kind: human, unsolved: answer}", "a.yaml")
    [chains] = teachers.from_recipe(recipe).sample([question("1", rationale="so"), question("2")])
    assert [chain.text.partition("The answer is")[0] for chain in chains] == ["so\n", ""]
    assert teachers.from_recipe(recipe).count_chains([question("2")]) == 1


def test_a_teacher_without_a_recipe(tmp_path: Path) -> None:
    solver().student.save(tmp_path)
    teacher = teachers.local(str(tmp_path), samples=2, max_tokens=20, top_logprobs=1)
    chains = [chain for batch in teacher.sample([question("1")]) for chain in batch]
    assert [chain.key for chain in chains] == [("s/1", "local", 0), ("s/1", "local", 1)]
    assert teachers.openai("m", samples=3).samples_per_request == 3
    with pytest.raises(UserError, match=r"did you mean teacher\.samples(.|\n)*E-recipe-unknown-key"):
        teachers.local(str(tmp_path), sampels=2)
