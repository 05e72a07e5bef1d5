"""Conversion of a choice in a server's response to a chain that records its defects.

    >>> top = [{" 4": -0.1, "<eos>": -3.0}, {}]
    >>> logprobs = Logprobs(tokens=[" 4", "<eos>"], token_logprobs=[-0.1, -0.2], top_logprobs=top)
    >>> choice = Choice(text=" 4", logprobs=logprobs, finish_reason="stop")
    >>> chain = read_chain(choice, "q", 0, ReaderContext("teacher", "raw"))
    >>> chain.content, chain.tokens, chain.candidates[0], chain.candidates[1], chain.stop
    (b' 4', (b' 4',), ((b' 4', -0.1), (END, -3.0)), ((END, -0.2),), 'end')

A server describes its tokens by their bytes, by their ids, or by strings. In a string, a token that ends inside a
character is empty or U+FFFD. Bytes are used as they are; ids are used if the teacher's tokenizer is known. Otherwise the
text determines the bytes, if it leaves only one possibility. potstill never guesses: a token whose bytes stay unknown is
omitted from the chain (its bytes are a gap between spans), and a candidate whose bytes stay unknown is dropped (its
probability belongs to the tail).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

import numpy as np

from potstill.alignment.rewrite import merge_candidates
from potstill.recipe.teacher import LearntPart
from potstill.records import CUT_IN_THOUGHT, END, Candidate, Chain, End, StopReason, token_spans
from potstill.storage.flat_chains import FlatChain, Piece
from potstill.teachers import chain_parts
from potstill.teachers.chain_parts import DECIMALS
from potstill.teachers.openai_api import token_entries
from potstill.teachers.openai_api.response import Choice, FinishReason, Logprobs, message_texts, read_finish_reason
from potstill.teachers.openai_api.token_entries import (
    DEFECT_BEYOND_TEXT,
    DEFECT_BYTES_UNKNOWN,
    DEFECT_ENTRIES_MISSING,
    ReaderContext,
    TokenEntry,
    TokenSpan,
    read_entries,
)
from potstill.thoughts import TextParts, split_tags

__all__ = ["Logprobs", "read_chain", "read_chain_and_answer", "read_row"]
DEFECT_NO_ENTRIES: Final = "a part without entries"
DEFECT_OTHER_TEXT: Final = "entries of another text"
DEFECT_ABOVE_ONE: Final = "probabilities above 1"
DEFECT_VOCABULARY_MARKS: Final = "candidates with marks of the vocabulary"
DEFECT_HIDDEN: Final = "log-probability hidden"
MAX_STRAY_SHARE: Final = 0.1  # if a larger share of the entries does not fit the text, they belong to another text
VOCABULARY_MARKS: Final = ("Ġ", "Ċ", "▁")  # how vocabularies write a space or newline at the start of a token
MAX_PROBABILITY_SUM: Final = 1.01  # maximum sum for the candidates of one token; above 1 because servers round
HIDDEN_LOGPROB: Final = -9000.0  # servers write -9999 for a log-probability that they hide


def read_chain(choice: Choice, question: str, index: int, context: ReaderContext) -> Chain:
    """The chain of a choice, not truncated after its answer. Log-probabilities are rounded to 6 decimals. Defects:

    entries missing         part of the text has no entry
    a part without entries  the thought or the answer has no entries
    entries of another text the entries do not fit the text; the chain drops all of them
    bytes unknown           a token ends inside a character, and the server does not return its bytes
    candidates unknown      a candidate ends inside a character, and the server does not return its bytes
    log-probability hidden  the server wrote a placeholder instead of a number
    probabilities above 1   the candidates of a token cannot be right; the token drops all of them
    candidates with marks of the vocabulary  they are not written like the text; the token drops all of them
    no last step            the text ended, and the end has no entry
    tokens beyond the text  the text was cut at a stop string, but the entries were not
    content filter          the server broke the text off; the chain is empty, so no student learns it
    finish reason unknown   potstill does not know the finish reason
    half a surrogate pair   the text contained half of a character, which was replaced
    cut in a thought        the text was cut before its answer began, so it has none
    """
    return read_chain_and_answer(choice, question, index, context)[0]


def read_chain_and_answer(choice: Choice, question: str, index: int, context: ReaderContext) -> tuple[Chain, int]:
    """The chain of a choice (see `read_chain`), and the byte at which its answer begins.

    The byte is 0 if the chain has no thought, and the length of the chain if it has no answer.
    """
    if (row := read_row(choice, question, index, context)) is not None:
        return row.as_chain(), 0
    finish_reason = read_finish_reason(choice.finish_reason)
    if finish_reason == "filter":
        return Chain(question, context.source, index, b"", stop="length", defects=("content filter",)), 0
    stop = _read_stop(choice, finish_reason, context)
    defects = {"finish reason unknown"} if finish_reason == "unknown" else set()
    if choice.replaced:
        defects.add("half a surrogate pair")
    thought, text = message_texts(choice)
    parts = split_tags(text)
    if thought.strip() and not parts:
        text, parts = chain_parts.join_fields(thought, text)
    answer_start, end_is_known = 0, True
    if not (entries := read_entries(choice, context)):
        chain = Chain.from_text("", 0, text, source="")
        if parts:
            chain, answer_start = chain_parts.select_parts(chain, parts, context.reasoning)
    elif parts:
        chain, answer_start, end_is_known = _read_parts(choice, text, parts, entries, stop, context.reasoning, defects)
    else:
        chain, end_is_known = _read_single_part(choice, text, entries, stop, defects)
    if chain_parts.lacks_answer(parts, stop):
        defects.add(CUT_IN_THOUGHT)
    stop = _settle_end(stop, end_is_known, bool(chain.tokens), defects, context)
    key = {"question": question, "source": context.source, "index": index}
    semantics = context.semantics if chain.candidates else "none"
    return replace(chain, **key, stop=stop, semantics=semantics, defects=tuple(sorted(defects))), answer_start


def read_row(choice: Choice, question: str, index: int, context: ReaderContext) -> FlatChain | None:
    """The row of a choice (see `read_chain`), if its token strings join to exactly its text, as nearly always.

    None for any other choice, which needs `read_chain`.
    """
    finish_reason, (thought, text) = read_finish_reason(choice.finish_reason), message_texts(choice)
    if (
        finish_reason == "filter"
        or context.lookup is not None
        or choice.replaced
        or thought.strip()
        or split_tags(text)
    ):
        return None
    stop = _read_stop(choice, finish_reason, context)
    if (row := read_plain_row(choice, text, stop)) is None:
        return None
    defects = {"finish reason unknown"} if finish_reason == "unknown" else set[str]()
    has_end = len(row.step_sizes) > len(row.tokens)
    row.stop = _settle_end(stop, has_end, bool(row.tokens), defects, context)
    row.question, row.source, row.index = question, context.source, index
    row.semantics, row.defects = context.semantics, sorted(defects)
    return row


def _settle_end(
    stop: StopReason, end_is_known: bool, has_tokens: bool, defects: set[str], context: ReaderContext
) -> StopReason:
    """Why a text ended, given whether its end has an entry. An end without an entry becomes a defect."""
    if stop != "end" or end_is_known:
        return stop
    if context.has_stop_strings or DEFECT_BEYOND_TEXT in defects:
        return "cut"
    if has_tokens:
        defects.add("no last step")
    return stop


def _read_stop(choice: Choice, finish_reason: FinishReason, context: ReaderContext) -> StopReason:
    """Why a text ended. vLLM writes the stop string into `stop_reason`; other servers repeat the finish reason there."""
    if finish_reason not in ("end", "string"):
        return "length"
    stop_reason = choice.stop_reason
    if isinstance(stop_reason, str) and (
        context.has_stop_strings or read_finish_reason(stop_reason) not in ("end", "string")
    ):
        return "cut"
    return "cut" if finish_reason == "string" and context.has_stop_strings else "end"


def _read_single_part(
    choice: Choice, text: str, entries: list[TokenEntry], stop: StopReason, defects: set[str]
) -> tuple[Chain, bool]:
    """The chain of a text without separate parts, and whether the end has an entry."""
    first, _ = token_entries.match_text(entries, text.encode("utf-8", "replace"))
    entries = entries[first:]
    end = entries.pop() if entries and stop != "length" and _is_end_entry(entries, text, choice) else None
    entries, end = _name_end(entries, end)
    return compose_chain(text, entries, end, defects, strict=True), end is not None


def _read_parts(
    choice: Choice,
    text: str,
    parts: TextParts,
    entries: list[TokenEntry],
    stop: StopReason,
    learnt: LearntPart,
    defects: set[str],
) -> tuple[Chain, int, bool]:
    """The chain of the learnt parts, the byte at which its answer begins, and whether the end has an entry."""
    data = text.encode("utf-8", "replace")
    ranges = token_entries.match_parts(entries, [data[start:end] for start, end, _ in parts])
    end_entry: TokenEntry | None = None
    if stop == "end" and parts[-1].is_answer and not isinstance(choice.stop_reason, str):
        after = entries[ranges[-1][1] :]
        end_entry = after[0] if after and (after[0].piece is END or len(after) == 1) else None
    entries, end_entry = _name_end(entries, end_entry)
    chosen = [(part, bounds) for part, bounds in zip(parts, ranges, strict=True) if chain_parts.is_learnt(part, learnt)]
    chains = []
    for part, bounds in chosen:
        if part.start == part.end:
            continue
        part_text = data[part.start : part.end].decode("utf-8", "replace")
        if part_entries := entries[slice(*bounds)]:
            chains.append((compose_chain(part_text, part_entries, None, defects, strict=True), part))
        else:
            defects.add(DEFECT_NO_ENTRIES)
            chains.append((Chain.from_text("", 0, part_text, source=""), part))
    chain, answer_start = chain_parts.join_parts(Chain.from_text("", 0, "", source=""), chains)
    if learnt == "shortened":
        chain, answer_start = chain_parts.shorten_thought(chain, answer_start)
    if end_entry is None or not chosen or chosen[-1][0] is not parts[-1]:
        return chain, answer_start, False
    if chain.tokens:
        last_step = _read_candidates(end_entry, END, b"", defects)
        chain = replace(chain, candidates=(*chain.candidates, last_step))
    return chain, answer_start, True


def _name_end(entries: list[TokenEntry], end: TokenEntry | None) -> tuple[list[TokenEntry], TokenEntry | None]:
    """The entries; every alternative with the name of the end's entry becomes END."""
    if end is None or end.name == "":
        return entries, end

    def mark_end(entry: TokenEntry) -> TokenEntry:
        rows = [(END if name == end.name else piece, name, value) for piece, name, value in entry.alternatives]
        return entry._replace(alternatives=rows)

    return [mark_end(entry) for entry in entries], mark_end(end)


