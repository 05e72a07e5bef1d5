"""The rule `text`: a teacher's outcomes are texts, and each of them is what the student would write for it.

Every outcome that was seen but not taken branches off the chain's text. It is followed to the end of the word in which
it differs, with the probabilities of the run's chains (`completions`), and written in the student's tokens: a *way*. At
a position of the student the ways that begin with the pieces already written vote for their next piece, each with its
probability; the others were impossible. The chain's own text is one more way. What nobody saw, and what nobody knows
how to go on, is the tail.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from potstill.prompts import answer_end
from potstill.records import END, Chain, End
from potstill.transfer.candidates import Distribution, steps
from potstill.transfer.continuations import RARE, Completions, Written
from potstill.transfer.words import Words

LEAST: Final = 3e-4  # an outcome less likely than this counts as unseen
WORTH: Final = 5e-3  # an outcome that nobody continues and that is less likely is tail, whatever its first pieces are
SLIGHT: Final = 2e-5  # a way less likely than this is not told from others
FAINT: Final = 1e-6  # a smaller probability in a target is tail
# Estimate: the share of what a step did not show that begins as the pieces do which were written into or behind it.
AGREES: Final = 0.1


class Way(NamedTuple):
    """Where an outcome that was not taken leads.

    word         the chain's word in which it leaves the chain's text
    apart        the first byte of the content that it may not share
    probability  of this way, given the text before its step
    tokens       of its text from the start of that word on, as far as anybody knows how it goes on
    """

    word: int
    apart: int
    probability: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Path:
    """A chain as its words and its steps.

    words, pieces   where each word begins, and its tokens
    rows            the outcomes of each step that count
    starts, stops   of the token of each step, in the content
    taken, unseen   the probability of what the chain says (0 if its source did not show it), and what was not shown
    answer          where the answer sentence begins, if it ends the text: behind that a newline ends the text too
    """

    chain: Chain
    words: list[int]
    pieces: list[tuple[int, ...]]
    rows: list[dict[bytes | End, float]]
    starts: list[int]
    stops: list[int]
    taken: list[float]
    unseen: list[float]
    answer: int | None


def by_text(
    chain: Chain,
    words: Words,
    ids: Sequence[int],
    places: np.ndarray,
    run: Completions | None = None,
    teacher: Words | None = None,
) -> dict[int, Distribution] | None:
    """Distributions by position; None where the words of the text are not what its tokens are made of.

    ids, places  the tokens of the chain's text and their spans in its content
    """
    path = _path(chain, words, ids)
    if path is None:
        return None
    ways = [_ways(path, step, words, run, teacher) for step in range(len(path.rows))]
    soft: dict[int, Distribution] = {}
    position = 0
    for word, pieces in enumerate(path.pieces):
        last = word + 1 == len(path.pieces) and chain.stop != "length"
        for place in range(len(pieces) + last):
            start = path.words[word] if place == 0 else len(chain.content) if position >= len(ids) else None
            start = int(places[position][0]) if start is None else start
            row = _row(path, ways, word, place, start, words.coder.vocabulary.eos)
            if row:
                soft[position] = row
            position += 1
    return soft


def _path(chain: Chain, words: Words, ids: Sequence[int]) -> _Path | None:
    content, starts, pieces = chain.content, [0], []
    seams = words.seams(content)
    for end in [*seams, len(content)]:
        found = words.ids(content[starts[-1] : end], first=len(starts) == 1)
        # What a tokenizer drops altogether stays with the word behind it.
        if end == len(content) or found:
            pieces.append(found)
            starts.append(end)
    if [piece for word in pieces for piece in word] != list(ids):
        return None
    rows = [{what: p for what, p in step.items() if p >= LEAST} for step in steps(chain)]
    at = [*chain.spans, (len(content), len(content))][: len(rows)]
    says = [*chain.tokens, END]
    text = content.decode("latin-1")
    spoken = text.lower().find("answer is")
    answer = spoken if spoken >= 0 and answer_end(text) == len(text) and chain.stop != "length" else None
    return _Path(
        chain=chain,
        words=starts[:-1],
        pieces=pieces,
        rows=rows,
        starts=[start for start, _ in at],
        stops=[stop for _, stop in at],
        taken=[row.get(what, 0.0) for row, what in zip(rows, says, strict=False)],
        unseen=[max(0.0, 1.0 - sum(row.values())) for row in rows],
        answer=answer,
    )


def _ways(path: _Path, step: int, words: Words, run: Completions | None, teacher: Words | None) -> list[Way]:
    """The ways of the outcomes of a step that the chain did not take."""
    content, start = path.chain.content, path.starts[step]
    taken = path.chain.tokens[step] if step < len(path.chain.tokens) else END
    here = bisect_right(path.words, start) - 1
    base = path.words[max(here - 1, 0)]
    before = content[base:start]
    made: list[Way] = []
    for what, probability in path.rows[step].items():
        if what == taken:
            continue
        token = b"" if isinstance(what, End) else what
        apart = start + _common(token, content, start)
        word = bisect_right(path.words, apart) - 1
        if (
            word
            and path.words[word] == apart
            and words.seam((before + token)[: apart - base + 1], apart - base) is None
        ):
            word -= 1  # no white space for a new word: it goes on with the one before
        left = 1.0
        rest: tuple[int, ...] = ()
        # An outcome may hold the end of a word and leave the chain in the next one: the first it shares with the chain.
        shared = sum(map(len, path.pieces[here:word]))
        written = _written(path, step, what, apart, min(here, word), words, run, teacher)
        if not written and probability >= WORTH:  # nobody knows how it goes on: as far as that does not matter
            begin = path.words[min(here, word)]
            last = begin + words.last(content[begin:start] + token, start - begin)
            rest = words.tokens(content[begin:last], begin == 0) if last > begin else ()
            rest += words.settled(content[last:start], token, last == 0, teacher)
        for tokens, share in written:
            if probability * share > SLIGHT:
                made.append(Way(word, apart, probability * share, tokens[shared:]))
                left -= share
        if left * probability > SLIGHT:
            made.append(Way(word, apart, probability * left, rest[shared:]))
    return made


def _written(
    path: _Path,
    step: int,
    what: bytes | End,
    apart: int,
    word: int,
    words: Words,
    run: Completions | None,
    teacher: Words | None,
) -> list[Written]:
    """The student's tokens, from the chain's word `word` on, of the texts to which an outcome grows by the end of the
    word in which it is apart from the chain's text; with their shares, at most 1 together."""
    content, start = path.chain.content, path.starts[step]
    low, eos = path.words[word], words.coder.vocabulary.eos
    end = () if eos is None else (eos,)
    if isinstance(what, End):
        return [(words.tokens(content[low:start], word == 0) + end, 1.0)]
    line = start - low if path.answer is not None and start > path.answer else None
    nodes: Mapping[bytes, Mapping[bytes | End, float]] = run.nodes(path.chain.question) if run else {}
    before, beyond = content[:low], apart - low
    done: list[Written] = []
    open_: list[tuple[bytes, bytes, float]] = [(content[low:start], what, 1.0)]
    while open_:
        text, token, share = open_.pop()
        grown = text + token
        # Finished: at the newline behind the answer, or at the end of the word in which it leaves the chain's.
        if line is not None and (newline := grown.find(b"\n", line)) >= 0:
            done.append((words.tokens(grown[:newline], word == 0) + end, share))
            continue
        if (seam := words.seam(grown, beyond + 1)) is not None:
            done.append((words.tokens(grown[:seam], word == 0), share))
            continue
        node = nodes.get(before + grown)
        if node:
            total = sum(node.values())
            for after, probability in node.items():
                part = share * probability / total
                if part < RARE or not after:
                    continue
                if isinstance(after, End):
                    done.append((words.tokens(grown, word == 0) + end, part))
                else:
                    open_.append((grown, after, part))
        elif run:
            last = words.last(grown, len(text))
            lead = words.tokens(grown[:last], word == 0) if last else ()
            first = word == 0 and not last
            for tokens, part in run.words_from(path.chain.question, text[last:], token, first, teacher):
                done.append((lead + tokens, share * part))
    return done


