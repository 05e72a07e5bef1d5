"""The rule `text` as it is defined: every branch written out as a whole text, without caches and without pruning.

For position j of the student, with the tokens before it written:

    P(token) = mass of the branches that begin with those tokens and continue with this one
               / mass of the branches that begin with those tokens, known or open, + what was not shown and may agree

A branch is the chain's own text, or an outcome that it did not take at a step of the current pre-token, grown to the
end of the pre-token in which it leaves the chain's text. Its mass is its probability by the chain rule, counted from
the current step: earlier steps weigh more by as much as what the chain took since was unlikely, later ones share what
was taken.
"""

from __future__ import annotations

import re
from functools import cache

from potstill import prompts
from potstill.alignment.exact_rules import encode_chain_text, step_distributions
from potstill.alignment.pre_tokens import get_pre_tokens
from potstill.alignment.text_rule import MIN_OUTCOME_PROBABILITY, MIN_UNSEEN, UNSEEN_AGREEMENT
from potstill.alignment.text_rule_completions import Completions, Context, new_digest
from potstill.records import END, Chain
from potstill.tokenization import Tokenizer


def distributions(
    chain: Chain, student: Tokenizer, run: Completions | None = None, teacher: Tokenizer | None = None
) -> list[dict[int, float]]:
    """One distribution a position, the end included unless the chain stopped for length; empty: nothing is known."""
    content = chain.content
    ids = encode(student, content) + [student.eos] * (chain.stop != "length")
    rows = [{o: p for o, p in step.items() if p >= MIN_OUTCOME_PROBABILITY} for step in step_distributions(chain)]
    says = [*chain.tokens, END]
    starts = [start for start, _ in chain.spans] + [len(content)]
    stops = [stop for _, stop in chain.spans] + [len(content)]
    taken = [row.get(outcome, 0.0) for row, outcome in zip(rows, says, strict=False)]
    unseen = [max(0.0, 1.0 - sum(row.values())) for row in rows]
    branches = [list(branches_of(chain, step, row, student, run, teacher)) for step, row in enumerate(rows)]
    guesses = [guesses_of(chain, starts, step, row, unseen[step], student, run) for step, row in enumerate(rows)]
    pre_tokens = cut(student, content)  # (start in the content, first token) of each
    spans = encode_chain_text(chain, student.encoder)[1].tolist()
    result = []
    for j in range(len(ids)):
        current = max(k for k, (_, first) in enumerate(pre_tokens) if first <= j)
        opens = pre_tokens[current][1] == j and (
            j < len(ids) - 1 or pre_tokens[current][0] < len(content) or not content
        )
        start = pre_tokens[current][0] if opens else spans[j][0] if j < len(spans) else len(content)
        low = pre_tokens[current - 1][0] if opens and current else pre_tokens[current][0]
        high = pre_tokens[current + 1][0] if current + 1 < len(pre_tokens) else len(content)
        now = max((step for step in range(len(rows)) if starts[step] <= start), default=None)
        while now and starts[now - 1] == start:
            now -= 1
        if now is None:
            result.append({})
            continue
        weights = {now: 1.0}
        for step in range(now - 1, -1, -1):
            if stops[step] <= low or taken[step] <= 1e-9:
                break
            weights[step] = weights[step + 1] / taken[step]
        vote = voter(pre_tokens, student, ids, j, current, start)
        total = 0.0
        for step, w in weights.items():
            if guesses[step]:
                total += w * sum(branch[-1] for branch in guesses[step] if vote(branch) is not None)
            elif step < now:
                total += w * taken[step] * unseen[step] * UNSEEN_AGREEMENT
            else:
                total += unseen[now] * (1.0 if starts[now] >= start else UNSEEN_AGREEMENT)
        weight = taken[now]
        for step in range(now + 1, len(rows)):
            if not weight or starts[step - 1] >= high:
                break
            if not guesses[step]:
                weight = weight / (1 - unseen[step]) if unseen[step] < 1 else 0.0
            weights[step] = weight
            weight *= taken[step]
        votes = {ids[j]: weight}
        total += weight
        for step, weight in weights.items():
            for branch in branches[step] + (guesses[step] if step > now else []):
                token = vote(branch)
                if token is not None:
                    total += weight * branch[-1]
                if token not in (None, "open"):
                    votes[token] = votes.get(token, 0.0) + weight * branch[-1]
        result.append({token: mass / total for token, mass in votes.items() if mass > 0} if total > 0 else {})
    return result


