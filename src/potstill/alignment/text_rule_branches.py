"""A chain as the student's words and the teacher's steps: what the rule `text` reads.

A word is as in module `words`; one that the student's tokenizer drops altogether belongs to the one behind it.

The ways of a step: where the outcomes that were seen there, but not taken, lead the student.

An outcome branches off the chain's text. It is followed to the end of the word in which it differs, with the
probabilities of the run's chains (`continuations`), and written in the student's tokens. Of those only the first that
is not the chain's own matters: up to it a way says what the chain says, behind it the chain's tokens are impossible for
it. So ways that part from the chain at the same position with the same token are one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from potstill.alignment.exact_rules import StepProbabilities
from potstill.alignment.pre_tokens import PreTokens
from potstill.alignment.text_rule_completions import MIN_SHARE, Completions, WrittenTokens
from potstill.prompts import find_answer_end
from potstill.records import END, Chain, End

MIN_OUTCOME_PROBABILITY: Final = 3e-4  # an outcome less likely than this counts as unseen


@dataclass(frozen=True, slots=True)
class ChainPath:
    """
    chain, ids      the chain, and the student's tokens of its text
    words           where each word begins in the content
    unsure          the words that a like text might not have, because a piece of the student joins what is there
    firsts          the position of each word's first token, and the number of positions
    rows            the outcomes of each step that count
    starts, stops   of the token of each step, in the content
    within          the word in which each step begins
    taken, unseen   the probability of what the chain says (0 if its source did not show it), and what was not shown
    answer          where the answer sentence begins, if it ends the text: behind that a newline ends the text too
    """

    chain: Chain
    ids: Sequence[int]
    words: list[int]
    unsure: frozenset[int]
    firsts: list[int]
    rows: Sequence[StepProbabilities]
    starts: list[int]
    stops: list[int]
    within: list[int]
    taken: list[float]
    unseen: list[float]
    answer: int | None


def build_chain_path(
    chain: Chain, words: PreTokens, ids: Sequence[int], steps: Sequence[StepProbabilities]
) -> ChainPath | None:
    """None where the words of the text are not what its tokens are made of.

    ids    the tokens of the chain's text
    steps  the probabilities of the outcomes of each step
    """
    content, begins, firsts = chain.content, [0], [0]
    pieces: list[int] = []
    for end in [*words.seams(content), len(content)]:
        found = words.ids(content[begins[-1] : end], first=len(begins) == 1)
        if found or end == len(content):
            pieces += found
            begins.append(end)
            firsts.append(len(pieces))
    if pieces != list(ids):
        return None
    begins.pop()
    rows = [{what: p for what, p in step.items() if p >= MIN_OUTCOME_PROBABILITY} for step in steps]
    at = [*chain.spans, (len(content), len(content))][: len(rows)]
    says = [*chain.tokens, END]
    return ChainPath(
        chain=chain,
        ids=ids,
        words=begins,
        unsure=frozenset(
            word for word, at in enumerate(begins) if at and words.unsure(content[at - 1 : at], content[at : at + 1])
        ),
        firsts=firsts,
        rows=rows,
        starts=[start for start, _ in at],
        stops=[stop for _, stop in at],
        within=[bisect_right(begins, start) - 1 for start, _ in at],
        taken=[row.get(what, 0.0) for row, what in zip(rows, says, strict=False)],
        unseen=[max(0.0, 1.0 - sum(row.values())) for row in rows],
        answer=_answer_start(chain),
    )


def _answer_start(chain: Chain) -> int | None:
    text = chain.content.decode("latin-1")
    spoken = text.lower().find("answer is")
    return spoken if spoken >= 0 and find_answer_end(text) == len(text) and chain.stop != "length" else None


def chosen_outcome(chain: Chain, step: int) -> bytes | End:
    """What the chain says at a step."""
    return chain.tokens[step] if step < len(chain.tokens) else END


MIN_OPEN_PROBABILITY: Final = (
    5e-3  # an outcome that nobody continues and that is less likely is tail, whatever its first pieces are
)
MIN_BRANCH_PROBABILITY: Final = 2e-5  # a way less likely than this is not told from others


# (parts, token, until, apart), a plain tuple because there are many:
#   parts  the first position of the student at which the way does not say what the chain says
#   token  what it says there; None: nobody knows, it is open
#   until  of an open way: the last position of which it may speak, the first one behind its word; else 0
#   apart  of an open way: the first byte of the content that it may not share; else 0
Branch = tuple[int, int | None, int, int]


def build_branches(
    path: ChainPath, step: int, words: PreTokens, run: Completions | None, teacher: PreTokens | None
) -> dict[Branch, float]:
    """The ways of a step, each with its probability given the text before it."""
    content, start, here, ids = path.chain.content, path.starts[step], path.within[step], path.ids
    taken = chosen_outcome(path.chain, step)
    found: dict[Branch, float] = {}
    for what, probability in path.rows[step].items():
        if what == taken:
            continue
        token = b"" if isinstance(what, End) else what
        shared = _shared_length(token, content, start)
        apart = start + shared
        word = here
        while word + 1 < len(path.words) and path.words[word + 1] <= apart:
            word += 1
        if word and path.words[word] == apart and not words.white(token[shared : shared + 1]):
            word -= 1  # no white space for a new word: it goes on with the one before
        until = path.firsts[word + 1]
        begin, word = _comparison_start(path, step, token, apart, word, isinstance(what, End), words)
        first = path.firsts[word]
        # An outcome may hold the end of a word and leave the chain in the next one: the first it shares with the chain.
        skipped = first - path.firsts[begin]
        written = _write_outcome(path, step, what, apart, begin, probability, words, run, teacher)
        told = [
            (tokens, probability * share) for tokens, share in written if probability * share > MIN_BRANCH_PROBABILITY
        ]
        left = probability - sum([mass for _, mass in told])
        if left > MIN_BRANCH_PROBABILITY:
            known: tuple[int, ...] = ()
            if (
                not written and probability >= MIN_OPEN_PROBABILITY
            ):  # nobody knows how it goes on: as far as that does not matter
                known = _settled_tokens(content[path.words[begin] : start], token, begin == 0, words, teacher)
            told.append((known, left))
        for tokens, mass in told:
            parts, place = first, skipped
            while place < len(tokens) and parts < until and tokens[place] == ids[parts]:
                parts += 1
                place += 1
            way = (parts, tokens[place], 0, 0) if place < len(tokens) else (parts, None, until, apart)
            found[way] = found.get(way, 0.0) + mass
    return found


def _comparison_start(
    path: ChainPath, step: int, token: bytes, apart: int, word: int, ended: bool, words: PreTokens
) -> tuple[int, int]:
    """The word of the chain from which on an outcome is written, and the one from which on it is compared: the words in
    which it begins and in which it leaves the chain's text, or earlier ones, where its own text does not have these."""
    content, start, begin = path.chain.content, path.starts[step], min(path.within[step], word)
    at, behind = path.words[word], token[apart - start : apart - start + 1]
    joined = path.unsure and not path.unsure.isdisjoint(range(begin, word + 1))
    if not joined and not (at and at == apart and words.unsure(content[at - 1 : at], behind)):
        return begin, word
    base = begin
    while base and (path.words[base] == apart or (base in path.unsure and apart - path.words[base] <= words.reach)):
        base -= 1
    low = path.words[base]
    own = words.sure(content[low:start] + token, not base, ended)
    while path.words[begin] - low not in own:
        begin -= 1
    while path.words[word] - low not in own:
        word -= 1
    return begin, word