def compose_chain(
    text: str, entries: Sequence[TokenEntry], end: TokenEntry | None, defects: set[str], *, strict: bool = False
) -> Chain:
    """A chain without a key: the text with its entries at their positions.

    end     the entry of the end, if the response has one
    strict  whether all entries are dropped if they belong to another text
    """
    pieces = [entry.piece for entry in entries]
    known = [piece for piece in pieces if isinstance(piece, bytes) and piece]
    if len(known) == len(pieces) and b"".join(known) == text.encode("utf-8", "replace"):
        content, located = b"".join(known), [TokenSpan(*span) for span in token_spans(known)]
    else:
        content, located = token_entries.locate_tokens(text, pieces, defects)
        if strict and _is_other_text(pieces, located, DEFECT_BEYOND_TEXT in defects):
            defects -= {DEFECT_BEYOND_TEXT, DEFECT_ENTRIES_MISSING, DEFECT_BYTES_UNKNOWN}
            defects.add(DEFECT_OTHER_TEXT)
            return Chain("", "", 0, text.encode("utf-8", "replace"))
    tokens, spans, candidates = [], [], []
    for entry, span in zip(entries, located, strict=True):
        if span is not None:
            token = content[span.start : span.end]
            tokens.append(token)
            spans.append((span.start, span.end))
            candidates.append(_read_candidates(entry, token, span.prefix, defects))
    if end is not None:
        candidates.append(_read_candidates(end, END, b"", defects))
    return Chain("", "", 0, content, tuple(tokens), tuple(spans), tuple(candidates))