def voter(pre_tokens, student, ids, j, current, start):
    """A function: a branch -> its token at a position; "open" if it may agree, and nothing more is known; or None."""

    def vote(branch):
        text, ended, known, apart, _ = branch
        written = known if known is not None else encode(student, text) + [student.eos] * ended
        if known is not None and leaves(pre_tokens, student, text, apart) > current:
            written = ids[: j + 1]
        if written[:j] == ids[:j] and len(written) > j:
            return written[j]
        return "open" if apart >= start and (known == [] or written == ids[: len(written)]) else None

    return vote


def branches_of(chain, step, row, student, run, teacher):
    """(text, whether it ends there, None or what is known of its tokens, where it leaves the chain's, probability)."""
    content, start = chain.content, (chain.spans[step][0] if step < len(chain.spans) else len(chain.content))
    for outcome, p in row.items():
        if outcome == (chain.tokens[step] if step < len(chain.tokens) else END):
            continue
        if outcome is END:
            yield content[:start], True, None, start, p
            continue
        apart = start
        for byte in outcome:
            if apart >= len(content) or content[apart] != byte:
                break
            apart += 1
        left, known = p, []
        texts = grow(chain, content[:start], outcome, apart, start, student, run, teacher)
        for text, ended, share in texts:
            yield text, ended, None, apart, p * share
            left -= p * share
        if not texts:
            cuts = boundaries(student, content[:start] + outcome, goes_on=True)
            begin = max([0, *(boundary for boundary in cuts if boundary <= start)])
            teacher_pre_tokens = None if teacher is None else get_pre_tokens(teacher)
            settled = get_pre_tokens(student).settled(content[begin:start], outcome, begin == 0, teacher_pre_tokens)
            known = encode(student, content[:begin]) + list(settled)
        if left > 1e-9:
            yield content[:start] + outcome, False, known, apart, left


def guesses_of(chain, starts, step, row, unseen, student, run):
    """Branches for what the teacher did not show: the text before the step, continued as other chains continue it."""
    if run is None or unseen < MIN_UNSEEN:
        return []
    content, start = chain.content, starts[step]
    cuts = [begin for begin, _ in cut(student, content)]
    k = max(k for k, begin in enumerate(cuts) if begin <= start)
    begin = cuts[k]
    last = content[max(begin, starts[step - 1]) : start] if step else b""
    context = Context(content[cuts[k - 1] : begin] if k else None, content[begin:start], last)
    found = []
    for rest, ended, share in run.unseen_endings(chain.question, context, row, not begin):
        apart = start
        for byte in rest:
            if apart >= len(content) or content[apart] != byte:
                break
            apart += 1
        found.append((content[:start] + rest, ended, None, apart, unseen * share))
    return found


