"""Random pairs of strings through alignment and transfer: nothing crashes, and what must hold holds.

    POTSTILL_DATA=... python benchmarks/fuzz.py --pairs 1000000 [--seed 0] [--start 0]

A pair is a teacher's tokens (bytes, not always UTF-8) and a tokenizer of a student: all of Unicode, broken characters,
nothing, white space only, names of special tokens, and now and then a line of 100 kB. Prints one JSON line at the end,
or where something does not hold the number of the pair, which says all that is needed to see it again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from potstill import tokenization
from potstill.alignment import align_pieces, dtw, spans
from potstill.alignment.cross_tokenizer import RULES, transfer
from potstill.alignment.text_rule_completions import completions
from potstill.records import END, Chain
from potstill.tokenization import Tokenizer

STUDENTS = ("t5", "mistral", "gpt2", "cl100k_base")
SPECIALS = ["<|endoftext|>", "</s>", "<unk>", "<pad>", "<s>", "[CLS]", "<extra_id_0>", "▁", "<0x0A>", "Ġ"]
WORDS = [
    " The",
    " answer",
    " is",
    "12",
    " 4",
    "$",
    ".",
    "1,300",
    " naïve",
    "×",
    " x",
    "\n",
    "\r\n",
    " ",
    "  ",
    "\t",
    "½",
    "ﬁ",
]
RANGES = [
    (0x20, 0x7E),
    (0, 0x1F),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x2000, 0x206F),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--pairs", type=int, default=2000)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--start", type=int, default=0)
    told = asked.parse_args()
    folder = Path(os.environ["POTSTILL_DATA"]) / "tokenizers"
    students = [tokenization.load_tokenizer(folder / name) for name in STUDENTS]
    begun = time.monotonic()
    for number in range(told.start, told.start + told.pairs):
        try:
            check(random.Random(f"{told.seed} {number}"), students, number)
        except BaseException:
            print(json.dumps({"name": "fuzz", "failed": number, "seed": told.seed}), flush=True)
            raise
        if (done := number + 1 - told.start) % 10_000 == 0 and done < told.pairs:
            print(json.dumps({"name": "fuzz", "so far": done}), flush=True)
    seconds = round(time.monotonic() - begun, 1)
    print(json.dumps({"name": "fuzz", "pairs": told.pairs, "seed": told.seed, "start": told.start, "seconds": seconds}))


def check(draw: random.Random, students: Sequence[Tokenizer], number: int) -> None:
    """One pair: the invariants of `spans`, `pieces`, `dtw` and of every rule."""
    long = number % 5000 == 4999
    tokens = teacher(draw, long)
    student = draw.choice(students)
    kind = draw.choice(RULES)
    chain = imagined(draw, tokens)
    told = {}
    if kind == "text" and draw.random() < 0.5:
        others = [imagined(draw, teacher(draw, False)), chain]
        told = {"completions": completions(others, student)}
        if draw.random() < 0.3:
            told["teacher"] = draw.choice(students)
    if kind == "paper" and long:
        kind = "span"
    holds(chain, student, transfer(chain, student, kind, **told))
    encoding = student.encode(chain.text)
    own = [student.vocabulary.bytes_of(token) for token in encoding.ids]
    whole(spans(chain.spans, encoding.spans), len(tokens), len(own))
    if not long:
        whole(align_pieces(tokens, own), len(tokens), len(own))
        if draw.random() < 0.1:
            warped = dtw([t.decode("latin-1") for t in tokens], [(t or b"").decode("latin-1") for t in own])
            assert len(warped.groups) == len(own) and warped.cost >= 0
            assert not tokens or not own or all(warped.groups), "every student token has its teacher's"


def teacher(draw: random.Random, long: bool) -> list[bytes]:
    """A teacher's tokens."""
    if long:
        word = draw.choice(["a", "é", " ", "12 ", "日本", "\u0301", " so"]).encode()
        return [word * (100_000 // len(word) // 50)] * 50
    how = draw.random()
    if how < 0.03:
        return []
    if how < 0.08:
        return [draw.choice([b" ", b"\n", b"\t", b"\r\n", "\u3000".encode()]) for _ in range(draw.randint(1, 6))]
    if how < 0.12:
        return [draw.choice(SPECIALS).encode() for _ in range(draw.randint(1, 4))]
    text = b"".join(_token(draw) for _ in range(draw.randint(1, 14)))
    cuts = sorted(draw.randint(0, len(text)) for _ in range(draw.randint(0, 10)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _token(draw: random.Random) -> bytes:
    how = draw.random()
    if how < 0.55:
        return draw.choice(WORDS).encode()
    if how < 0.6:
        return draw.choice(SPECIALS).encode()
    if how < 0.7:
        return draw.randbytes(draw.randint(1, 4))
    low, high = draw.choice(RANGES) if how < 0.95 else (0, 0x10FFFF)
    letters = [chr(draw.randint(low, high)) for _ in range(draw.randint(1, 4))]
    return "".join(letter for letter in letters if not 0xD800 <= ord(letter) <= 0xDFFF).encode()


def imagined(draw: random.Random, tokens: list[bytes]) -> Chain:
    """A chain with candidates at every step, the last one now and then known."""
    steps = []
    for token in [*tokens, END] if draw.random() < 0.5 else tokens:
        shown = [token, *(END if draw.random() < 0.1 else _token(draw) for _ in range(draw.randint(0, 3)))]
        shown = shown if draw.random() < 0.95 else shown[1:]
        parts = [draw.random() + 1e-9 for _ in shown]
        total = sum(parts) * draw.choice([1.0, 1.0, 1.3])
        steps.append([(what, math.log(part / total)) for what, part in zip(shown, parts, strict=True)])
    stop = draw.choice(["end", "end", "cut", "length"])
    return Chain.from_tokens(f"q{draw.randint(0, 1)}", 0, tokens, steps if draw.random() < 0.9 else [], stop)


def holds(chain: Chain, student: Tokenizer, target) -> None:
    ids = student.encode(chain.text).ids + [student.eos] * (chain.stop != "length")
    assert list(target.ids) == ids, "the tokenizer's own ids"
    assert len(target.kinds) == len(ids) == len(target.offsets) - 1
    for place in range(len(ids)):
        row = target.distribution(place)
        assert row and len(row) == target.offsets[place + 1] - target.offsets[place], "no token twice"
        assert all(0.0 < p <= 1.0 + 1e-9 for p in row.values()) and math.fsum(row.values()) <= 1.0 + 1e-9
        assert all(0 <= token < student.size for token in row)
        assert target.kind(place) != "hard" or row == {ids[place]: 1.0}
        assert (target.kind(place) == "end") == (place == len(ids) - 1 and chain.stop != "length")


def whole(chunks, own: int, theirs: int) -> None:
    """Every token of both sides lies in exactly one chunk, in order."""
    found = list(chunks)
    assert [token for chunk in found for token in chunk.teacher] == list(range(own))
    assert [token for chunk in found for token in chunk.student] == list(range(theirs))
    assert all(len(c.teacher) == len(c.student) == 1 for c in found if c.kind == "same")


if __name__ == "__main__":
    main()