def _is_other_text(
    pieces: Sequence[token_entries.Piece], located: Sequence[TokenSpan | None], beyond_text: bool
) -> bool:
    """Whether so many known pieces have no span that they belong to another text. Stripped whitespace is ignored."""
    if beyond_text:
        placed = [number for number, span in enumerate(located) if span is not None]
        pieces = pieces[: placed[-1] + 1 if placed else 0]
    known = [number for number, piece in enumerate(pieces) if isinstance(piece, bytes) and piece.strip()]
    lost = [number for number in known if located[number] is None]
    return bool(lost) and (lost[0] == known[0] or len(lost) > MAX_STRAY_SHARE * len(known))


def _is_end_entry(entries: Sequence[TokenEntry], text: str, choice: Choice) -> bool:
    """Whether the last entry describes the end of the text."""
    last = entries[-1]
    if last.piece is END:
        return True
    if isinstance(choice.stop_reason, str):
        return False
    before = [entry.piece for entry in entries[:-1] if isinstance(entry.piece, bytes)]
    if b"".join(before) == text.encode("utf-8", "replace"):
        return True
    if isinstance(last.name, int):
        return not last.piece
    offsets = choice.logprobs.text_offset if choice.logprobs else None
    return bool(text and offsets and len(offsets) == len(entries) and offsets[-1] - offsets[0] >= len(text))


