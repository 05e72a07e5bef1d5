"""Recorded responses of real servers become chains, and their defects are marked."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import UserError
from potstill.records import END, Chain
from potstill.serialization import from_json, to_json
from potstill.storage.flat_chains import decode_row, encode_row, flatten
from potstill.teachers.openai_api import chain_reader, response, server_errors
from potstill.teachers.openai_api.chain_reader import read_chain
from potstill.teachers.openai_api.request import REQUEST_IDS, Capabilities
from potstill.teachers.openai_api.response import Choice, Logprobs, Message, TokenLogprobs, TokenOutcome
from potstill.teachers.openai_api.scoring import build_scoring_request, read_scored_chain
from potstill.teachers.openai_api.token_entries import ReaderContext, locate_tokens

READER = ReaderContext("teacher", "raw")


@pytest.fixture(scope="module")
def recorded(data: Path) -> dict[str, dict[str, dict]]:
    folder = data / "teacher_responses"
    return {path.stem: json.loads(path.read_bytes())["cases"] for path in sorted(folder.glob("*.json"))}


def choices(case: dict) -> list[Choice]:
    return response.decode_body(json.dumps(case["response"]).encode()).choices


def chain_of(case: dict, reader: ReaderContext = READER) -> Chain:
    return read_chain(choices(case)[0], "q", 0, reader)


def test_every_recorded_body_is_read_and_its_parts_agree(recorded) -> None:
    bodies = chains = 0
    for server, cases in recorded.items():
        for name, case in cases.items():
            raw = json.dumps(case["response"]).encode()
            bodies += 1
            if case["status"] != 200:
                said, named, _ = server_errors.read_server_error(raw)
                assert "logprobs" in said and named in ("", "logprobs", "top_logprobs"), (server, name)
                continue
            if "choices" not in case["response"]:
                continue  # of llama.cpp's own endpoint, which potstill does not use
            found = choices(case)
            for index, choice in enumerate(found):
                chain = read_chain(choice, "q", index, READER)
                chains += 1
                assert [chain.content[start:end] for start, end in chain.spans] == list(chain.tokens), (server, name)
                for token, step in zip(chain.tokens, chain.candidates, strict=False):
                    assert sum(math.exp(value) for _, value in step) < 1 + 1e-4, (server, name, step)
                    assert not step or token in {what for what, _ in step} or index, (server, name, step)
                covered = sum(map(len, chain.tokens)) == len(chain.content)
                assert covered or not chain.tokens or chain.defects, (server, name)
                assert from_json(Chain, to_json(chain)) == chain
    assert (bodies, chains) == (28, 27)


@pytest.mark.parametrize(
    "server, case, stop, tokens, steps, defects",
    [
        ("vllm", "completions_top3_sampled", "end", 23, 24, ("candidates unknown",)),
        ("vllm", "completions_greedy_eos", "end", 23, 24, ()),
        ("vllm", "completions_stop_string", "cut", 4, 4, ("tokens beyond the text",)),
        ("vllm", "completions_n3", "length", 7, 7, ("bytes unknown",)),
        ("vllm", "chat_top3", "length", 12, 12, ("candidates unknown",)),
        ("llama_cpp_python", "completions_top3_sampled", "end", 23, 23, ("candidates unknown", "no last step")),
        ("llama_cpp_python", "completions_stop_string", "cut", 4, 4, ("tokens beyond the text",)),
        ("llama_cpp_python", "completions_n3", "length", 9, 9, ()),
        ("llama_cpp_python", "chat_top3", "length", 11, 11, ("bytes unknown", "candidates unknown")),
        ("llama_cpp_python", "chat_top_without_logprobs", "length", 0, 0, ()),
        ("llama_server", "completions_top3_sampled", "end", 21, 22, ("entries missing",)),
        ("llama_server", "completions_n3", "length", 6, 6, ("entries missing",)),
        ("llama_server", "chat_top3", "length", 10, 10, ("entries missing",)),
    ],
)
def test_defects_are_marked(recorded, server, case, stop, tokens, steps, defects) -> None:
    chain = chain_of(recorded[server][case])
    assert (chain.stop, len(chain.tokens), len(chain.candidates), chain.defects) == (stop, tokens, steps, defects)


def test_all_servers_agree_on_the_tokens_of_one_text(recorded) -> None:
    """The same model wrote " Zoë starts with" on three servers, which say it in three ways."""
    texts = {s: chain_of(recorded[s]["completions_greedy_eos"]) for s in ("vllm", "llama_cpp_python", "llama_server")}
    for server, chain in texts.items():
        own = [token for token in chain.tokens if token not in (b"\xc3",)]  # llama.cpp's server has no entry for these
        assert own[:4] == [b" Zo", b"\xab", b" starts", b" with"], server
        assert dict(chain.candidates[chain.tokens.index(b" with")])[b" with"] == pytest.approx(-0.004, abs=5e-4)


def test_a_string_cut_at_a_stop_string_is_no_end(recorded) -> None:
    case = recorded["llama_server"]["completions_stop_string"]
    assert chain_of(case, ReaderContext("teacher", "raw", has_stop_strings=True)).stop == "cut"


def test_names_of_the_end(recorded) -> None:
    for server in ("vllm", "llama_server"):
        chain = chain_of(recorded[server]["completions_top3_sampled"])
        assert chain.candidates[-1][0][0] is END and chain.candidates[-1][0][1] == pytest.approx(-0.004, abs=1e-3)
        assert any(what is END for step in chain.candidates[:-1] for what, _ in step), "named at the end, known before"


def test_ids_are_exact_where_the_tokenizer_is_known(recorded) -> None:
    """With the teacher's tokenizer every token and candidate has its bytes, whatever the strings are."""
    ids = chain_of(recorded["vllm"]["completions_top3_sampled"])
    table = {336: b" Zo", 131: b"\xc3", 108: b"\xab", 302: b" starts", 306: b" with", 369: b" 29", 321: b" caf"}
    reader = ReaderContext("teacher", "raw", lookup=lambda number, _: table.get(number, b"?"))
    chain = chain_of(recorded["vllm"]["completions_token_id_strings"], reader)
    assert chain.tokens == (*ids.tokens[:7], b"\xc3") and chain.content == b"".join(chain.tokens) and not chain.defects
    assert chain.text == " Zoë starts with 29 caf�"