def grow(chain, text, token, apart, start, student, run, teacher):
    """The texts that an outcome grows to, and their shares."""
    whole = text + token
    if in_answer(chain, start) and b"\n" in whole[start:]:
        return [(whole[: whole.index(b"\n", start)], True, 1.0)]
    finished = [boundary for boundary in boundaries(student, whole, goes_on=True) if boundary > apart]
    if finished:
        return [(whole[: finished[0]], False, 1.0)]
    if run is None:
        return []
    row = run.prefix_tree(chain.question).get(new_digest(whole).digest())
    texts = []
    if row:
        for outcome, p in row.items():
            share = p / sum(row.values())
            if outcome is END:
                texts.append((whole, True, share))
            elif outcome:
                longer = grow(chain, whole, outcome, apart, start, student, run, teacher)
                texts += [(grown, ended, share * s) for grown, ended, s in longer]
        return texts
    cuts = [0, *(boundary for boundary in boundaries(student, whole, goes_on=True) if boundary <= len(text))]
    context = Context(whole[cuts[-2] : cuts[-1]] if len(cuts) > 1 else None, whole[cuts[-1] :], token)
    for rest, ended, share in run.endings(chain.question, context):
        if teacher:
            ends = {0}
            for piece in encode(teacher, context.text + rest, inside=True):
                ends.add(max(ends) + len(teacher.token_bytes(piece)))
            if not {len(context.text) - len(token), len(context.text)} <= ends:
                continue
        texts.append((whole + rest, ended, share))
    return [(grown, ended, share / sum(share for *_, share in texts)) for grown, ended, share in texts]


def encode(tokenizer: Tokenizer, content: bytes, inside: bool = False) -> list[int]:
    text = content.decode("utf-8", "replace")
    if not inside:
        return tokenizer.encode(text).ids
    for letter in "abcdefghij":
        alone, ids = tokenizer.encode(letter).ids, tokenizer.encode(letter + text).ids
        if ids[: len(alone)] == alone:
            return ids[len(alone) :]
    raise AssertionError(f"every letter is joined to {text!r}")


def boundaries(tokenizer: Tokenizer, content: bytes, goes_on: bool = False) -> list[int]:
    """Whitespace after something visible, where the tokens of both sides are those of the whole; and in a text that
    goes on, where no piece whose beginning is the end of the text would then be written across it."""
    whole = encode(tokenizer, content)
    result = []
    for white in re.finditer(rb"[!-~\x80-\xff](?=[ \t\n\v\f\r])", content):
        position = white.end()
        if encode(tokenizer, content[:position]) + encode(tokenizer, content[position:], inside=True) != whole:
            continue
        if not goes_on or not any(begins(tokenizer, content, position, piece) for piece in crossing(tokenizer)):
            result.append(position)
    return result


def begins(tokenizer: Tokenizer, content: bytes, position: int, piece: bytes) -> bool:
    """Whether a text ends with the beginning of a piece, from before a position on, and would be written with it."""
    for missing in range(1, len(piece)):
        start = len(content) - (len(piece) - missing)
        if 0 <= start < position and content[start:] == piece[: len(piece) - missing]:
            return encode(tokenizer, content[:start] + piece)[-1] == tokenizer.vocabulary.find(piece)
    return False


@cache
def crossing(tokenizer: Tokenizer) -> list[bytes]:
    return [
        piece for piece in tokenizer.vocabulary.table if piece and re.search(rb"[!-~\x80-\xff][ \t\n\v\f\r]", piece)
    ]


def cut(tokenizer: Tokenizer, content: bytes) -> list[tuple[int, int]]:
    """Where each pre-token begins, and its first token; a pre-token without tokens belongs to the next."""
    result = [(0, 0)]
    for boundary in boundaries(tokenizer, content):
        first = len(encode(tokenizer, content[:boundary]))
        if first > result[-1][1]:
            result.append((boundary, first))
    return result


def leaves(pre_tokens: list[tuple[int, int]], tokenizer: Tokenizer, text: bytes, apart: int) -> int:
    """The pre-token of the chain in which a text leaves it: the last one that begins where one of the text does."""
    common = {0, *boundaries(tokenizer, text, goes_on=True)}
    return max(k for k, (start, _) in enumerate(pre_tokens) if start <= apart and start in common)


def in_answer(chain: Chain, start: int) -> bool:
    """Whether a position lies in the answer sentence that ends the text."""
    text = chain.content.decode("latin-1")
    answer = text.lower().find("answer is")
    ends = prompts.find_answer_end(text) == len(chain.content)
    return answer >= 0 and ends and start > answer and chain.stop != "length"
