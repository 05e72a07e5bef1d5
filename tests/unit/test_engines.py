"""Engines: batches and random numbers depend on keys alone, texts equal those of transformers' `generate`, and
log-probabilities those of a forward pass."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from markov import NEVER, markov, writer
from potstill import inference
from potstill.errors import UserError
from potstill.inference import Decode, Request, batch_requests, draw_uniform
from potstill.inference.sampling import AnswerDetector, sample_inverse_cdf
from potstill.inference.transformers import TransformersEngine
from potstill.models import Shape, Student, random_student
from potstill.records import END, Prompt, Turn
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

TEXTS = ["Tom has 3 apples and buys 4 more.", "3 + 4 = 7.", "The answer is 7", "Let's think step by step"] * 3
LENGTHS = (3, 9, 1, 5, 9, 2)


def tiny(family: str, *, spare: int = 0, seed: int = 1) -> Student:
    tokenizer = train_unigram(TEXTS, 60) if family == "t5" else train_bpe(TEXTS, 262)
    size = tokenizer.size + spare
    shape = Shape(family, d_model=16, layers=2, heads=2, d_ff=24, d_kv=8, vocabulary=size)  # type: ignore[arg-type]
    return random_student(shape, tokenizer, seed)


@pytest.fixture(scope="module", params=["t5", "causal"])
def engine(request: pytest.FixtureRequest) -> TransformersEngine:
    student = tiny(request.param)
    # A random model is nearly uniform; sharper logits make greedy texts and draws worth comparing.
    with torch.no_grad():
        student.head.weight.mul_(3.0)
    return TransformersEngine(student)


def make_requests(engine: TransformersEngine, samples: int = 1) -> list[Request]:
    words = engine.student.encode("Tom has 3 apples and buys 4 more.")
    prompts = [tuple((words * 3)[row : row + length]) for row, length in enumerate(LENGTHS)]
    return [Request((f"q{row}", index), prompt) for row, prompt in enumerate(prompts) for index in range(samples)]


def distribution(engine: TransformersEngine, prompt: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
    """Natural log-probabilities [n + 1, v] before each of the ids and after the last, from one plain forward pass."""
    model = engine.student.model
    with torch.no_grad():
        if engine.student.family == "t5":
            decoder = torch.tensor([[model.config.decoder_start_token_id, *ids]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :]
    return logits.double().log_softmax(-1)


# --- batches and draws -----------------------------------------------------------------------------------------------

requests_strategy = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "c", "é/1"]), st.integers(0, 5)), st.integers(0, 40), max_size=20
).map(lambda table: [Request(key, (7,) * length) for key, length in table.items()])


@given(requests_strategy, st.integers(1, 120), st.integers(0, 20), st.randoms())
def test_batches_are_a_function_of_the_set_and_the_budget(requests, budget, grown, random) -> None:
    cut = batch_requests(requests, budget, max_tokens=grown)
    assert sorted(index for batch in cut for index in batch) == list(range(len(requests)))
    for batch in cut:
        width = max(len(requests[index].prompt) for index in batch) + grown
        assert len(batch) == 1 or len(batch) * width <= budget
    shuffled = list(requests)
    random.shuffle(shuffled)
    again = batch_requests(shuffled, budget, max_tokens=grown)
    keys = [[requests[index].key for index in batch] for batch in cut]
    assert [[shuffled[index].key for index in batch] for batch in again] == keys


def test_samples_of_a_question_lie_side_by_side() -> None:
    requests = [Request((question, index), (1, 2, 3)) for index in range(3) for question in "ab"]
    [batch] = batch_requests(requests, budget=1000)
    assert [requests[index].key for index in batch] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]


def test_two_requests_with_one_key_are_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError, match="one key"):
        batch_requests([Request(("q", 0), (1,)), Request(("q", 0), (2,))], 10)


def test_the_counter_is_pinned() -> None:
    assert draw_uniform(0, ("gsm8k/1", 0), 0) == 0.08094450472576564
    assert (
        len({draw_uniform(s, (q, i), p) for s in (0, 1) for q in ("a", "b", "1/a") for i in (0, 1) for p in (0, 1)})
        == 24
    )


def test_the_counter_is_uniform() -> None:
    draws = np.array([draw_uniform(3, ("q", index), position) for index in range(50) for position in range(200)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 50  # chi-square with 19 degrees of freedom: 50 has p = 1e-4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=12), st.floats(0.1, 3), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(logits, temperature, point) -> None:
    weights = np.exp(np.array(logits, dtype=np.float32).astype(np.float64) / temperature)
    ends = np.cumsum(weights / weights.sum())
    [drawn] = sample_inverse_cdf(torch.tensor([logits], dtype=torch.float32), temperature, [point]).tolist()
    assert (ends[drawn - 1] if drawn else 0) - 1e-12 <= point <= ends[drawn] + 1e-12


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    points = [0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53]
    assert sample_inverse_cdf(logits.expand(5, -1), 0.7, points).tolist() == [1, 1, 3, 3, 3]


# --- texts against transformers --------------------------------------------------------------------------------------


def test_greedy_texts_are_those_of_generate(engine: TransformersEngine) -> None:
    student, requests = engine.student, make_requests(engine)
    ours = engine.generate(requests, Decode(max_tokens=12))
    for request, text in zip(requests, ours, strict=True):
        settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": student.tokenizer.eos}
        whole = student.model.generate(torch.tensor([request.prompt]), pad_token_id=student.tokenizer.pad, **settings)
        new = whole[0, 1 if student.family == "t5" else len(request.prompt) :].tolist()
        theirs = new[: new.index(student.tokenizer.eos)] if student.tokenizer.eos in new else new
        assert list(text.ids) == theirs
        assert text.stop == ("end" if student.tokenizer.eos in new else "length")
        assert text.text == student.tokenizer.decode(theirs)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_raw_and_those_of_a_forward_pass(engine: TransformersEngine, temperature: float) -> None:
    tokenizer, requests, k = engine.student.tokenizer, make_requests(engine, 3), 4
    texts = engine.generate(requests, Decode(max_tokens=16, temperature=temperature, seed=5, top_logprobs=k))
    for request, text in zip(requests, texts, strict=True):
        logs = distribution(engine, request.prompt, text.ids)
        drawn = [*text.ids, tokenizer.eos] if text.stop == "end" else [*text.ids]
        assert len(text.candidates) == len(drawn)
        for position, token in enumerate(drawn):
            top = logs[position].topk(k).indices.tolist()
            expected = {}
            for each in dict.fromkeys([*top, token]):
                outcome = tokenizer.candidate(each, position)
                if outcome is None:
                    outcome = b"" if each == token else None
                if outcome is not None:  # two tokens that write the same bytes are one outcome
                    expected[outcome] = np.logaddexp(expected.get(outcome, -np.inf), float(logs[position, each]))
            found = dict(text.candidates[position])
            assert found.keys() == expected.keys()
            assert found == pytest.approx(expected, abs=1e-5)
            assert list(found.values()) == sorted(found.values(), reverse=True)
            assert (END if token == tokenizer.eos else text.tokens[position]) in found


def test_tokens_spell_the_text(engine: TransformersEngine) -> None:
    for text in engine.generate(make_requests(engine, 4), Decode(max_tokens=16, temperature=1.0, top_logprobs=2)):
        assert b"".join(text.tokens) == text.content
        assert len(text.tokens) == len(text.ids)
        assert text.tokens == tuple(engine.student.tokenizer.split(text.ids))


def test_texts_that_are_scored_get_the_numbers_of_a_forward_pass(engine: TransformersEngine) -> None:
    tokenizer, k = engine.student.tokenizer, 4
    texts = ["3 + 4 = 7.", "Tom", "The answer is 7", "Tom buys 4 apples.", "", "7"]
    requests = make_requests(engine)
    for request, text, read in zip(requests, texts, engine.score(requests, texts, top_logprobs=k), strict=True):
        assert read.ids == tuple(tokenizer.encode(text).ids) and len(read.candidates) == len(read.ids) + 1
        assert read.tokens == tuple(tokenizer.split(read.ids))
        assert all(
            text.encode()[start:end] in (own, b" " + own)
            for own, (start, end) in zip(read.tokens, read.spans, strict=True)
        )
        logs = distribution(engine, request.prompt, read.ids)
        for position, (token, step) in enumerate(zip((*read.ids, tokenizer.eos), read.candidates, strict=True)):
            own = END if position == len(read.ids) else read.tokens[position]
            shown = dict.fromkeys([*logs[position].topk(k).indices.tolist(), token])
            same = [logs[position, each] for each in shown if tokenizer.candidate(each, position) == own]
            assert dict(step)[own] == pytest.approx(float(torch.stack(same).logsumexp(0)), abs=1e-5)
            assert len(step) <= k + 1 and math.exp(max(value for _, value in step)) <= 1
    assert engine.score([], [], top_logprobs=k) == []


# --- what a sampled text depends on ------------------------------------------------------------------------------


def test_the_same_batch_gives_the_same_bits(engine: TransformersEngine) -> None:
    requests = make_requests(engine, 2)
    first = engine.generate(requests, Decode(max_tokens=12, temperature=0.9, seed=2, top_logprobs=3))
    torch.rand(3)  # a shared generator would be moved by this
    assert engine.generate(requests, Decode(max_tokens=12, temperature=0.9, seed=2, top_logprobs=3)) == first
    assert engine.generate(requests, Decode(max_tokens=12, temperature=0.9, seed=3, top_logprobs=3)) != first


def test_a_text_does_not_depend_on_its_batch(engine: TransformersEngine) -> None:
    requests = make_requests(engine, 4)
    together = engine.generate(requests, Decode(max_tokens=12, temperature=0.9, seed=2, top_logprobs=3))
    ids = {text.key: text.ids for text in together}
    assert len(set(ids.values())) > len(ids) // 2  # samples differ from each other
    backwards = engine.generate(requests[::-1], Decode(max_tokens=12, temperature=0.9, seed=2))
    alone = [engine.generate([request], Decode(max_tokens=12, temperature=0.9, seed=2))[0] for request in requests]
    assert {text.key: text.ids for text in backwards} == ids
    assert {text.key: text.ids for text in alone} == ids
    assert [text.key for text in backwards] == [request.key for request in requests[::-1]]


def test_more_tokens_continue_the_same_text(engine: TransformersEngine) -> None:
    requests = make_requests(engine, 2)
    short = engine.generate(requests, Decode(max_tokens=4, temperature=0.9, seed=2))
    long = engine.generate(requests, Decode(max_tokens=9, temperature=0.9, seed=2))
    for few, many in zip(short, long, strict=True):
        assert few.ids == many.ids[:4] and (few.stop == "length" or few == many)


def test_candidates_change_no_text(engine: TransformersEngine) -> None:
    requests = make_requests(engine, 2)
    plain = engine.generate(requests, Decode(max_tokens=8, temperature=0.9))
    assert all(text.candidates == () for text in plain)
    shown = engine.generate(requests, Decode(max_tokens=8, temperature=0.9, top_logprobs=3))
    assert [replace(text, candidates=()) for text in shown] == plain


def test_some_texts_end_and_some_run_out(engine: TransformersEngine) -> None:
    texts = engine.generate(make_requests(engine, 40), Decode(max_tokens=16, temperature=1.3, top_logprobs=1))
    stops = Counter(text.stop for text in texts)
    assert stops["end"] and stops["length"] and not stops["cut"]
    for text in texts:
        assert len(text.candidates) == len(text.tokens) + (text.stop == "end")
        assert text.stop == "end" or len(text.tokens) == 16
        assert text.stop == "length" or END in dict(text.candidates[-1])


def test_what_a_checkpoint_says_about_generation_is_not_obeyed(engine: TransformersEngine) -> None:
    requests, model = make_requests(engine), engine.student.model
    before = engine.generate(requests, Decode(max_tokens=12, top_logprobs=2))
    config = model.generation_config
    changed = type(config)(
        **config.to_dict() | {"repetition_penalty": 5.0, "min_new_tokens": 12, "top_k": 1, "bad_words_ids": [[5]]}
    )
    model.generation_config = changed
    model.train()
    try:
        assert engine.generate(requests, Decode(max_tokens=12, top_logprobs=2)) == before
        assert model.generation_config is changed and model.training
    finally:
        model.generation_config = config
        model.eval()


def test_an_open_student_is_an_engine(engine: TransformersEngine) -> None:
    prompt = Prompt((Turn("user", "Tom has 3"),), "\n")
    opened = inference.open_engine(engine.student)
    assert opened.encode(prompt) == tuple(engine.student.encode(engine.student.render(prompt)))
    assert opened.generate([], Decode(max_tokens=3)) == []


# --- vocabularies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "causal"])
def test_rows_of_a_padded_head_write_nothing(family: str) -> None:
    student = tiny(family, spare=200)
    size = student.tokenizer.size
    texts = TransformersEngine(student).generate(
        make_requests(TransformersEngine(student), 3), Decode(max_tokens=10, temperature=1.0, top_logprobs=300)
    )
    unknown = [(text, place) for text in texts for place, token in enumerate(text.ids) if token >= size]
    assert unknown
    for text, place in unknown:
        assert text.tokens[place] == b"" and b"" in dict(text.candidates[place])
    for text in texts:
        for step in text.candidates:
            assert len(step) <= size + 1 and len({what for what, _ in step}) == len(step)


def test_two_end_tokens_are_one_outcome() -> None:
    student = tiny("causal")
    other = student.tokenizer.pad  # a special token that is no text
    student.model.generation_config.eos_token_id = [student.tokenizer.eos, other, 40]
    engine = TransformersEngine(student)
    assert engine.end_tokens == (student.tokenizer.eos, other)  # 40 is text
    request = make_requests(engine)[0]
    [text] = engine.generate([request], Decode(max_tokens=1, top_logprobs=student.tokenizer.size))
    logs = distribution(engine, request.prompt, ())[0]
    expected = torch.logsumexp(logs[[student.tokenizer.eos, other]], 0)
    assert dict(text.candidates[0])[END] == pytest.approx(float(expected), abs=1e-5)
    assert sum(math.exp(value) for _, value in text.candidates[0]) == pytest.approx(1.0, abs=1e-3)


# --- stopping after the answer --------------------------------------------------------------------------------------


def encode_requests(engine: TransformersEngine, *prompts: str) -> list[Request]:
    return [Request((f"q{row}", 0), tuple(engine.student.encode(prompt))) for row, prompt in enumerate(prompts)]


def test_a_text_stops_once_its_answer_line_is_whole() -> None:
    engine = writer()
    [text] = engine.generate(
        encode_requests(engine, "So"), Decode(max_tokens=40, stop_at_answer="line", top_logprobs=2)
    )
    assert (text.text, text.stop) == (" it was. The answer is four\n", "cut")
    assert len(text.candidates) == len(text.tokens) == len(text.ids)
    [whole] = engine.generate(encode_requests(engine, "So"), Decode(max_tokens=40, top_logprobs=2))
    assert whole.text.startswith(text.text + "QQQ") and whole.stop == "length"
    assert whole.candidates[: len(text.tokens)] == text.candidates


def test_a_line_without_the_words_and_words_without_a_whole_line_stop_nothing() -> None:
    engine = writer("So it was\nThe answer is four. Q", last=" Q")
    [text] = engine.generate(encode_requests(engine, "So"), Decode(max_tokens=20, stop_at_answer="line"))
    assert (text.text[:30], text.stop) == (" it was\nThe answer is four. Q ", "length")


@pytest.mark.parametrize(
    "written, kept",
    [
        ("So it was 4.5. The answer is 4.50. Q", " it was 4.5. The answer is 4.50."),
        ("So it is. The answer is not 7. The answer is 8. Q", " it is. The answer is not 7. The answer is 8."),
        ("So the answer is 9\nQ", " the answer is 9"),
        ("So the answer is\n10. Q", " the answer is\n10."),
        ("So the answer is 11 Question: Who", " the answer is 11"),
        ("So the answer is 12.", None),
        ("So the answer is 13.5", None),
    ],
)
@pytest.mark.parametrize("family", ["t5", "causal"])
def test_where_the_sentence_of_an_answer_ends(written: str, kept: str | None, family: str) -> None:
    """Token by token, whatever the tokens are; a T5 tokenizer has no newline."""
    if family == "t5" and "\n" in written:
        return
    tokenizer = train_unigram([written] * 9, 60) if family == "t5" else train_bpe([written] * 9, 280)
    ids = tokenizer.encode(written).ids
    pieces = tokenizer.split(ids)
    line = AnswerDetector(1, lambda token, position: pieces[position], "sentence")
    found = [line.add(0, token, position) for position, token in enumerate(ids)]
    assert found == sorted(found) and any(found) == (kept is not None)
    if kept is not None:
        assert b"".join(pieces[: line.lengths[0]]).decode() == f"So{kept}"


def test_a_text_stops_behind_the_sentence_of_its_answer() -> None:
    engine = writer("So it was\nThe answer is four. Q", last=" Q")
    [text] = engine.generate(
        encode_requests(engine, "So"), Decode(max_tokens=40, stop_at_answer="sentence", top_logprobs=2, likelihood=True)
    )
    assert (text.text, text.stop) == (" it was\nThe answer is four.", "cut")
    assert len(text.candidates) == len(text.tokens) == len(text.ids)
    [whole] = engine.generate(encode_requests(engine, "So"), Decode(max_tokens=len(text.ids), likelihood=True))
    assert whole.ids == text.ids and whole.likelihood == text.likelihood


def test_rows_stop_each_on_its_own() -> None:
    engine = writer()
    requests = encode_requests(engine, "So", "So it was. The answer is", " it was.", "Q")
    texts = engine.generate(requests, Decode(max_tokens=12, stop_at_answer="line", top_logprobs=2))
    # The second and the last write no line with the words: the prompt is not their text.
    assert [text.stop for text in texts] == ["cut", "length", "cut", "length"]
    assert [text.text.endswith("four\n") for text in texts] == [True, False, True, False]
    assert texts == [
        engine.generate([one], Decode(max_tokens=12, stop_at_answer="line", top_logprobs=2))[0] for one in requests
    ]


def test_draws_follow_the_distribution() -> None:
    tokenizer = train_bpe(["ab"], 258)
    [a], [b] = tokenizer.encode("a").ids, tokenizer.encode("b").ids
    engine = markov(tokenizer, {a: {a: math.log(0.5), b: math.log(0.3), tokenizer.eos: math.log(0.2)}})
    requests = [Request(("q", index), (a,)) for index in range(2000)]
    for temperature in (1.0, 2.0):
        shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) ** (1 / temperature)
        rest = (tokenizer.size - 3) * math.exp(NEVER / temperature)
        shares = shares / (shares.sum() + rest)
        texts = engine.generate(requests, Decode(max_tokens=1, temperature=temperature, top_logprobs=3))
        counts = Counter(text.ids[0] if text.ids else tokenizer.eos for text in texts)
        for token, share in zip((a, b, tokenizer.eos), shares.tolist(), strict=True):
            assert abs(counts[token] / 2000 - share) < 4 * math.sqrt(share * (1 - share) / 2000)
        assert {what: round(math.exp(value), 5) for what, value in texts[0].candidates[0]} == {
            b"a": 0.5,
            b"b": 0.3,
            END: 0.2,
        }


# --- errors of the user -------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    student = random_student(
        Shape("causal", d_model=8, layers=1, heads=1, d_ff=8, d_kv=8, vocabulary=262, length=20),
        tiny("causal").tokenizer,
        1,
    )
    engine = TransformersEngine(student)
    assert len(engine.generate([Request(("q", 0), (5,) * 12)], Decode(max_tokens=8))) == 1
    with pytest.raises(UserError) as raised:
        engine.generate([Request(("set/7", 0), (5,) * 13)], Decode(max_tokens=8))
    assert (raised.value.code, raised.value.where) == ("E-inference-prompt-too-long", "question set/7")
    assert "13 prompt tokens + 8 new tokens" in raised.value.found and raised.value.hint


def test_an_empty_prompt_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(UserError) as raised:
        engine.generate([Request(("q", 0), ())], Decode(max_tokens=2))
    assert (raised.value.code, raised.value.where) == ("E-inference-empty-prompt", "question q")


def test_logits_that_are_not_numbers_are_refused() -> None:
    student = tiny("t5")
    with torch.no_grad():
        student.head.weight[3, 3] = math.nan
    with pytest.raises(UserError) as raised:
        TransformersEngine(student).generate([Request(("q", 0), (5, 6))], Decode(max_tokens=2))
    assert raised.value.code == "E-inference-nan-logits"