def test_a_placeholder_is_no_number() -> None:
    top = [TokenOutcome("a", -0.5), TokenOutcome("b", -1.0)]
    entry = TokenLogprobs("z", -9999.0, top_logprobs=top)
    chain = read_chain(Choice(text="z", logprobs=Logprobs(content=[entry]), finish_reason="length"), "q", 0, READER)
    assert chain.candidates == (((b"a", -0.5), (b"b", -1.0)),) and chain.defects == ("log-probability hidden",)


def test_the_quick_way_gives_the_same(recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies whose strings tell every byte are read in fewer steps: with the same result as in all of them."""
    for cases in recorded.values():
        for case in cases.values():
            for choice in choices(case) if "choices" in case["response"] else ():
                for stops in (False, True):
                    reader = ReaderContext("teacher", "raw", has_stop_strings=stops)
                    with monkeypatch.context() as patched:
                        chain = read_chain(choice, "q", 0, reader)
                        patched.setattr(chain_reader, "read_plain_row", lambda *_: None)
                        assert read_chain(choice, "q", 0, reader) == chain
    tokens = ["4", ".", "<end>"]
    tops = [{"4": -0.25, "<end>": -3.0}, {"!": -0.5}, {"<end>": -0.125, ".": -4.0}]
    listing = Logprobs(tokens=tokens, token_logprobs=[-0.25, -2.5, -0.125], top_logprobs=tops)
    for reason in ("stop", "length"):
        choice = Choice(text="4." if reason == "stop" else "4.<end>", logprobs=listing, finish_reason=reason)
        chain = read_chain(choice, "q", 0, READER)
        assert (
            chain_reader.read_plain_row(choice, choice.text or "", "end" if reason == "stop" else "length") is not None
        )
        with monkeypatch.context() as patched:
            patched.setattr(chain_reader, "read_plain_row", lambda *_: None)
            assert read_chain(choice, "q", 0, READER) == chain


TOKENS = st.sampled_from(
    ["4", " 4", "é", "", "\ufffd", "token_id:7", "\u0120a", " is", "<end>", "\ud83d", "\n", "answer"]
)
VALUES = st.one_of(st.floats(-6, 0), st.sampled_from([None, -9999.0, 0.5, -0.1234565, -0.0]))


@settings(max_examples=150)
@given(st.data(), st.sampled_from(["stop", "length", "tired"]), st.booleans(), st.booleans())
def test_a_row_is_the_chain_that_the_careful_way_reads(data, reason, legacy, stops) -> None:
    """A choice that is read as a row, or not, gives the chain that all steps give."""
    names = data.draw(st.lists(TOKENS, min_size=1, max_size=5))
    tables = [data.draw(st.dictionaries(TOKENS, VALUES, max_size=3)) for _ in names]
    for name, table in zip(names, tables, strict=True):
        table |= {name: data.draw(VALUES)} if data.draw(st.booleans()) else {}
    values = [table.get(name, data.draw(VALUES)) for name, table in zip(names, tables, strict=True)]
    listing = Logprobs(tokens=names, token_logprobs=values, top_logprobs=tables)
    if not legacy:
        rows = [[TokenOutcome(*outcome) for outcome in table.items()] for table in tables]
        entries = [TokenLogprobs(*entry) for entry in zip(names, values, strict=True)]
        for entry, row in zip(entries, rows, strict=True):
            entry.top_logprobs = row
        listing = Logprobs(content=entries)
    text = "".join(names if data.draw(st.booleans()) else names[:-1])
    choice, reader = Choice(text=text, logprobs=listing, finish_reason=reason), replace(READER, has_stop_strings=stops)
    chain = read_chain(choice, "q", 3, reader)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chain_reader, "read_plain_row", lambda *_: None)
        assert read_chain(choice, "q", 3, reader) == chain
    if (row := chain_reader.read_row(choice, "q", 3, reader)) is not None:
        assert row == flatten(chain) and decode_row(encode_row(row)) == row


# --- reasoning -------------------------------------------------------------------------------------------------------


def thought(learn, **message) -> Chain:
    choice = Choice(message=Message(**message), finish_reason="stop")
    return read_chain(choice, "q", 0, ReaderContext("teacher", "none", reasoning=learn))


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_fields(field: str) -> None:
    message = {"content": "The answer is 4", field: "\n2 + 2 = 4\n"}
    assert thought("both", **message).text == "2 + 2 = 4\nThe answer is 4"
    assert thought("reasoning", **message).text == "2 + 2 = 4"
    assert thought("answer", **message).text == "The answer is 4"


@pytest.mark.parametrize("text", ["<think>\n2 + 2\n</think>\n\n4.", "2 + 2</think>4.", " <think>2 + 2</think> 4. "])
def test_think_tags(text: str) -> None:
    assert thought("both", content=text).text == "2 + 2\n4."
    assert thought("answer", content=text).text == "4."


@pytest.mark.parametrize(
    ("thoughts", "answer", "kept"),
    [
        (
            "2 + 2 = 4. The answer is 4. Wait, is it 5? No. The answer is 4.",
            "The answer is 4",
            "2 + 2 = 4. The answer is 4.",
        ),
        (
            "The answer is 5. Wait. The answer is $4.00. Yes.",
            "So the answer is 4.",
            "The answer is 5. Wait. The answer is $4.00.",
        ),
        ("So the answer is (B).\nLet me check.", "The answer is (B).", "So the answer is (B)."),
        ("The answer is 5. Yes.", "The answer is 4", "The answer is 5. Yes."),  # it never gives the final answer
        ("The answer is 4. Yes.", "4", "The answer is 4. Yes."),  # the answer has no answer sentence
        ("2 + 2 = 4", "The answer is 4", "2 + 2 = 4"),
    ],
)
def test_a_shortened_thought_ends_where_it_first_gives_the_final_answer(thoughts: str, answer: str, kept: str) -> None:
    assert thought("shortened", content=answer, reasoning=thoughts).text == f"{kept}\n{answer}"
    assert thought("shortened", content=f"<think>{thoughts}</think>{answer}").text == f"{kept}\n{answer}"


def test_a_shortened_thought_keeps_whole_tokens_their_candidates_and_the_end() -> None:
    tokens = ["<think>", "The answer is", " 4", ".\n\n", "Wait", ".", "</think>", "The answer is", " 4", "<end>"]
    listing = Logprobs(
        tokens=tokens, token_logprobs=[-0.5] * 10, top_logprobs=[{token: -0.5, "x": -2.0} for token in tokens]
    )
    choice = Choice(text="".join(tokens[:-1]), logprobs=listing, finish_reason="stop")
    chain = read_chain(choice, "q", 0, replace(READER, reasoning="shortened"))
    assert chain.tokens == (b"The answer is", b" 4", b".\n\n", b"The answer is", b" 4")
    assert chain.text == "The answer is 4.\n\n\nThe answer is 4" and len(chain.candidates) == 6
    assert chain.candidates[-1][0] == (END, -0.5) and chain.stop == "end"
    assert all(chain.content[start:end] == token for token, (start, end) in zip(chain.tokens, chain.spans, strict=True))


def test_a_thought_that_never_ended_has_no_answer() -> None:
    assert thought("both", content="<think>2 + 2").text == "2 + 2" and thought("answer", content="<think>2").text == ""


def test_tokens_of_reasoning_keep_their_candidates() -> None:
    tokens = ["<think>", "2 +", " 2", "</think>", "\n", "4", ".", "<end>"]
    listing = Logprobs(
        tokens=tokens, token_logprobs=[-0.5] * 8, top_logprobs=[{token: -0.5, "x": -2.0} for token in tokens]
    )
    choice = Choice(text="".join(tokens[:-1]), logprobs=listing, finish_reason="stop")
    chain = read_chain(choice, "q", 0, READER)
    assert chain.text == "2 + 2\n4." and chain.tokens == (b"2 +", b" 2", b"4", b".")
    assert chain.spans == ((0, 3), (3, 5), (6, 7), (7, 8)) and chain.candidates[-1][0] == (END, -0.5)
    message = Message(content="4.", reasoning="2 + 2")
    parted = Choice(message=message, logprobs=listing, finish_reason="stop")
    assert read_chain(parted, "q", 0, READER).tokens == chain.tokens


def test_long_chains() -> None:
    """8 k tokens, with a thought of 7 k: read whole, in step."""
    tokens = ["<think>", *[f" {i}" for i in range(7000)], "</think>", *[f" {i}" for i in range(1000)]]
    listing = Logprobs(content=[TokenLogprobs(t, -0.1, top_logprobs=[]) for t in tokens])
    chain = read_chain(Choice(text="".join(tokens), logprobs=listing, finish_reason="length"), "q", 0, READER)
    assert len(chain.tokens) == 7998 and len(chain.candidates) == 7998  # the two that begin with a stripped space: gone
    assert all(chain.content[start:end] == token for token, (start, end) in zip(chain.tokens, chain.spans, strict=True))


# --- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server, case",
    [("vllm", "completions_echo"), ("vllm", "prompt_logprobs"), ("llama_cpp_python", "completions_echo")],
)
def test_scored_texts(recorded, server: str, case: str) -> None:
    row = recorded[server][case]
    given = row["request"]["prompt"]
    prompt, text = given[:9], given[9:]
    chain = read_scored_chain(choices(row)[0], prompt, text, READER)
    assert chain.text == text and chain.tokens[:4] == (b" Zo", b"\xc3", b"\xab", b" has") and chain.semantics == "raw"
    assert b"".join(chain.tokens) == text.encode() and "entries missing" not in chain.defects
    assert dict(chain.candidates[0])[b" Zo"] == pytest.approx(-1.9, abs=0.1)
    assert all(b"\xc3\xab" not in dict(step) for step in chain.candidates), "bytes of a token before are not its own"


def test_an_echo_asks_for_no_ids_beside_the_entries() -> None:
    """vLLM 0.32 echoes no text then, and the response cannot be told from one of another text (`make test-servers`)."""
    for method, names in (("echo", {"return_tokens_as_token_ids"}), ("prompt_logprobs", set(REQUEST_IDS))):
        body = build_scoring_request("m", Capabilities(ids=True), "2 + 2 =", " 4", k=3, method=method)  # type: ignore[arg-type]
        assert {name for name in REQUEST_IDS if body.get(name)} == names and body[method]


def test_a_server_that_does_not_score_is_refused(recorded) -> None:
    row = recorded["llama_server"]["completions_echo"]
    with pytest.raises(UserError, match="E-teacher-cannot-score"):
        read_scored_chain(choices(row)[0], row["request"]["prompt"], "x", READER)


# --- placing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, cuts",
    [
        ("🙂🙂🙂a", [1, 2, 4, 12]),  # two characters after three tokens without a string: any two of the three
        ("aé a", [2, 3]),  # the first token is not known: the space of a later one was not stripped
    ],
)
def test_what_stands_twice_is_not_guessed(text: str, cuts: list[int]) -> None:
    nothing_is_guessed(text, cuts)


@given(st.text(alphabet="aé🙂 Ω\n", max_size=12), st.data())
def test_nothing_is_guessed(text: str, data) -> None:
    """Tokens cut anywhere, each seen as a string without what is not whole in it, some without entry: what is placed is
    where it was."""
    nothing_is_guessed(text, sorted(data.draw(st.sets(st.integers(1, max(len(text.encode()) - 1, 1)), max_size=8))))


def nothing_is_guessed(text: str, cuts: list[int]) -> None:
    raw = text.encode()
    true = [raw[a:b] for a, b in itertools.pairwise(sorted({0, *cuts, len(raw)}))]
    shown = [piece if _whole(piece) else None if piece.decode("utf-8", "ignore") else b"" for piece in true]
    defects: set[str] = set()
    content, places = locate_tokens(text, shown, defects)
    assert content == raw
    at = 0
    for piece, found in zip(true, places, strict=True):
        if found is not None and piece in shown:
            assert content[found.start : found.end] == piece
        if found is not None and not defects:
            assert (found.start, found.end) == (at, at + len(piece))
        at += len(piece)


def _whole(piece: bytes) -> bool:
    return "�" not in piece.decode("utf-8", "replace")