def _read_candidates(entry: TokenEntry, token: bytes | End, prefix: bytes, defects: set[str]) -> tuple[Candidate, ...]:
    """The candidates of a position, including the sampled `token`.

    prefix  earlier bytes of an unfinished character; the strings of alternatives that finish it begin with them
    """
    candidates: list[Candidate] = []
    has_token = False
    for piece, name, logprob in entry.alternatives:
        if logprob is None or logprob < HIDDEN_LOGPROB:
            defects.add(DEFECT_HIDDEN)
            continue
        if name == entry.name and (name != "" or logprob == entry.logprob):
            piece, has_token = token, True
        elif isinstance(piece, bytes) and prefix and piece.startswith(prefix) and isinstance(name, str):
            piece = piece[len(prefix) :]
        if piece is None or piece == b"":
            defects.add("candidates unknown")
        else:
            candidates.append((piece, logprob))
    if not has_token:
        if has_vocabulary_marks(entry):
            defects.add(DEFECT_VOCABULARY_MARKS)
            return ()
        if entry.logprob is None or entry.logprob < HIDDEN_LOGPROB:
            defects.add(DEFECT_HIDDEN)
        else:
            candidates.append((token, entry.logprob))
    if exceeds_one([logprob for _, logprob in candidates]):
        defects.add(DEFECT_ABOVE_ONE)
        return ()
    candidates = [(piece, round_logprob(logprob)) for piece, logprob in candidates]
    distinct = len({piece for piece, _ in candidates}) == len(candidates)
    return tuple(candidates) if distinct else merge_candidates(candidates, DECIMALS)


def round_logprob(logprob: float) -> float:
    return round(min(logprob, 0.0), DECIMALS) + 0.0  # never -0.0


def has_vocabulary_marks(entry: TokenEntry) -> bool:
    """Whether the alternatives are written as in the vocabulary ("Ġ2"), but the token itself as text."""
    return not any(mark in str(entry.name) for mark in VOCABULARY_MARKS) and any(
        str(name).startswith(VOCABULARY_MARKS) for _, name, _ in entry.alternatives
    )


def exceeds_one(logprobs: Sequence[float]) -> bool:
    """Whether a probability, or the sum of the probabilities of one position, is clearly above 1."""
    if any(logprob > 1e-3 for logprob in logprobs):
        return True
    return math.fsum(map(math.exp, logprobs)) > MAX_PROBABILITY_SUM


