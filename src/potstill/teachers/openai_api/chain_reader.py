"""Plain answers: choices whose strings are the text and tell every byte. Nearly every chain is one; see `reading`.

>>> choice = Choice(text=" 4", logprobs=Logprobs(tokens=[" 4"], token_logprobs=[-0.25], top_logprobs=[{" 5": -2.0}]))
>>> read_plain_chain(choice, " 4", "length")
(b' 4', (b' 4',), ((0, 2),), (((b' 5', -2.0), (b' 4', -0.25)),))

Finishing: what a server's `finish_reason` means, by whichever of its names.

    >>> [read_finish_reason(name) for name in ("stop", "COMPLETE", "MAX_TOKENS", "network_error", None, "tired")]
    ['end', 'end', 'length', 'broken', 'unsaid', 'unknown']

A text without a reason is complete if the server counts fewer tokens than it was allowed; without a count, if it closes
with a finished answer sentence. An unknown reason counts as a text that was cut off: what else it may mean nobody can
say, so the probe and the run report it.

Reading: one choice of a body, of whatever shape, as a chain whose defects are marked.

    >>> top = [{" 4": -0.1, "<eos>": -3.0}, {}]
    >>> listing = Logprobs(tokens=[" 4", "<eos>"], token_logprobs=[-0.1, -0.2], top_logprobs=top)
    >>> choice = Choice(text=" 4", logprobs=listing, finish_reason="stop")
    >>> chain = read_chain(choice, "q", 0, ReaderContext("teacher", "raw"))
    >>> chain.content, chain.tokens, chain.candidates[0], chain.candidates[1], chain.stop
    (b' 4', (b' 4',), ((b' 4', -0.1), (END, -3.0)), ((END, -0.2),), 'end')

What a server says of its tokens is one of: their true bytes, their ids, or strings made of them, in which a token that
ends inside a character is empty or U+FFFD. Bytes are taken where they are true, ids where the teacher's tokenizer is
known, else told from the text where that leaves one possibility. A token whose bytes stay unknown is left out of the
chain (its bytes are a gap between spans), and so is such a candidate (its mass is the tail): never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Final, Literal

import numpy as np

from potstill import prompts
from potstill.alignment.rewrite import merge_candidates
from potstill.records import END, Candidate, Chain, End, StopReason, token_spans
from potstill.serialization import BoundedMemo
from potstill.teachers import reasoning
from potstill.teachers.openai_api import token_entries
from potstill.teachers.openai_api.response import Choice, Logprobs, ResponseBody, Usage, message_texts
from potstill.teachers.openai_api.token_entries import LearntPart, Piece, ReaderContext, TokenEntry, read_entries
from potstill.teachers.truncate import DECIMALS

__all__ = ["HIDDEN_LOGPROB", "Logprobs", "read_plain_chain"]
VOCABULARY_MARKS: Final = ("Ġ", "Ċ", "▁")  # how vocabularies write a space or a line end at the beginning of a piece
MAX_PROBABILITY_SUM: Final = 1.01  # that the probabilities of one step may add up to: they are rounded
HIDDEN_LOGPROB: Final = -9000.0  # servers write -9999 for a log-probability that they will not show
PlainChain = tuple[bytes, tuple[bytes, ...], tuple[tuple[int, int], ...], tuple[tuple[Candidate, ...], ...]]


def read_plain_chain(choice: Choice, whole: str, stop: StopReason) -> PlainChain | None:
    """What `read` makes of a choice whose strings are the text and tell every byte; None if they are not or do not.

    Nearly every chain is such a one, and this takes a fifth of the time.
    """
    listing = choice.logprobs
    if listing is None:
        return None
    if listing.content is not None:
        names = [entry.token for entry in listing.content]
        values = [entry.logprob for entry in listing.content]
        shown = [entry.top_logprobs or () for entry in listing.content]
        tokens = [one.token for some in shown for one in some]
        numbers = [one.logprob for some in shown for one in some]
    else:
        names, values = listing.tokens or [], listing.token_logprobs or []
        shown = [some or {} for some in listing.top_logprobs or [None] * len(names)]
        tokens = [token for some in shown for token in some]
        numbers = [number for some in shown for number in some.values()]
    if not names or not (len(names) == len(values) == len(shown)) or not all(names):
        return None
    joined, end = "".join(names), None  # type: ignore[arg-type]
    if joined != whole:
        end = names[-1]
        if stop == "length" or isinstance(choice.stop_reason, str) or joined[: -len(end or "")] != whole:
            return None
    if None in numbers:
        return None
    edges, array = list(accumulate(map(len, shown), initial=0)), np.array(numbers, np.float64)
    outcomes = _read_outcomes(tokens, array, end)
    if outcomes is None:
        return None
    totals = _step_totals(array, edges)
    if max(totals) > MAX_PROBABILITY_SUM:
        return None
    candidates = []
    for name, value, total, (start, stop_at) in zip(names, values, totals, pairwise(edges), strict=True):
        step = outcomes[start:stop_at]
        if name not in tokens[start:stop_at]:
            own = None if value is None else _read_outcomes([name or ""], np.array([value]), end)
            if (
                own is None
                or total + math.exp(own[0][1]) > MAX_PROBABILITY_SUM
                or any(one[0] in VOCABULARY_MARKS for one in tokens[start:stop_at])
            ):
                return None
            step += own
        candidates.append(tuple(step))
    pieces = tuple(map(_cached_bytes, names if end is None else names[:-1]))  # type: ignore[arg-type]
    if None in pieces:
        return None
    return b"".join(pieces), pieces, token_spans(pieces), tuple(candidates)  # type: ignore[arg-type]


def _read_outcomes(tokens: Sequence[str], values: np.ndarray, end: str | None) -> list[Candidate] | None:
    """Strings and log-probabilities as outcomes, all at once; None if one of them does not tell its bytes or value."""
    if not ((values >= HIDDEN_LOGPROB) & (values <= 0.0)).all():
        return None
    found: list[bytes | End | None] = list(map(_cached_bytes, tokens))
    if end is not None and end in tokens:
        found = [END if token == end else what for token, what in zip(tokens, found, strict=True)]
    if None in found:
        return None
    return list(zip(found, _round6(values), strict=True))  # type: ignore[arg-type]


def _step_totals(values: np.ndarray, edges: Sequence[int]) -> list[float]:
    """The probabilities of each step, added up."""
    sums = np.zeros(len(values) + 1)
    np.cumsum(np.exp(values), out=sums[1:])
    return np.diff(sums[edges]).tolist()


def _round6(values: np.ndarray) -> list[float]:
    """What `round` makes of each for 6 decimals, in a third of its time.

    >>> _round6(np.array([-0.1234565, -2.0000004999, -0.0]))
    [-0.123456, -2.0, -0.0]
    """
    scaled = values * 1e6
    whole = np.rint(scaled)
    found = (whole / 1e6).tolist()
    for place in np.flatnonzero(np.abs(np.abs(scaled - whole) - 0.5) < 1e-4):  # the product itself is rounded
        found[place] = round(float(values[place]), 6)
    return found


def _encode_token(token: str) -> bytes | None:
    """The bytes of a string that tells them, None for another."""
    told = token and "�" not in token and not token.startswith("token_id:")
    return token.encode("utf-8", "replace") if told else None


_cached_bytes = BoundedMemo(_encode_token, 1 << 17).__getitem__


FinishReason = Literal["end", "string", "length", "filter", "broken", "unsaid", "unknown"]
FINISH_REASONS: Final[dict[FinishReason, str]] = {
    "end": "stop eos eos_token eos_token_id eot end_turn end end_of_text end_of_sequence endoftext complete completed"
    " finish finished done normal success natural stop_token stopped",
    "string": "stop_sequence stop_string stop_word stop_words stop_str word",
    "length": "length max_tokens max_token max_length max_output_tokens max_completion_tokens max_new_tokens"
    " model_length max_tokens_reached token_limit tokens_limit length_limit limit context_length"
    " context_length_exceeded model_context_window_exceeded max_context_length truncated incomplete time_limit",
    "filter": "content_filter content_filtered filter filtered safety image_safety recitation blocklist"
    " prohibited_content spii language refusal moderation sensitive guardrail guardrails guardrail_intervened blocked"
    " error_toxic violation",
    "broken": "error errored network_error insufficient_system_resource insufficient_system_resources server_error"
    " internal_error internal_server_error connection_error system_error engine_error backend_error upstream_error"
    " abort aborted cancel cancelled canceled interrupted timeout timed_out failed failure overloaded preempted"
    " malformed_response error_limit",
    "unsaid": "null none finish_reason_unspecified unspecified",
}  # fmt: skip
_MEANING: Final[dict[str, FinishReason]] = {
    name: kind for kind, names in FINISH_REASONS.items() for name in names.split()
}


def read_finish_reason(reason: str | None) -> FinishReason:
    """How a text came to its end."""
    if reason is None or not reason.strip():
        return "unsaid"
    name = "_".join(re.findall(r"[a-z0-9]+", reason.lower()))
    return _MEANING.get(name.removeprefix("finish_reason_").removeprefix("stop_reason_"), "unknown")


def fill_finish_reasons(body: ResponseBody, most: int) -> ResponseBody:
    """The body with a reason for every text that has none. most: tokens that a text was allowed."""
    for choice in body.choices:
        if choice.error:
            choice.finish_reason = "error"
        elif read_finish_reason(choice.finish_reason) == "unsaid":
            usage = body.usage or Usage()
            count = choice.entries() or usage.completion_tokens  # of all texts: at least as many as of one
            if count is None or (count >= most and not choice.entries() and len(body.choices) > 1):
                choice.finish_reason = "stop" if _has_complete_answer(message_texts(choice)[1]) else "length"
            else:
                choice.finish_reason = "stop" if count < most else "length"
    return body


def unknown_finish_reasons(body: ResponseBody) -> list[str]:
    """The reasons of a body that have no meaning here."""
    return sorted(
        {choice.finish_reason or "" for choice in body.choices if read_finish_reason(choice.finish_reason) == "unknown"}
    )


def _has_complete_answer(text: str) -> bool:
    """Whether a text closes with an answer sentence that has ended."""
    text = text.rstrip()
    return prompts.find_answer_end(text) == len(text) and text.endswith((".", "!", "?", ")", "]", "}", "$", "*"))


__all__ = [
    "HIDDEN_LOGPROB",
    "LearntPart",
    "Logprobs",
    "Piece",
    "ReaderContext",
    "TokenEntry",
    "compose_chain",
    "read_chain",
    "read_chain_and_answer",
    "read_entries",
]
DEFECT_BEYOND_TEXT: Final = "tokens beyond the text"
DEFECT_NO_ENTRIES: Final = "a part without entries"
DEFECT_OTHER_TEXT: Final = "entries of another text"
DEFECT_ABOVE_ONE: Final = "probabilities above 1"
DEFECT_VOCABULARY_MARKS: Final = "candidates with marks of the vocabulary"
MAX_STRAY_SHARE: Final = 0.1  # the share of entries that a text may lack and still be the text that they speak of


def read_chain(choice: Choice, question: str, index: int, reader: ReaderContext) -> Chain:
    """The chain of a choice, uncut, its log-probabilities rounded to 6 digits. Defects, each a short text:

    entries missing         part of the text has no entry
    a part without entries  the thought or the answer has none
    entries of another text the entries do not fit the text: it keeps none
    bytes unknown           a token ends inside a character, and the server does not say with which byte
    candidates unknown      the same of a candidate
    log-probability hidden  a placeholder stood where a number belongs
    probabilities above 1   the candidates of a token cannot be right: it has none
    candidates with marks of the vocabulary  they are not written as the text is: it has none
    no last step            the text ended, and the end has no entry
    tokens beyond the text  the text was cut at a stop string, the entries were not
    content filter          the server broke the text off: it is empty, so that nobody learns it
    finish reason unknown   the server ended the text for a reason that has no meaning here
    half a surrogate pair   the text held half a character, which was replaced
    """
    return read_chain_and_answer(choice, question, index, reader)[0]


def read_chain_and_answer(choice: Choice, question: str, index: int, reader: ReaderContext) -> tuple[Chain, int]:
    """The chain of a choice, and the byte at which its answer begins: 0 if it is nothing else, its length if it has
    none. See `read`."""
    key = {"question": question, "index": index, "source": reader.source}
    ending = read_finish_reason(choice.finish_reason)
    if ending == "filter":
        return Chain(**key, content=b"", stop="length", defects=("content filter",)), 0
    stop = _read_stop(choice, ending, reader)
    defects = {"finish reason unknown"} if ending == "unknown" else set()
    if choice.replaced:
        defects.add("half a surrogate pair")
    thought, whole = message_texts(choice)
    parts = reasoning.split_tags(whole)
    if thought.strip() and not parts:
        whole, parts = reasoning.join_fields(thought, whole)
    quick = read_plain_chain(choice, whole, stop) if reader.pieces is None and not parts else None
    if quick is not None:
        content, tokens, spans, candidates = quick
        if len(candidates) == len(tokens) and stop == "end":
            stop, defects = ("cut", defects) if reader.stops else ("end", defects | {"no last step"})
        marks = tuple(sorted(defects))
        return Chain(**key, content=content, tokens=tokens, spans=spans, candidates=candidates, stop=stop,
                     semantics=reader.semantics, defects=marks), 0  # fmt: skip
    found = read_entries(choice, reader)
    if not found:
        chain, start = Chain.from_text(question, index, whole, source=reader.source), 0
        if parts:
            chain, start = reasoning.select_parts(chain, parts, reader.learn)
        return replace(chain, stop=stop, defects=tuple(sorted(defects))), start
    chain, start, ended = (
        _read_parts(choice, whole, parts, found, stop, reader.learn, defects)
        if parts
        else _read_single_part(choice, whole, found, stop, defects)
    )
    if stop == "end" and not ended and (reader.stops or DEFECT_BEYOND_TEXT in defects):
        stop = "cut"
    if stop == "end" and not ended and chain.tokens:
        defects.add("no last step")
    semantics = reader.semantics if chain.candidates else "none"
    return replace(chain, **key, stop=stop, semantics=semantics, defects=tuple(sorted(defects))), start


def _read_stop(choice: Choice, ending: FinishReason, reader: ReaderContext) -> StopReason:
    """How a text ended. vLLM names a stop string in `stop_reason`; others repeat the reason there."""
    if ending not in ("end", "string"):
        return "length"
    named = choice.stop_reason
    if isinstance(named, str) and (reader.stops or read_finish_reason(named) not in ("end", "string")):
        return "cut"
    return "cut" if ending == "string" and reader.stops else "end"


def _read_single_part(
    choice: Choice, whole: str, found: list[TokenEntry], stop: StopReason, defects: set[str]
) -> tuple[Chain, int, bool]:
    """The chain of a text without parts; 0; and whether the end has an entry."""
    first, _ = token_entries.match_text(found, whole.encode("utf-8", "replace"))
    found = found[first:]
    last = found.pop() if found and stop != "length" and _is_end_entry(found, whole, choice) else None
    found, last = _name_end(found, last)
    return compose_chain(whole, found, last, defects, strict=True), 0, last is not None


def _read_parts(
    choice: Choice,
    whole: str,
    parts: reasoning.Parts,
    found: list[TokenEntry],
    stop: StopReason,
    learn: LearntPart,
    defects: set[str],
) -> tuple[Chain, int, bool]:
    """The chain of the parts that are learnt, each with the entries that speak of it; the byte at which its answer
    begins; and whether the end has an entry."""
    text = whole.encode("utf-8", "replace")
    windows = token_entries.match_parts(found, [text[start:end] for start, end, _ in parts])
    last: TokenEntry | None = None
    if stop == "end" and parts[-1].answer and not isinstance(choice.stop_reason, str):
        after = found[windows[-1][1] :]
        last = after[0] if after and (after[0].piece is END or len(after) == 1) else None
    found, last = _name_end(found, last)
    chosen = [place for place, part in enumerate(parts) if learn == "both" or part.answer == (learn == "answer")]
    content, start, tokens, spans, candidates = b"", -1, [], [], []
    for place in chosen:
        begin, end, answer = parts[place]
        if begin == end:
            continue
        content += b"\n" if content else b""
        start = len(content) if answer and start < 0 else start
        at = len(content)
        own = found[slice(*windows[place])]
        if not own:
            defects.add(DEFECT_NO_ENTRIES)
            content += text[begin:end]
            continue
        part = compose_chain(text[begin:end].decode("utf-8", "replace"), own, None, defects, strict=True)
        content += part.content
        tokens += part.tokens
        spans += [(first + at, until + at) for first, until in part.spans]
        candidates += part.candidates
    ended = last is not None and bool(chosen) and chosen[-1] == len(parts) - 1
    if ended and tokens and last is not None:
        candidates.append(_read_candidates(last, END, b"", defects))
    chain = Chain("", "", 0, content, tuple(tokens), tuple(spans), tuple(candidates), semantics="unknown")
    return chain, start if start >= 0 else len(content), ended


def _name_end(found: list[TokenEntry], last: TokenEntry | None) -> tuple[list[TokenEntry], TokenEntry | None]:
    """The steps, those outcomes being END that are named as the end is."""
    if last is None or last.name == "":
        return found, last
    return [_replace_end(step, last.name) for step in found], _replace_end(last, last.name)


def compose_chain(
    whole: str, steps: Sequence[TokenEntry], last: TokenEntry | None, defects: set[str], *, strict: bool = False
) -> Chain:
    """A chain without a key: the text, its entries put in their places, and the entry of the end if there is one.

    strict  entries that do not fit the text are not used, and neither are the others
    """
    pieces = [step.piece for step in steps]
    known = [piece for piece in pieces if isinstance(piece, bytes) and piece]
    if len(known) == len(pieces) and b"".join(known) == whole.encode("utf-8", "replace"):
        content, places = b"".join(known), token_entries.consecutive_spans(known)
    else:
        content, places = token_entries.locate_tokens(whole, pieces, defects)
        if strict and _is_other_text(pieces, places, DEFECT_BEYOND_TEXT in defects):
            defects -= {DEFECT_BEYOND_TEXT, "entries missing", "bytes unknown"}
            defects.add(DEFECT_OTHER_TEXT)
            return Chain("", "", 0, whole.encode("utf-8", "replace"), semantics="none")
    tokens, spans, candidates = [], [], []
    for step, place in zip(steps, places, strict=True):
        if place is not None:
            own = content[place.start : place.end]
            tokens.append(own)
            spans.append((place.start, place.end))
            candidates.append(_read_candidates(step, own, place.prefix, defects))
    if last is not None:
        candidates.append(_read_candidates(last, END, b"", defects))
    return Chain("", "", 0, content, tuple(tokens), tuple(spans), tuple(candidates), semantics="unknown")


def _is_other_text(pieces: Sequence[Piece], places: Sequence[token_entries.TokenSpan | None], beyond: bool) -> bool:
    """Whether so many known pieces have no place that they are of another text. White space may have been stripped."""
    if beyond:
        placed = [number for number, place in enumerate(places) if place is not None]
        pieces = pieces[: placed[-1] + 1 if placed else 0]
    known = [number for number, piece in enumerate(pieces) if isinstance(piece, bytes) and piece.strip()]
    lost = [number for number in known if places[number] is None]
    return bool(lost) and (lost[0] == known[0] or len(lost) > MAX_STRAY_SHARE * len(known))


def _is_end_entry(steps: Sequence[TokenEntry], whole: str, choice: Choice) -> bool:
    """Whether the last entry is that of the end."""
    last = steps[-1]
    if last.piece is END:
        return True
    if isinstance(choice.stop_reason, str):
        return False
    before = [step.piece for step in steps[:-1] if isinstance(step.piece, bytes)]
    if b"".join(before) == whole.encode("utf-8", "replace"):
        return True
    if isinstance(last.name, int) and not last.piece:
        return True
    offsets = choice.logprobs.text_offset if choice.logprobs else None
    fits = offsets is not None and len(offsets) == len(steps) and not isinstance(last.name, int)
    return bool(fits and offsets and whole and offsets[-1] - offsets[0] >= len(whole))


def _replace_end(step: TokenEntry, end: int | str) -> TokenEntry:
    """The step, the outcome of this name being END."""
    if all(name != end for _, name, _ in step.tops):
        return step
    return step._replace(tops=[(END if name == end else piece, name, value) for piece, name, value in step.tops])


def _read_candidates(step: TokenEntry, own: bytes | End, prefix: bytes, defects: set[str]) -> tuple[Candidate, ...]:
    """The outcomes of a step, the sampled one (whose meaning is `own`) among them.

    prefix  bytes of an unfinished character before it, which strings of outcomes that finish it begin with
    """
    found: list[Candidate] = []
    seen = False
    for piece, name, value in step.tops:
        mine = name == step.name and (name != "" or value == step.value)
        if value is None or value < HIDDEN_LOGPROB:
            defects.add("log-probability hidden")
            continue
        if mine:
            piece, seen = own, True
        elif isinstance(piece, bytes) and prefix and piece.startswith(prefix) and isinstance(name, str):
            piece = piece[len(prefix) :]
        if piece is None or piece == b"":
            defects.add("candidates unknown")
            continue
        found.append((piece, value))
    if not seen:
        if has_vocabulary_marks(step):
            defects.add(DEFECT_VOCABULARY_MARKS)
            return ()
        if step.value is None or step.value < HIDDEN_LOGPROB:
            defects.add("log-probability hidden")
        else:
            found.append((own, step.value))
    if exceeds_one([value for _, value in found]):
        defects.add(DEFECT_ABOVE_ONE)
        return ()
    found = [(piece, round(min(value, 0.0), 6) + 0.0) for piece, value in found]
    return tuple(found) if len({what for what, _ in found}) == len(found) else merge_candidates(found, DECIMALS)


def has_vocabulary_marks(step: TokenEntry) -> bool:
    """Whether outcomes are written as the vocabulary has them ("Ġ2") where the token itself is written as text."""
    return not any(mark in str(step.name) for mark in VOCABULARY_MARKS) and any(
        str(name).startswith(VOCABULARY_MARKS) for _, name, _ in step.tops
    )


def exceeds_one(values: Sequence[float]) -> bool:
    """Whether log-probabilities of outcomes of one step cannot all be right: one is above 1, or all together are."""
    if any(value > 1e-3 for value in values):
        return True
    return math.fsum(map(math.exp, values)) > MAX_PROBABILITY_SUM
