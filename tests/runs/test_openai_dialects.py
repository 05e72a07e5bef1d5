"""Servers that deviate from the protocol: usable answers are used, and everything else is reported."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stub
import tiny
from potstill import teachers
from potstill.errors import UserError
from potstill.grading import grade
from potstill.recipe import Recipe, parse_recipe
from potstill.records import END, Chain, Prompt, Question, Turn
from potstill.teachers import SamplingState, UsageMeter
from potstill.teachers.openai_api import batch_api, response
from potstill.teachers.openai_api.chain_reader import DEFECT_ABOVE_ONE, DEFECT_OTHER_TEXT, DEFECT_VOCABULARY_MARKS
from potstill.teachers.openai_api.request import Capabilities, SampleRequest, ServerSettings
from potstill.teachers.openai_api.response import decode_body
from potstill.teachers.openai_api.scheduler import collect_chains
from potstill.teachers.openai_api.token_entries import ReaderContext

QUESTION = Question("q", "What is 2 + 2?", "4", "s", "train", "number")
PROMPT = Prompt((Turn("user", "What is 2 + 2?"),), "\n")


def one(
    response: dict[str, Any] | bytes, *, candidates: int = 0, learn: str = "both", **reader
) -> tuple[Chain | None, str]:
    """The chain that a response gives, or what is said of it."""
    data = response if isinstance(response, bytes) else json.dumps(response).encode()
    settings = ServerSettings("m", api="chat", top_logprobs=candidates, max_tokens=64, samples=1)
    known = {"end_names": frozenset({"<end>"}), **reader}
    found, left, said = collect_chains(
        decode_body(data),
        SampleRequest(QUESTION, PROMPT, (0,)),
        settings,
        Capabilities(),
        ReaderContext("t", "raw", reasoning=learn, **known),
    )
    assert bool(found) != bool(left)
    return (found[0].as_chain(), "") if found else (None, said)


def chain(response: dict[str, Any] | bytes, **more) -> Chain:
    found, said = one(response, **more)
    assert found is not None, said
    return found


def message(reason: str | None = "stop", usage: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": reason}],
        "usage": usage,
    }


def entries(*pairs: tuple[str, float], k: int = 1) -> dict[str, Any]:
    """Log-probabilities of tokens, each with itself as the first of k candidates."""
    rest = [{"token": f"?{i}", "logprob": -9.0} for i in range(k - 1)]
    rows = [{"token": token, "logprob": value} for token, value in pairs]
    return {"content": [row | {"top_logprobs": [row, *rest]} for row in rows]}


def verdict(found: Chain) -> str:
    return grade(found.text, QUESTION.gold, QUESTION.task, found.stop).grade


# --- thoughts ---------------------------------------------------------------------------------------------------------


WONDER = "Maybe the answer is 5.\nNo: 2 + 2 is 4."
TELL = "2 + 2 = 4.\nThe answer is 4."
CHANNELS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>"


@pytest.mark.parametrize(
    "fields",
    [
        {"content": f"<think>\n{WONDER}\n</think>\n\n{TELL}\nBye"},
        {"content": f"{WONDER}\n</think>\n\n{TELL}\nBye"},
        {"content": f"{TELL}\nBye", "reasoning": WONDER},
        {"content": f"{TELL}\nBye", "reasoning_content": WONDER},
        {"content": f"{TELL}\nBye", "thinking": WONDER},
        {"content": f"[THINK]{WONDER}[/THINK]{TELL}\nBye"},
        {"content": f"<thinking>{WONDER}</thinking>{TELL}\nBye"},
        {"content": CHANNELS.format(WONDER, f"{TELL}\nBye")},
        {"content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": WONDER}]},
            {"type": "text", "text": f"{TELL}\nBye"},
        ]},
    ],
)  # fmt: skip
def test_a_thought_may_say_the_answer_is_and_the_cut_is_in_the_answer(fields: dict[str, Any]) -> None:
    found = chain(message(**fields))
    assert found.text == f"{WONDER}\n{TELL}" and found.stop == "cut"
    assert verdict(found) == "right"
    assert chain(message(**fields), learn="answer").text == TELL
    assert chain(message(**fields), learn="reasoning").text == WONDER


def test_a_thought_without_an_answer_is_not_cut() -> None:
    found = chain(message("length", content="<think>The answer is 5.\nNo, wait"))
    assert (found.text, found.stop) == ("The answer is 5.\nNo, wait", "length")


def test_two_thoughts_stand_before_one_answer() -> None:
    found = chain(message(content="<think>the answer is 1\nno</think>Hm.<think>2 + 2</think>The answer is 4.\nBye"))
    assert found.text == "the answer is 1\nno\nHm.\n2 + 2\nThe answer is 4."


THOUGHT = [
    (token, -2.0)
    for token in ("<think>", "\n", "2 + 2", " is", " 4", ". The", " answer", " is", " 4", "?", "\n", "</think>", "\n\n")
]
SAID = [("The", -0.1), (" answer", -0.1), (" is", -0.1), (" 4", -0.1), (".", -0.1)]
END_ENTRY = [("<end>", -0.1)]


def values(found: Chain) -> list[float]:
    return [dict(step)[token] for token, step in zip(found.tokens, found.candidates, strict=False)]


@pytest.mark.parametrize("hidden", [THOUGHT, THOUGHT[1:11] + THOUGHT[12:], THOUGHT[2:4]])
def test_a_hidden_thoughts_numbers_are_not_the_answers(hidden: list[tuple[str, float]]) -> None:
    """The message has the answer alone, the entries speak of the thought as well, with its tags or without."""
    response = message(content="The answer is 4.")
    response["choices"][0]["logprobs"] = entries(*hidden, *SAID, *END_ENTRY, k=3)
    found = chain(response, candidates=3)
    assert found.tokens == (b"The", b" answer", b" is", b" 4", b".") and values(found) == [-0.1] * 5
    assert found.candidates[-1][0] == (END, -0.1) and found.defects == ()


def test_a_hidden_thought_beside_bytes_that_are_unknown() -> None:
    """The answer cannot be found as it is, since a token ends inside a character: the tag says where it begins."""
    response = message(content="é is 4.")
    response["choices"][0]["logprobs"] = entries(*THOUGHT, ("�", -0.1), ("�", -0.1), (" is", -0.1), (" 4.", -0.1), k=2)
    found = chain(response, candidates=2)
    assert set(values(found)) == {-0.1} and b" is" in found.tokens and b" 4." in found.tokens


def test_entries_that_do_not_fit_the_text_are_not_used() -> None:
    response = message(content="2 + 2 é 4")
    response["choices"][0]["logprobs"] = entries(*THOUGHT[2:10], ("2 + 2", -0.1), (" �", -0.1), (" 4", -0.1))
    found = chain(response, candidates=1)
    assert (
        found.tokens == ()
        and found.candidates == ()
        and found.defects == (DEFECT_OTHER_TEXT,)
        and found.semantics == "none"
    )


@pytest.mark.parametrize("thought", ["2 + 2 is 4. The answer is 4?", "I added them: the answer is 4."])
def test_entries_of_the_answer_alone_beside_a_thought(thought: str) -> None:
    """The thought came in its own field, changed or not, and has no entries."""
    response = message(content="The answer is 4.", reasoning_content=thought)
    response["choices"][0]["logprobs"] = entries(*SAID, *END_ENTRY, k=2)
    found = chain(response, candidates=2)
    assert found.text == f"{thought}\nThe answer is 4." and found.content[slice(*found.spans[0])] == b"The"
    assert found.spans[0][0] == len(thought) + 1 and values(found) == [-0.1] * 5 and found.candidates[-1][0][0] is END


def test_entries_of_both_with_the_thought_in_a_field_of_its_own() -> None:
    response = message(content="The answer is 4.", reasoning="2 + 2 is 4. The answer is 4?")
    response["choices"][0]["logprobs"] = entries(*THOUGHT, *SAID, *END_ENTRY, k=2)
    found = chain(response, candidates=2)
    assert values(found) == [-2.0] * 8 + [-0.1] * 5 and found.candidates[-1][0][0] is END
    assert [found.content[a:b] for a, b in found.spans] == list(found.tokens)


# --- how texts end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason, stop",
    [
        *[(name, "end") for name in ("stop", "STOP", "COMPLETE", "completed", "stop_sequence", "end_turn", "eos",
                                     "EOS_TOKEN", "FINISH_REASON_STOP", "<|eot|>", "end-of-text")],
        *[(name, "length") for name in ("length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens",
                                        "model_context_window_exceeded", "incomplete")],
    ],
)  # fmt: skip
def test_reasons_by_other_names(reason: str, stop: str) -> None:
    found = chain(message(reason, content="2 + 2 = 4"))
    assert found.stop == stop and verdict(found) == ("right" if stop == "end" else "truncated")


@pytest.mark.parametrize("reason", [None, "", "null"])
@pytest.mark.parametrize(
    "content, usage, stop",
    [
        ("2 + 2 = 4", {"prompt_tokens": 5, "completion_tokens": 7}, "end"),
        ("2 + 2 = 4", {"prompt_tokens": 5, "completion_tokens": 64}, "length"),
        ("So 4.\nThe answer is 4.", None, "end"),
        ("2 + 2 =", None, "length"),
    ],
)
def test_a_text_without_a_reason(reason, content, usage, stop) -> None:
    assert chain(message(reason, usage, content=content)).stop == stop


def test_a_text_without_a_reason_whose_entries_are_fewer_than_it_may_have() -> None:
    response = message(None, content="The answer is 4.")
    response["choices"][0]["logprobs"] = entries(*SAID, *END_ENTRY)
    found = chain(response, candidates=1)
    assert found.stop == "end" and found.candidates[-1][0][0] is END


@pytest.mark.parametrize(
    "reason", ["error", "network_error", "insufficient_system_resource", "abort", "Internal Server Error", "timeout"]
)
def test_what_broke_off_is_asked_again(reason: str) -> None:
    assert one(message(reason, content="2 + 2")) == (None, f"the server broke the text off: finish_reason {reason}")


def test_an_error_within_a_choice_is_asked_again() -> None:
    response = message("stop", content="2 +")
    response["choices"][0]["error"] = {"code": 502, "message": "upstream died"}
    assert one(response) == (None, "the server broke the text off: upstream died")


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "refusal", "guardrail_intervened"])
def test_what_was_filtered_is_not_used(reason: str) -> None:
    found = chain(message(reason, content="2 + 2 = 4.\nThe answer is 4."))
    assert found.content == b"" and found.defects == ("content filter",) and verdict(found) != "right"


def test_an_unknown_reason_counts_as_cut_off_and_is_marked() -> None:
    found = chain(message("tired", content="2 + 2 = 4"))
    assert found.stop == "length" and found.defects == ("finish reason unknown",)


def test_every_name_has_one_meaning() -> None:
    names = [name for each in response.FINISH_REASONS.values() for name in each.split()]
    assert len(names) == len(set(names))


# --- what JSON has not, and other types -------------------------------------------------------------------------------


def test_numbers_that_json_lacks_are_hidden() -> None:
    data = (
        b'{"choices":[{"message":{"content":"4"},"logprobs":{"content":[{"token":"4","logprob":-0.1,"top_logprobs":'
        b'[{"token":"4","logprob":-0.1},{"token":"5","logprob":-Infinity},{"token":"6","logprob":NaN},'
        b'{"token":"7","logprob":-1e999}]}]},"finish_reason":"length"}]}'
    )
    found = chain(data, candidates=1)
    assert found.candidates == (((b"4", -0.1),),) and found.defects == ("log-probability hidden",)


@pytest.mark.parametrize(
    "change",
    [
        {"usage": {"prompt_tokens": "5", "completion_tokens": "12"}},
        {"usage": []},
        {"usage": "none"},
        {"model": 7},
        {"model": None},
        {"choices": [{"index": None}]},
        {"choices": [{"index": "0", "stop_reason": {"a": 1}, "token_ids": "x", "logprobs": []}]},
        {"choices": [{"finish_reason": {"type": "stop"}}]},
        {"choices": [{"logprobs": {"content": None, "tokens": None, "text_offset": ["x"]}}]},
        {"choices": [{"message": {"content": "The answer is 4.", "reasoning": 7, "refusal": 7}}]},
        {"choices": [{"message": "The answer is 4."}]},
        {"error": None, "choices": [{"error": None}]},
        {"id": 7, "created": "now", "system_fingerprint": []},
    ],
)
def test_side_fields_of_another_type_are_passed_over(change: dict[str, Any]) -> None:
    response = message(content="The answer is 4.")
    response["choices"][0] |= change.pop("choices", [{}])[0]
    assert verdict(chain(response | change)) == "right"


def test_entries_of_other_types_lose_only_what_is_wrong() -> None:
    listing = {"content": [{"token": "4", "logprob": "-0.1", "id": "x", "top_logprobs": {"4": -0.1, "5": "-3"}}, 7]}
    response = message("length", content="4")
    response["choices"][0]["logprobs"] = listing
    assert chain(response, candidates=2).candidates == (((b"4", -0.1), (b"5", -3.0)),)


@pytest.mark.parametrize("text", [r"4\ud83d", r"\ude004", r"4\ud83d\ud83d", r"\udfff\ud800 4"])
def test_half_a_surrogate_pair_is_replaced_and_marked(text: str) -> None:
    data = b'{"choices":[{"message":{"content":"%s"},"finish_reason":"stop"}]}' % text.encode()
    found = chain(data)
    assert "�" in found.text and found.defects == ("half a surrogate pair",)
    found.content.decode("utf-8")
    raw = b'{"choices":[{"message":{"content":"4\xed\xa0\x80"},"finish_reason":"stop"}]}'
    assert chain(raw).defects == ("half a surrogate pair",)


NAMES = (
    "choices message content text logprobs tokens token token_logprobs top_logprobs usage error finish_reason logprob"
    " prompt_tokens completion_tokens index bytes model"
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=4)


@given(st.recursive(LEAVES, nested, max_leaves=24))
def test_no_body_raises_anything_but_malformed(tree: Any) -> None:
    for made in (
        tree,
        {"choices": [tree]},
        {"choices": [{"message": tree, "logprobs": tree, "finish_reason": "stop"}]},
    ):
        try:
            found = response.decode_body(json.dumps(made).encode())
        except response.DECODE_ERRORS:
            continue
        collect_chains(
            found,
            SampleRequest(QUESTION, PROMPT, (0, 1)),
            ServerSettings("m", top_logprobs=1),
            Capabilities(),
            ReaderContext("t", "raw"),
        )


# --- what candidates say ----------------------------------------------------------------------------------------------


def test_probabilities_above_1_are_no_probabilities() -> None:
    listing = entries(("The", -0.1), (" answer", 0.7), (" is", -0.2), (" 4", -0.1), (".", -0.1))
    listing["content"][2]["top_logprobs"].append({"token": "!", "logprob": -0.3})
    response = message("length", content="The answer is 4.")
    response["choices"][0]["logprobs"] = listing
    found = chain(response, candidates=1)
    assert found.defects == (DEFECT_ABOVE_ONE,) and [len(step) for step in found.candidates] == [1, 0, 0, 1, 1]
    assert b"".join(found.tokens) == found.content


def test_a_sampled_token_beside_candidates_whose_mass_is_full() -> None:
    listing = {"tokens": ["4"], "token_logprobs": [-0.2], "top_logprobs": [{"5": -0.1, "6": -4.0}]}
    response = {"choices": [{"text": "4", "finish_reason": "length", "logprobs": listing}]}
    found = chain(response, candidates=2)
    assert found.candidates == ((),) and found.defects == (DEFECT_ABOVE_ONE,)


def test_candidates_with_marks_of_the_vocabulary() -> None:
    for value in (-0.2, -4.0):
        listing = entries((" 2", value))
        listing["content"][0]["top_logprobs"][0]["token"] = "Ġ2"
        response = message("length", content=" 2")
        response["choices"][0]["logprobs"] = listing
        found = chain(response, candidates=1)
        assert found.candidates == ((),) and found.defects == (DEFECT_VOCABULARY_MARKS,)


def test_a_tokens_own_number_alone() -> None:
    listing = {"tokens": ["4", "."], "token_logprobs": [-0.1, -0.3]}
    found = chain({"choices": [{"text": "4.", "finish_reason": "length", "logprobs": listing}]}, candidates=1)
    assert found.candidates == (((b"4", -0.1),), ((b".", -0.3),)) and not found.defects


@pytest.mark.parametrize(
    "name", ["token_id:²", "token_id:", "token_id:99999999999999999999", "token_id:-1", "token_id:１"]
)
def test_a_token_named_like_an_id(name: str) -> None:
    response = message("length", content=name)
    response["choices"][0]["logprobs"] = entries((name, -0.1))
    assert chain(response, candidates=1).text == name


# --- the probe, and a whole run ---------------------------------------------------------------------------------------


def plan(url: str, *lines: str) -> Recipe:
    base = "name: t\nteacher: {kind: openai, model: m, temperature: 0.7, top_logprobs: 0, samples: 2}\n"
    keys = [line if line.startswith("teacher.") else f"teacher.server.{line}" for line in lines]
    changes = ["teacher.server.timeout=5", "teacher.server.patience=2", *(key.replace(": ", "=", 1) for key in keys)]
    return parse_recipe(base, "t.yaml", [f"teacher.server.urls=['{url}']", *changes])


def sampled(recipe: Recipe, watch: UsageMeter | None = None) -> list[Chain]:
    server = teachers.from_recipe(recipe).probe([QUESTION])
    state = SamplingState(server=server, usage=watch or UsageMeter())
    return [one for batch in teachers.from_recipe(recipe).sample([QUESTION], state) for one in batch]


def said(status: int, tree: Any, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    return status, tree if isinstance(tree, bytes) else json.dumps(tree).encode(), headers


@pytest.mark.parametrize("status", [400, 422, 500, 501])
@pytest.mark.parametrize("words", ["Only one completion choice is allowed", "not supported", ""])
def test_n_refused_without_its_name(status: int, words: str) -> None:
    def script(request: dict) -> Any:
        return said(status, {"error": {"code": status, "message": words}}) if request.get("n", 1) > 1 else None

    with stub.running(script=script) as server:
        assert len(sampled(plan(server.url))) == 2
        assert all(request["n"] == 1 for request in server.seen[2:])


@pytest.mark.parametrize("field", ["top_k", "min_p", "seed"])
def test_a_field_refused_without_its_name(field: str) -> None:
    with stub.running(
        script=lambda request: said(400, {"error": "Bad request"}) if field in request else None
    ) as server:
        found = teachers.from_recipe(plan(server.url)).probe([QUESTION])
        assert field in found["left_out"] and len(sampled(plan(server.url))) == 2


def loading(times: int, *answer: Any) -> Callable[[dict], Any]:
    left = iter([answer] * times)
    return lambda request: next(left, None)


def test_a_model_that_loads_is_waited_for(capfd) -> None:
    busy = said(503, {"error": {"message": "Model is loading", "estimated_time": 20}})
    with stub.running(script=loading(3, *busy)) as server:
        assert len(sampled(plan(server.url, "patience: 30"))) == 2
    lines = capfd.readouterr().err
    assert (
        "is not ready (HTTP 503 Model is loading); potstill retries for 30 s" in lines and lines.count("not ready") == 1
    )


def test_patience_ends(capfd) -> None:
    began = time.monotonic()
    with (
        stub.running(script=lambda request: said(503, b"loading")) as server,
        pytest.raises(UserError, match="loading"),
    ):
        teachers.from_recipe(plan(server.url)).probe([QUESTION])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("header", ["1771404540", "1e308", "inf", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_wait_without_bound_is_refused_before_the_first_chain(header: str) -> None:
    script = lambda request: said(429, b"slow down", **{"Retry-After": header})  # noqa: E731
    with stub.running(script=script) as server, pytest.raises(UserError, match="E-teacher-retry-after") as raised:
        teachers.from_recipe(plan(server.url)).probe([QUESTION])
    assert "Retry-After 3600 s" in str(raised.value) and "teacher.server.patience" in str(raised.value)


@pytest.mark.parametrize(
    "header", ["Fri, 31 Dec 99999999999 23:59:59 GMT", "nan", "soon", "-1", "²", "Mon, 99 Foo 0 1:1:1"]
)
def test_a_wait_that_says_nothing_is_none(header: str) -> None:
    script = loading(2, *said(429, b"slow down", **{"Retry-After": header.encode().decode("latin-1")}))
    with stub.running(script=script) as server:
        assert len(sampled(plan(server.url, "patience: 30"))) == 2


STREAM = b'data: {"choices": []}\n\n'
QUOTA = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
CREDITS = {"message": "Insufficient credits", "code": 402}
BALANCE = {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}


@pytest.mark.parametrize(
    "answer, what, hint",
    [
        (
            said(307, b"", Location="https://host/v1/x"),
            "HTTP 307, a redirect to https://host/v1/x",
            "redirect's target",
        ),
        (said(402, {"error": CREDITS}), "HTTP 402 Insufficient credits", "add credit"),
        (said(429, QUOTA), "exceeded your current quota", "add credit"),
        (said(403, {"code": "Arrearage", "message": "not in good standing"}), "not in good standing", "add credit"),
        (said(200, {"error": CREDITS}), "an error in a response with status 200: Insufficient credits", "add credit"),
        (said(200, BALANCE), "insufficient balance", "add credit"),
        (said(200, STREAM, **{"Content-Type": "text/event-stream"}), "an event stream", "one piece"),
        (said(200, STREAM), "an event stream", "one piece"),
        (said(200, b"<!doctype html><html><title>Sign in</title>"), "a web page: Sign in", "login page"),
        (said(404, b"<html><title>Not Found</title></html>"), "HTTP 404 a web page: Not Found", "teacher.model"),
    ],
)
def test_what_waiting_does_not_mend_is_named_at_once(answer: Any, what: str, hint: str) -> None:
    began = time.monotonic()
    with stub.running(script=lambda request: answer) as server, pytest.raises(UserError) as raised:
        teachers.from_recipe(plan(server.url, "patience: 60")).probe([QUESTION])
    assert time.monotonic() - began < 5 and len(server.seen) <= 2
    assert what in str(raised.value) and hint in str(raised.value)


def test_a_limit_of_requests_a_minute_is_no_spent_quota() -> None:
    words = "Rate limit reached: you exceeded your current quota of requests per minute, please try again in 1s"
    with stub.running(script=loading(2, *said(429, {"error": {"message": words}}))) as server:
        assert len(sampled(plan(server.url, "patience: 30"))) == 2


def test_a_spent_quota_in_the_middle_stops_at_once() -> None:
    state = {"left": 6}

    def script(request: dict) -> Any:
        state["left"] -= 1
        spent = {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota"}}
        return said(429, spent) if state["left"] < 0 else None

    with stub.running(script=script) as server, pytest.raises(UserError, match="exceeded your current quota") as raised:
        sampled(plan(server.url, "samples_per_request: 1", "teacher.samples: 500", "patience: 60", "concurrency: 2"))
    assert "add credit" in str(raised.value) and len(server.seen) < 20


def test_an_error_in_a_200_is_asked_again() -> None:
    rows = loading(2, *said(200, {"error": {"code": 429, "message": "Provider returned error: rate limited upstream"}}))
    with stub.running(script=rows) as server:
        assert len(sampled(plan(server.url, "patience: 30"))) == 2


def test_a_text_that_begins_with_its_prompt_is_refused() -> None:
    script = lambda request: said(200, {"choices": [{"text": request["prompt"] + " 4.", "finish_reason": "stop"}]})  # noqa: E731
    with stub.running(script=script) as server, pytest.raises(UserError, match="E-teacher-echo"):
        teachers.from_recipe(plan(server.url)).probe([QUESTION])


def test_further_fields_are_sent_and_their_refusal_is_the_recipes() -> None:
    recipe = ("api: chat", "extra: {chat_template_kwargs: {enable_thinking: false}, reasoning_effort: low}")
    with stub.running() as server:
        assert len(sampled(plan(server.url, *recipe))) == 2
    assert all(request["chat_template_kwargs"] == {"enable_thinking": False} for request in server.seen)
    with (
        stub.running(refuses=("reasoning_effort",)) as server,
        pytest.raises(UserError, match="reasoning_effort") as raised,
    ):
        teachers.from_recipe(plan(server.url, *recipe)).probe([QUESTION])
    assert "teacher.server.extra.reasoning_effort" in str(raised.value)
    with pytest.raises(UserError, match="E-recipe-extra-reserved"):
        plan("http://h/v1", "extra: {temperature: 1}")


def test_a_reason_that_is_not_known_is_told_by_the_probe(capfd) -> None:
    script = lambda request: said(200, {"choices": [{"text": " 4", "finish_reason": "tired"}]})  # noqa: E731
    with stub.running(script=script) as server:
        teachers.from_recipe(plan(server.url)).probe([QUESTION])
    assert "finish_reason 'tired' is unknown" in capfd.readouterr().err


def test_a_server_that_switches_its_model_is_told_of_and_taught_hard(capfd) -> None:
    state = {"number": 0}

    def script(request: dict) -> Any:
        state["number"] += 1
        listing = {"tokens": [" 4"], "token_logprobs": [-0.1], "top_logprobs": [{" 4": -0.1}]}
        text = {"text": " 4", "finish_reason": "length", "logprobs": listing}
        return said(200, {"model": "b" if state["number"] > 6 else "a", "choices": [text] * request["n"]})

    with stub.running(script=script) as server:
        recipe = plan(
            server.url, "teacher.top_logprobs: 1", "samples_per_request: 1", "teacher.samples: 12", "concurrency: 1"
        )
        found = sampled(recipe)
    marked = [one for one in found if "another model" in one.defects]
    assert 0 < len(marked) < 12 and all(not one.candidates and one.semantics == "none" for one in marked)
    assert all(one.candidates for one in found if not one.defects)
    assert capfd.readouterr().err.count("names the model 'b', but first named 'a'") == 1


def test_probabilities_above_1_after_the_probe_are_told_of(capfd) -> None:
    state = {"number": 0}

    def script(request: dict) -> Any:
        state["number"] += 1
        value = 3.5 if state["number"] > 6 else -0.1
        listing = {"tokens": [" 4"], "token_logprobs": [value], "top_logprobs": [{" 4": value}]}
        return said(200, {"choices": [{"text": " 4", "finish_reason": "length", "logprobs": listing}] * request["n"]})

    with stub.running(script=script) as server:
        found = sampled(plan(server.url, "teacher.top_logprobs: 1", "samples_per_request: 1", "teacher.samples: 12"))
    assert len(found) == 12 and any(one.defects == (DEFECT_ABOVE_ONE,) and one.candidates == ((),) for one in found)
    assert all(value <= 0 and math.isfinite(value) for one in found for step in one.candidates for _, value in step)
    assert "probabilities above 1, in q" in capfd.readouterr().err


def test_a_server_with_candidates_that_are_none_is_refused() -> None:
    def script(request: dict) -> Any:
        entry = {"token": " 2", "logprob": -0.2, "top_logprobs": [{"token": "Ġ2", "logprob": -0.2}]}
        own = {"message": {"content": " 2"}, "logprobs": {"content": [entry]}, "finish_reason": "length"}
        return said(200, {"choices": [own] * request["n"]})

    with stub.running(script=script) as server, pytest.raises(UserError, match="E-teacher-vocabulary-marks"):
        teachers.from_recipe(plan(server.url, "api: chat", "teacher.top_logprobs: 1")).probe([QUESTION])


def test_a_server_that_gives_one_number_a_token_serves_one_candidate() -> None:
    def script(request: dict) -> Any:
        listing = {"tokens": [" 4"], "token_logprobs": [-0.1]}
        return said(200, {"choices": [{"text": " 4", "finish_reason": "length", "logprobs": listing}] * request["n"]})

    with stub.running(script=script) as server:
        assert all(
            one.candidates == (((b" 4", -0.1),),) for one in sampled(plan(server.url, "teacher.top_logprobs: 1"))
        )
        with pytest.raises(UserError, match="returns at most 1 log-probabilities per token"):
            teachers.from_recipe(plan(server.url, "teacher.top_logprobs: 3")).probe([QUESTION])


def test_further_fields_belong_to_the_runs_identity(world: Path, tmp_path: Path) -> None:
    def made(url: str, *more: str) -> None:
        keys = (tiny.SERVER, "teacher.top_logprobs=0", "teacher.max_tokens=64")
        tiny.make(world, tmp_path / "run", *keys, f"teacher.server.urls=['{url}']", *more, until="sample")

    with stub.running() as server:
        made(server.url, "teacher.server.extra={reasoning_effort: low}")
        made(server.url, "teacher.server.extra={reasoning_effort: low}")
        with pytest.raises(UserError, match=r"teacher\.server\.extra"):
            made(server.url, "teacher.server.extra={reasoning_effort: high}")
        with pytest.raises(UserError, match=r"teacher\.server\.extra"):
            made(server.url)


def test_the_words_of_a_batchs_error_move_no_cursor() -> None:
    evil = "\x1b]0;owned\x07\x9b31m\r\u202e"
    row = {"custom_id": "x", "response": None, "error": {"code": f"c{evil}", "message": f"m{evil}"}}
    inner = {"custom_id": "x", "response": {"status_code": 200, "body": {"error": {"message": evil}}}}
    for told in (row, inner):
        said = batch_api.read_result(json.dumps(told).encode())[1].message
        assert "U+001B" in said and not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(said)
