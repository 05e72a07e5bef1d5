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

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from potstill.records import END, Candidate, Chain, End, Stop
from potstill.rewriting import merged
from potstill.teachers.cut import DECIMALS
from potstill.teachers.openai import finish, matching, placing, plain, reasoning
from potstill.teachers.openai.body import Choice, Listing, spoken
from potstill.teachers.openai.entries import Learn, Piece, Reader, Step, steps
from potstill.teachers.openai.plain import HIDDEN, MARKS, MOST

__all__ = ["HIDDEN", "Learn", "Listing", "Piece", "Reader", "Step", "composed", "parted", "read", "steps"]
BEYOND: Final = "tokens beyond the text"
SILENT: Final = "a part without entries"
OTHER: Final = "entries of another text"
ABOVE: Final = "probabilities above 1"
MARKED: Final = "candidates with marks of the vocabulary"
STRAY: Final = 0.1  # the share of entries that a text may lack and still be the text that they speak of


def read(choice: Choice, question: str, index: int, reader: Reader) -> Chain:
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
    return parted(choice, question, index, reader)[0]


def parted(choice: Choice, question: str, index: int, reader: Reader) -> tuple[Chain, int]:
    """The chain of a choice, and the byte at which its answer begins: 0 if it is nothing else, its length if it has
    none. See `read`."""
    key = {"question": question, "index": index, "source": reader.source}
    ending = finish.ending(choice.finish_reason)
    if ending == "filter":
        return Chain(**key, content=b"", stop="length", defects=("content filter",)), 0
    stop = _stop(choice, ending, reader)
    defects = {"finish reason unknown"} if ending == "unknown" else set()
    if choice.replaced:
        defects.add("half a surrogate pair")
    thought, whole = spoken(choice)
    parts = reasoning.tagged(whole)
    if thought.strip() and not parts:
        whole, parts = reasoning.fields(thought, whole)
    quick = plain.told(choice, whole, stop) if reader.pieces is None and not parts else None
    if quick is not None:
        content, tokens, spans, candidates = quick
        if len(candidates) == len(tokens) and stop == "end":
            stop, defects = ("cut", defects) if reader.stops else ("end", defects | {"no last step"})
        marks = tuple(sorted(defects))
        return Chain(**key, content=content, tokens=tokens, spans=spans, candidates=candidates, stop=stop,
                     semantics=reader.semantics, defects=marks), 0  # fmt: skip
    found = steps(choice, reader)
    if not found:
        chain, start = Chain.from_text(question, index, whole, source=reader.source), 0
        if parts:
            chain, start = reasoning.narrowed(chain, parts, reader.learn)
        return replace(chain, stop=stop, defects=tuple(sorted(defects))), start
    chain, start, ended = (
        _in_parts(choice, whole, parts, found, stop, reader.learn, defects)
        if parts
        else _in_one(choice, whole, found, stop, defects)
    )
    if stop == "end" and not ended and (reader.stops or BEYOND in defects):
        stop = "cut"
    if stop == "end" and not ended and chain.tokens:
        defects.add("no last step")
    semantics = reader.semantics if chain.candidates else "none"
    return replace(chain, **key, stop=stop, semantics=semantics, defects=tuple(sorted(defects))), start


def _stop(choice: Choice, ending: finish.Ending, reader: Reader) -> Stop:
    """How a text ended. vLLM names a stop string in `stop_reason`; others repeat the reason there."""
    if ending not in ("end", "string"):
        return "length"
    named = choice.stop_reason
    if isinstance(named, str) and (reader.stops or finish.ending(named) not in ("end", "string")):
        return "cut"
    return "cut" if ending == "string" and reader.stops else "end"


def _in_one(choice: Choice, whole: str, found: list[Step], stop: Stop, defects: set[str]) -> tuple[Chain, int, bool]:
    """The chain of a text without parts; 0; and whether the end has an entry."""
    first, _ = matching.window(found, whole.encode("utf-8", "replace"))
    found = found[first:]
    last = found.pop() if found and stop != "length" and _ends(found, whole, choice) else None
    found, last = _named(found, last)
    return composed(whole, found, last, defects, strict=True), 0, last is not None


