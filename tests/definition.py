"""The rule `text` as it is defined: every way written out as a whole text, nothing remembered, nothing left out.

For position j of the student, with the pieces before it written:

    P(piece) = mass of the ways that begin with those pieces and go on with this one
               / mass of the ways that begin with those pieces, known or open, + what was not shown and may agree

A way is the chain's own text, or an outcome that it did not take at a step of the word under way, grown to the end of
the word in which it leaves the chain's text. Its mass is its probability by the chain rule, counted from the step under
way: earlier steps weigh as much more as what the chain took since was unlikely, later ones share what was taken.
"""

from __future__ import annotations

import re
from functools import cache

from potstill import prompts
from potstill.alignment.exact_rules import encode_chain_text, step_distributions
from potstill.alignment.pre_tokens import get_pre_tokens
from potstill.alignment.text_rule import UNSEEN_AGREEMENT
from potstill.alignment.text_rule_branches import MIN_OUTCOME_PROBABILITY
from potstill.alignment.text_rule_completions import Completions
from potstill.records import END, Chain
from potstill.tokenization import Tokenizer


def distributions(
    chain: Chain, student: Tokenizer, run: Completions | None = None, teacher: Tokenizer | None = None
) -> list[dict[int, float]]:
    """One distribution a position, the end included unless the chain stopped for length; empty: nothing is known."""
    content = chain.content
    ids = encode(student, content) + [student.eos] * (chain.stop != "length")
    rows = [{what: p for what, p in step.items() if p >= MIN_OUTCOME_PROBABILITY} for step in step_distributions(chain)]
    says = [*chain.tokens, END]
    starts = [start for start, _ in chain.spans] + [len(content)]
    stops = [stop for _, stop in chain.spans] + [len(content)]
    taken = [row.get(what, 0.0) for row, what in zip(rows, says, strict=False)]
    unseen = [max(0.0, 1.0 - sum(row.values())) for row in rows]
    ways = [list(branches(chain, step, row, student, run, teacher)) for step, row in enumerate(rows)]
    places = words(student, content)  # (start in the content, first piece) of each word
    spans = encode_chain_text(chain, student.encoder)[1].tolist()
    found = []
    for j in range(len(ids)):
        word = max(k for k, (_, first) in enumerate(places) if first <= j)
        opens = places[word][1] == j and (j < len(ids) - 1 or places[word][0] < len(content) or not content)
        start = places[word][0] if opens else spans[j][0] if j < len(spans) else len(content)
        low = places[word - 1][0] if opens and word else places[word][0]
        high = places[word + 1][0] if word + 1 < len(places) else len(content)
        own = max((step for step in range(len(rows)) if starts[step] <= start), default=None)
        while own and starts[own - 1] == start:
            own -= 1
        if own is None:
            found.append({})
            continue
        weights = {own: 1.0}
        for step in range(own - 1, -1, -1):
            if stops[step] <= low or taken[step] <= 1e-9:
                break
            weights[step] = weights[step + 1] / taken[step]
        total = unseen[own] * (1.0 if starts[own] >= start else UNSEEN_AGREEMENT)
        total += sum(w * taken[step] * unseen[step] * UNSEEN_AGREEMENT for step, w in weights.items() if step < own)
        weight = taken[own]
        for step in range(own + 1, len(rows)):
            if not weight or starts[step - 1] >= high:
                break
            weight = weight / (1 - unseen[step]) if unseen[step] < 1 else 0.0
            weights[step] = weight
            weight *= taken[step]
        votes = {ids[j]: weight}
        total += weight
        for step, weight in weights.items():
            for text, ended, known, apart, p in ways[step]:
                written = known if known is not None else encode(student, text) + [student.eos] * ended
                if known is not None and leaves(places, student, text, apart) > word:
                    written = ids[: j + 1]
                if written[:j] == ids[:j] and len(written) > j:
                    votes[written[j]] = votes.get(written[j], 0.0) + weight * p
                    total += weight * p
                elif apart >= start and (known == [] or written == ids[: len(written)]):
                    total += weight * p
        found.append({piece: mass / total for piece, mass in votes.items() if mass > 0} if total > 0 else {})
    return found


def branches(chain, step, row, student, run, teacher):
    """(text, whether it ends there, None or what is known of its tokens, where it leaves the chain's, probability)."""
    content, start = chain.content, (chain.spans[step][0] if step < len(chain.spans) else len(chain.content))
    for what, p in row.items():
        if what == (chain.tokens[step] if step < len(chain.tokens) else END):
            continue
        if what is END:
            yield content[:start], True, None, start, p
            continue
        apart = start
        for byte in what:
            if apart >= len(content) or content[apart] != byte:
                break
            apart += 1
        left, known = p, []
        ways = grown(chain, content[:start], what, apart, start, student, run, teacher)
        for text, ended, share in ways:
            yield text, ended, None, apart, p * share
            left -= p * share
        if not ways:
            begun = seams(student, content[:start] + what, goes_on=True)
            word = max([0, *(seam for seam in begun if seam <= start)])
            theirs = None if teacher is None else get_pre_tokens(teacher)
            sure = get_pre_tokens(student).settled(content[word:start], what, word == 0, theirs)
            known = encode(student, content[:word]) + list(sure)
        if left > 1e-9:
            yield content[:start] + what, False, known, apart, left