def read_plain_row(choice: Choice, text: str, stop: StopReason) -> FlatChain | None:
    """The row, without a key, of a choice whose token strings join to exactly the text; None for any other choice.

    Its chain equals that of `_read_single_part`, but it is read without an object for each candidate.
    """
    logprobs = choice.logprobs
    if logprobs is None:
        return None
    # The alternatives of all positions are one flat list, which NumPy converts at once.
    if logprobs.content is not None:
        names = [entry.token for entry in logprobs.content]
        values = [entry.logprob for entry in logprobs.content]
        tables = [entry.top_logprobs or () for entry in logprobs.content]
        flat_tokens = [outcome.token for table in tables for outcome in table]
        flat_values = [outcome.logprob for table in tables for outcome in table]
    else:
        names, values = [name or "" for name in logprobs.tokens or ()], logprobs.token_logprobs or []
        tables = [table or {} for table in logprobs.top_logprobs or [None] * len(names)]
        flat_tokens = [token for table in tables for token in table]
        flat_values = [value for table in tables for value in table.values()]
    if not (len(names) == len(values) == len(tables)) or not names:
        return None
    joined, end_name = "".join(names), None
    if joined != text:  # the tokens must join to the text, with or without the end token
        end_name = names[-1]
        if stop == "length" or isinstance(choice.stop_reason, str) or joined[: -len(end_name) or None] != text:
            return None
        if end_name in names[:-1]:  # a token of the text that is written like the end
            return None
    sizes = list(map(len, tables))
    bounds = list(accumulate(sizes, initial=0))
    missing = [
        index
        for index, (name, start, end) in enumerate(zip(names, bounds, bounds[1:], strict=False))
        # Servers list the sampled token first, nearly always.
        if (start == end or flat_tokens[start] != name) and name not in flat_tokens[start:end]
    ]
    for index in reversed(missing):  # the sampled token becomes the last candidate of its position
        start, end = bounds[index : index + 2]
        if any(token.startswith(VOCABULARY_MARKS) for token in flat_tokens[start:end]):
            return None
        flat_tokens.insert(end, names[index])
        flat_values.insert(end, values[index])
        sizes[index] += 1
    if not _have_known_bytes(flat_tokens):
        return None
    array = np.array(flat_values, np.float64)  # None becomes NaN
    if not (array.min() >= HIDDEN_LOGPROB and array.max() <= 0.0):
        return None
    sums = np.add.reduceat(np.exp(array), list(accumulate(sizes[:-1], initial=0)))
    if sums.max() > MAX_PROBABILITY_SUM:
        return None
    outcomes: list[Piece | None] = list(flat_tokens)
    if end_name is not None:
        at = -1
        for _ in range(flat_tokens.count(end_name)):
            at = flat_tokens.index(end_name, at + 1)
            outcomes[at] = None
    tokens: list[Piece] = list(names if end_name is None else names[:-1])
    return FlatChain("", "", 0, text, tokens, None, outcomes, _round6(array), sizes)


def _have_known_bytes(tokens: Sequence[str]) -> bool:
    """Whether the string of each token determines its bytes. False for a few sequences that would be known, too."""
    joined = "".join(tokens)
    if "�" in joined or "token_id:" in joined or not all(tokens):
        return False
    return joined.isascii() or joined.encode("utf-8", "ignore").decode() == joined  # without half a surrogate pair


def _round6(values: np.ndarray) -> list[float]:
    """The values rounded to 6 decimals exactly as `round` does, in a third of its time.

    >>> _round6(np.array([-0.1234565, -2.0000004999, -0.0]))
    [-0.123456, -2.0, -0.0]
    """
    scaled = values * 1e6
    whole = np.rint(scaled)
    rounded = (whole / 1e6).tolist()
    distances = np.abs(scaled - whole)
    if distances.max(initial=0.0) > 0.4999:  # near a tie: the product is inexact
        for index in np.flatnonzero(distances > 0.4999):
            rounded[index] = round(float(values[index]), 6)
    return rounded