def _settled_tokens(
    before: bytes, token: bytes, first: bool, words: PreTokens, teacher: PreTokens | None
) -> tuple[int, ...]:
    last = words.last(before + token, len(before), first)
    known = words.tokens(before[:last], first) if last else ()
    return known + words.settled(before[last:], token, first and not last, teacher)


def _write_outcome(
    path: ChainPath,
    step: int,
    what: bytes | End,
    apart: int,
    word: int,
    probability: float,
    words: PreTokens,
    run: Completions | None,
    teacher: PreTokens | None,
) -> list[WrittenTokens]:
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
    done: list[WrittenTokens] = []
    open_: list[tuple[bytes, bytes, float]] = [(content[low:start], what, 1.0)]
    while open_:
        text, token, share = open_.pop()
        grown = text + token
        # Finished: at the newline behind the answer, or at the end of the word in which it leaves the chain's.
        if line is not None and (newline := grown.find(b"\n", line)) >= 0:
            done.append((words.tokens(grown[:newline], word == 0) + end, share))
            continue
        if (seam := words.seam(grown, beyond + 1, word == 0)) is not None:
            done.append((words.tokens(grown[:seam], word == 0), share))
            continue
        node = nodes.get(before + grown)
        if node:
            total = sum(node.values())
            for after, likely in node.items():
                part = share * likely / total
                if part < MIN_SHARE or not after:
                    continue
                if isinstance(after, End):
                    done.append((words.tokens(grown, word == 0) + end, part))
                else:
                    open_.append((grown, after, part))
        elif run:
            last = words.last(grown, len(text), word == 0)
            lead = words.tokens(grown[:last], word == 0) if last else ()
            first = word == 0 and not last
            least = MIN_BRANCH_PROBABILITY / (probability * share)
            ways = run.words_from(path.chain.question, text[last:], token, first, teacher, least)
            done += ways if share == 1.0 and not lead else [(lead + tokens, share * part) for tokens, part in ways]
    return done


def _shared_length(token: bytes, content: bytes, start: int) -> int:
    """How many bytes of a token the content has at a place."""
    if content.startswith(token, start):
        return len(token)
    shared = 0  # most often none
    while shared < len(token) and start + shared < len(content) and content[start + shared] == token[shared]:
        shared += 1
    return shared