def grown(chain, text, token, apart, start, student, run, teacher):
    """The texts that an outcome grows to, and their shares."""
    whole = text + token
    if answer(chain, start) and b"\n" in whole[start:]:
        return [(whole[: whole.index(b"\n", start)], True, 1.0)]
    finished = [seam for seam in seams(student, whole, goes_on=True) if seam > apart]
    if finished:
        return [(whole[: finished[0]], False, 1.0)]
    if run is None:
        return []
    node = run.prefix_tree(chain.question).get(whole)
    found = []
    if node:
        for what, p in node.items():
            share = p / sum(node.values())
            if what is END:
                found.append((whole, True, share))
            elif what:
                found += [
                    (t, e, share * s) for t, e, s in grown(chain, whole, what, apart, start, student, run, teacher)
                ]
        return found
    word = max([0, *(seam for seam in seams(student, whole, goes_on=True) if seam <= len(text))])
    for rest, ended, share in run.suffixes(chain.question, text[word:], token):
        if teacher:
            ends = {0}
            for piece in encode(teacher, whole[word:] + rest, inside=True):
                ends.add(max(ends) + len(teacher.token_bytes(piece)))
            if not {len(text) - word, len(whole) - word} <= ends:
                continue
        found.append((whole + rest, ended, share))
    return found


def encode(tokenizer: Tokenizer, content: bytes, inside: bool = False) -> list[int]:
    text = content.decode("utf-8", "replace")
    if not inside:
        return tokenizer.encode(text).ids
    for letter in "abcdefghij":
        own, found = tokenizer.encode(letter).ids, tokenizer.encode(letter + text).ids
        if found[: len(own)] == own:
            return found[len(own) :]
    raise AssertionError(f"every letter is joined to {text!r}")


def seams(tokenizer: Tokenizer, content: bytes, goes_on: bool = False) -> list[int]:
    """White space behind something visible, where the tokens of both sides are those of the whole; and in a text that
    goes on, where no piece of which its end is the beginning would then be written across it."""
    whole = encode(tokenizer, content)
    found = []
    for white in re.finditer(rb"[!-~\x80-\xff](?=[ \t\n\v\f\r])", content):
        at = white.end()
        if encode(tokenizer, content[:at]) + encode(tokenizer, content[at:], inside=True) != whole:
            continue
        if not goes_on or not any(begun(tokenizer, content, at, piece) for piece in joining(tokenizer)):
            found.append(at)
    return found


def begun(tokenizer: Tokenizer, content: bytes, at: int, piece: bytes) -> bool:
    """Whether a text ends with the beginning of a piece, more than what is before a place of it, and would have it."""
    for missing in range(1, len(piece)):
        start = len(content) - (len(piece) - missing)
        if 0 <= start < at and content[start:] == piece[: len(piece) - missing]:
            return encode(tokenizer, content[:start] + piece)[-1] == tokenizer.vocabulary.find(piece)
    return False


@cache
def joining(tokenizer: Tokenizer) -> list[bytes]:
    return [
        piece for piece in tokenizer.vocabulary.table if piece and re.search(rb"[!-~\x80-\xff][ \t\n\v\f\r]", piece)
    ]


def words(tokenizer: Tokenizer, content: bytes) -> list[tuple[int, int]]:
    """Where each word begins, and its first piece; one without pieces belongs to the next."""
    found = [(0, 0)]
    for seam in seams(tokenizer, content):
        first = len(encode(tokenizer, content[:seam]))
        if first > found[-1][1]:
            found.append((seam, first))
    return found


def leaves(places: list[tuple[int, int]], tokenizer: Tokenizer, text: bytes, apart: int) -> int:
    """The word of the chain in which a text leaves it: the last one that begins where a word of the text does."""
    own = {0, *seams(tokenizer, text, goes_on=True)}
    return max(k for k, (start, _) in enumerate(places) if start <= apart and start in own)


def answer(chain: Chain, start: int) -> bool:
    """Whether a place lies in the answer sentence that ends the text."""
    at = chain.content.decode("latin-1").lower().find("answer is")
    ends = prompts.find_answer_end(chain.content.decode("latin-1")) == len(chain.content)
    return at >= 0 and ends and start > at and chain.stop != "length"