def _row(path: _Path, ways: list[list[Way]], word: int, place: int, start: int, eos: int | None) -> Distribution:
    """The distribution at one position: piece `place` of a word, or, behind its last, the end of the text.

    start  where in the content what this piece stands for begins
    """
    pieces = path.pieces[word]
    written, taken = pieces[:place], pieces[place] if place < len(pieces) else eos
    # The first piece of a word stands where the word before it might have gone on.
    opens = place == 0 and word > 0
    before = path.pieces[word - 1] if opens else ()
    low = path.words[word - 1] if opens else path.words[word]
    high = path.words[word + 1] if word + 1 < len(path.words) else len(path.chain.content)
    own = bisect_right(path.starts, start) - 1
    # Tokens of no width share their place with the one behind them; the first of them is under way.
    while own > 0 and path.starts[own - 1] == start:
        own -= 1
    if own < 0 or taken is None:
        return {}
    votes: dict[int, float] = {}
    total = 0.0

    def vote(step: int, weight: float) -> None:
        nonlocal total
        for where, apart, probability, tokens in ways[step]:
            mass = weight * probability
            piece = None
            if where > word:
                piece = taken
            elif where == word:
                if place and tokens[:place] != written[: len(tokens)]:
                    continue
                if len(tokens) > place:
                    piece = tokens[place]
            elif opens and where == word - 1:
                if tokens[: len(before)] != before[: len(tokens)]:
                    continue
                if len(tokens) > len(before):
                    piece = tokens[len(before)]
            else:
                continue
            if piece is not None:
                votes[piece] = votes.get(piece, 0.0) + mass
                total += mass
            elif apart >= start:
                total += mass  # open

    # Earlier steps of the word, whose outcomes may reach as far as this: each weighs against what the chain took since.
    scale, step = 1.0, own - 1
    while step >= 0 and path.stops[step] > low and path.taken[step] > 1e-9:
        scale /= path.taken[step]
        vote(step, scale)
        # What was not seen there rarely reaches beyond what was taken: counted against that.
        total += scale * path.taken[step] * path.unseen[step] * AGREES
        step -= 1
    vote(own, 1.0)
    total += path.unseen[own] * (1.0 if path.starts[own] >= start else AGREES)
    # Later steps of the word: they say how what was taken goes on, so of each only the proportions of what it shows.
    weight, step = path.taken[own], own + 1
    while weight and step < len(path.starts) and path.starts[step - 1] < high:
        seen = 1.0 - path.unseen[step]
        weight = weight / seen if seen > 0.0 else 0.0
        vote(step, weight)
        weight *= path.taken[step]
        step += 1
    votes[taken] = votes.get(taken, 0.0) + weight
    total += weight
    return {piece: mass / total for piece, mass in votes.items() if mass > FAINT * total} if total > 0.0 else {}


def _common(token: bytes, content: bytes, start: int) -> int:
    shared = 0
    for byte in token:
        if start + shared >= len(content) or content[start + shared] != byte:
            break
        shared += 1
    return shared