def _in_parts(
    choice: Choice, whole: str, parts: reasoning.Parts, found: list[Step], stop: Stop, learn: Learn, defects: set[str]
) -> tuple[Chain, int, bool]:
    """The chain of the parts that are learnt, each with the entries that speak of it; the byte at which its answer
    begins; and whether the end has an entry."""
    text = whole.encode("utf-8", "replace")
    windows = matching.windows(found, [text[start:end] for start, end, _ in parts])
    last: Step | None = None
    if stop == "end" and parts[-1].answer and not isinstance(choice.stop_reason, str):
        after = found[windows[-1][1] :]
        last = after[0] if after and (after[0].piece is END or len(after) == 1) else None
    found, last = _named(found, last)
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
            defects.add(SILENT)
            content += text[begin:end]
            continue
        part = composed(text[begin:end].decode("utf-8", "replace"), own, None, defects, strict=True)
        content += part.content
        tokens += part.tokens
        spans += [(first + at, until + at) for first, until in part.spans]
        candidates += part.candidates
    ended = last is not None and bool(chosen) and chosen[-1] == len(parts) - 1
    if ended and tokens and last is not None:
        candidates.append(_candidates(last, END, b"", defects))
    chain = Chain("", "", 0, content, tuple(tokens), tuple(spans), tuple(candidates), semantics="unknown")
    return chain, start if start >= 0 else len(content), ended


def _named(found: list[Step], last: Step | None) -> tuple[list[Step], Step | None]:
    """The steps, those outcomes being END that are named as the end is."""
    if last is None or last.name == "":
        return found, last
    return [_naming(step, last.name) for step in found], _naming(last, last.name)


def composed(whole: str, steps: Sequence[Step], last: Step | None, defects: set[str], *, strict: bool = False) -> Chain:
    """A chain without a key: the text, its entries put in their places, and the entry of the end if there is one.

    strict  entries that do not fit the text are not used, and neither are the others
    """
    pieces = [step.piece for step in steps]
    known = [piece for piece in pieces if isinstance(piece, bytes) and piece]
    if len(known) == len(pieces) and b"".join(known) == whole.encode("utf-8", "replace"):
        content, places = b"".join(known), placing.running(known)
    else:
        content, places = placing.place(whole, pieces, defects)
        if strict and _stray(pieces, places, BEYOND in defects):
            defects -= {BEYOND, "entries missing", "bytes unknown"}
            defects.add(OTHER)
            return Chain("", "", 0, whole.encode("utf-8", "replace"), semantics="none")
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


def _stray(pieces: Sequence[Piece], places: Sequence[placing.Place | None], beyond: bool) -> bool:
    """Whether so many known pieces have no place that they are of another text. White space may have been stripped."""
    if beyond:
        placed = [number for number, place in enumerate(places) if place is not None]
        pieces = pieces[: placed[-1] + 1 if placed else 0]
    known = [number for number, piece in enumerate(pieces) if isinstance(piece, bytes) and piece.strip()]
    lost = [number for number in known if places[number] is None]
    return bool(lost) and (lost[0] == known[0] or len(lost) > STRAY * len(known))


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
        found.append((piece, value))
    if not seen:
        if marked(step):
            defects.add(MARKED)
            return ()
        if step.value is None or step.value < HIDDEN:
            defects.add("log-probability hidden")
        else:
            found.append((own, step.value))
    if above([value for _, value in found]):
        defects.add(ABOVE)
        return ()
    found = [(piece, round(min(value, 0.0), 6) + 0.0) for piece, value in found]
    return tuple(found) if len({what for what, _ in found}) == len(found) else merged(found, DECIMALS)


def marked(step: Step) -> bool:
    """Whether outcomes are written as the vocabulary has them ("Ġ2") where the token itself is written as text."""
    return not any(mark in str(step.name) for mark in MARKS) and any(
        str(name).startswith(MARKS) for _, name, _ in step.tops
    )


def above(values: Sequence[float]) -> bool:
    """Whether log-probabilities of outcomes of one step cannot all be right: one is above 1, or all together are."""
    if any(value > 1e-3 for value in values):
        return True
    return math.fsum(map(math.exp, values)) > MOST
