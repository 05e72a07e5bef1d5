"""Reading: one choice of a body, of whatever shape, as a chain whose defects are marked.

    >>> top = [{" 4": -0.1, "<eos>": -3.0}, {}]
    >>> listing = Listing(tokens=[" 4", "<eos>"], token_logprobs=[-0.1, -0.2], top_logprobs=top)
    >>> choice = Choice(text=" 4", logprobs=listing, finish_reason="stop")
    >>> chain = read(choice, "q", 0, Reader("teacher", "raw"))
    >>> chain.content, chain.tokens, chain.candidates[0], chain.candidates[1], chain.stop
    (b' 4', (b' 4',), ((b' 4', -0.1), (END, -3.0)), ((END, -0.2),), 'end')

What a server says of its tokens is one of: their true bytes, their ids, or strings made of them, in which a token that
ends inside a character is empty or U+FFFD. Bytes are taken where they are true, ids where the teacher's tokenizer is
known, else told from the text where that leaves one possibility. A token whose bytes stay unknown is left out of the
chain (its bytes are a gap between spans), and so is such a candidate (its mass is the tail): never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from potstill.records import END, Candidate, Chain, End, Semantics, Stop
from potstill.rewriting import merged
from potstill.teachers.cut import DECIMALS
from potstill.teachers.openai import placing, plain, reasoning
from potstill.teachers.openai.body import Alternative, Choice, Listing, raw
from potstill.teachers.openai.plain import HIDDEN

BEYOND: Final = "tokens beyond the text"
Learn = Literal["both", "reasoning", "answer"]
# None: another special token, or bytes that cannot be told; empty: only bytes of an unfinished character
Piece = bytes | End | None


@dataclass(frozen=True, slots=True)
class Reader:
    """What is known of a server when its bodies are read.

    pieces  id and position in the text -> what the token means there, where the teacher's tokenizer is at hand
    ends    the strings by which the server names the end
    learn   which part of a reasoning model's answer becomes the chain
    stops   whether stop strings were sent: then a text that ends without an entry for the end was cut at one
    """

    source: str
    semantics: Semantics
    pieces: Callable[[int, int], Piece] | None = None
    ends: frozenset[str] = frozenset()
    learn: Learn = "both"
    stops: bool = False


class Step(NamedTuple):
    """One entry. `name` is its id, else its string; tops are (piece, name, log-probability or None)."""

    piece: Piece
    name: int | str
    value: float | None
    tops: Sequence[tuple[Piece, int | str, float | None]]


def read(choice: Choice, question: str, index: int, reader: Reader) -> Chain:
    """The chain of a choice, uncut, its log-probabilities rounded to 6 digits. Defects, each a short text:

    entries missing         part of the text has no entry
    bytes unknown           a token ends inside a character, and the server does not say with which byte
    candidates unknown      the same of a candidate
    log-probability hidden  a placeholder stood where a number belongs
    no last step            the text ended, and the end has no entry
    tokens beyond the text  the text was cut at a stop string, the entries were not
    content filter          the server broke the text off
    """
    whole, parts = reasoning.whole(choice, reader.learn)
    stop: Stop = "end" if choice.finish_reason in ("stop", "eos", "eos_token", "end_turn") else "length"
    if stop == "end" and isinstance(choice.stop_reason, str):
        stop = "cut"
    defects = {"content filter"} if choice.finish_reason == "content_filter" else set()
    quick = plain.told(choice, whole, stop) if reader.pieces is None and not parts else None
    if quick is not None:
        content, tokens, spans, candidates = quick
        if len(candidates) == len(tokens) and stop == "end":
            stop, defects = ("cut", defects) if reader.stops else ("end", defects | {"no last step"})
        marks = tuple(sorted(defects))
        return Chain(question, reader.source, index, content, tokens, spans, candidates, stop, reader.semantics, marks)
    found = steps(choice, reader)
    last = found.pop() if found and stop != "length" and _ends(found, whole, choice) else None
    if last is not None and last.name != "":
        found = [_naming(step, last.name) for step in found]
        last = _naming(last, last.name)
    if not found and last is None:
        chain = Chain.from_text(question, index, whole, source=reader.source)
    else:
        chain = composed(whole, found, last, defects)
        chain = replace(chain, question=question, index=index, source=reader.source, semantics=reader.semantics)
    if stop == "end" and last is None and (reader.stops or BEYOND in defects):
        stop = "cut"
    if stop == "end" and last is None and found:
        defects.add("no last step")
    chain = replace(chain, stop=stop, defects=tuple(sorted(defects)))
    return reasoning.narrowed(chain, parts) if parts else chain


def composed(whole: str, steps: Sequence[Step], last: Step | None, defects: set[str]) -> Chain:
    """A chain without a key: the text, its entries put in their places, and the entry of the end if there is one."""
    pieces = [step.piece for step in steps]
    known = [piece for piece in pieces if isinstance(piece, bytes) and piece]
    if len(known) == len(pieces) and b"".join(known) == whole.encode("utf-8", "replace"):
        content, places = b"".join(known), placing.running(known)
    else:
        content, places = placing.place(whole, pieces, defects)
    tokens, spans, candidates = [], [], []
    for step, place in zip(steps, places, strict=True):
        if place is not None:
            own = content[place.start : place.end]
            tokens.append(own)
            spans.append((place.start, place.end))
            candidates.append(_candidates(step, own, place.prefix, defects))
    if last is not None:
        candidates.append(_candidates(last, END, b"", defects))
    return Chain("", "", 0, content, tuple(tokens), tuple(spans), tuple(candidates), semantics="unknown")


def steps(choice: Choice, reader: Reader) -> list[Step]:
    """The entries of a choice, in order; none where it has no log-probabilities."""
    listing = choice.logprobs
    if listing is None:
        return []
    if listing.content is not None:
        return [_entry(entry, position, reader) for position, entry in enumerate(listing.content)]
    return _parallel(listing, reader)


def _entry(entry: Alternative, position: int, reader: Reader) -> Step:
    tops = [
        (_piece(one.token, raw(one), one.id, position, reader), _name(one), one.logprob)
        for one in getattr(entry, "top_logprobs", None) or ()
    ]
    name, piece = _name(entry), _piece(entry.token, raw(entry), entry.id, position, reader)
    if isinstance(name, int) and reader.pieces is None:
        # The bytes of an entry may also hold those of entries that were left out; among the outcomes they are its own.
        piece = next((own for own, other, _ in tops if other == name), piece)
    return Step(piece, name, entry.logprob, tops)


def _parallel(listing: Listing, reader: Reader) -> list[Step]:
    tokens, values = listing.tokens or [], listing.token_logprobs or []
    tops = listing.top_logprobs or []
    found = []
    for position, token in enumerate(tokens):
        shown = (tops[position] if position < len(tops) else None) or {}
        found.append(
            Step(
                _piece(token or "", None, None, position, reader),
                _id(token or ""),
                values[position] if position < len(values) else None,
                [(_piece(what, None, None, position, reader), _id(what), value) for what, value in shown.items()],
            )
        )
    return found


def _name(one: Alternative) -> int | str:
    return one.id if one.id is not None else _id(one.token)


def _id(token: str) -> int | str:
    """vLLM writes `token_id:17` if it is asked to."""
    return int(token[9:]) if token.startswith("token_id:") and token[9:].isdigit() else token


def _piece(token: str, told: bytes | None, number: int | None, position: int, reader: Reader) -> Piece:
    if number is None and isinstance(known := _id(token), int):
        number, token = known, ""
    if number is not None and reader.pieces is not None:
        return reader.pieces(number, position)
    if token in reader.ends:
        return END
    if told and (told != b"\xef\xbf\xbd" or "�" not in token):
        return told
    return token.encode("utf-8", "replace") if "�" not in token else None


def _ends(steps: Sequence[Step], whole: str, choice: Choice) -> bool:
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


def _naming(step: Step, end: int | str) -> Step:
    """The step, the outcome of this name being END."""
    if all(name != end for _, name, _ in step.tops):
        return step
    return step._replace(tops=[(END if name == end else piece, name, value) for piece, name, value in step.tops])


def _candidates(step: Step, own: bytes | End, prefix: bytes, defects: set[str]) -> tuple[Candidate, ...]:
    """The outcomes of a step, the sampled one (whose meaning is `own`) among them.

    prefix  bytes of an unfinished character before it, which strings of outcomes that finish it begin with
    """
    found: list[Candidate] = []
    seen = False
    for piece, name, value in step.tops:
        mine = name == step.name and (name != "" or value == step.value)
        if value is None or value < HIDDEN:
            defects.add("log-probability hidden")
            continue
        if mine:
            piece, seen = own, True
        elif isinstance(piece, bytes) and prefix and piece.startswith(prefix) and isinstance(name, str):
            piece = piece[len(prefix) :]
        if piece is None or piece == b"":
            defects.add("candidates unknown")
            continue
        found.append((piece, round(min(value, 0.0), 6) + 0.0))
    if not seen:
        if step.value is None or step.value < HIDDEN:
            defects.add("log-probability hidden")
        else:
            found.append((own, round(min(step.value, 0.0), 6) + 0.0))
    return tuple(found) if len({what for what, _ in found}) == len(found) else merged(found, DECIMALS)
