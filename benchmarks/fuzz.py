"""Random pairs of strings through alignment and transfer: nothing may crash, and all invariants must hold.

    POTSTILL_DATA=... python benchmarks/fuzz.py --pairs 1000000 [--seed 0] [--start 0]

A pair is a teacher's tokens (bytes, not always UTF-8) and a student's tokenizer. Texts contain all of Unicode, broken
characters, nothing, only white space, names of special tokens, and sometimes a line of 100 kB. Prints one JSON line at
the end; at a failure, the number of the pair, which reproduces it with `--start` and `--pairs 1`.
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
from typing import Any

from potstill import tokenization
from potstill.alignment import align_pieces, dtw, spans
from potstill.alignment.cross_tokenizer import RULES, transfer
from potstill.alignment.text_rule_completions import completions
from potstill.records import END, Chain, StopReason
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    args = parser.parse_args()
    folder = Path(os.environ["POTSTILL_DATA"]) / "tokenizers"
    students = [tokenization.load_tokenizer(folder / name) for name in STUDENTS]
    begun = time.monotonic()
    for number in range(args.start, args.start + args.pairs):
        try:
            check(random.Random(f"{args.seed} {number}"), students, number)
        except BaseException:
            print(json.dumps({"name": "fuzz", "failed": number, "seed": args.seed}), flush=True)
            raise
        if (done := number + 1 - args.start) % 10_000 == 0 and done < args.pairs:
            print(json.dumps({"name": "fuzz", "so far": done}), flush=True)
    seconds = round(time.monotonic() - begun, 1)
    print(json.dumps({"name": "fuzz", "pairs": args.pairs, "seed": args.seed, "start": args.start, "seconds": seconds}))


def check(draw: random.Random, students: Sequence[Tokenizer], number: int) -> None:
    """Check one pair: the invariants of `spans`, `align_pieces`, `dtw` and of a rule."""
    long = number % 5000 == 4999
    tokens = random_tokens(draw, long)
    student = draw.choice(students)
    rule = draw.choice(RULES)
    chain = random_chain(draw, tokens)
    context: dict[str, Any] = {}
    if rule == "text" and draw.random() < 0.5:
        others = [random_chain(draw, random_tokens(draw, False)), chain]
        context = {"completions": completions(others, student)}
        if draw.random() < 0.3:
            context["teacher"] = draw.choice(students)
    if rule == "paper" and long:
        rule = "span"
    check_target(chain, student, transfer(chain, student, rule, **context))
    encoding = student.encode(chain.text)
    pieces = [student.vocabulary.bytes_of(token) for token in encoding.ids]
    check_chunks(spans(chain.spans, encoding.spans), len(tokens), len(pieces))
    if not long:
        check_chunks(align_pieces(tokens, pieces), len(tokens), len(pieces))
        if draw.random() < 0.1:
            warped = dtw([t.decode("latin-1") for t in tokens], [(t or b"").decode("latin-1") for t in pieces])
            assert len(warped.groups) == len(pieces) and warped.cost >= 0
            assert not tokens or not pieces or all(warped.groups), "every student token has a teacher token"


def random_tokens(draw: random.Random, long: bool) -> list[bytes]:
    if long:
        word = draw.choice(["a", "é", " ", "12 ", "日本", "\u0301", " so"]).encode()
        return [word * (100_000 // len(word) // 50)] * 50
    kind = draw.random()
    if kind < 0.03:
        return []
    if kind < 0.08:
        return [draw.choice([b" ", b"\n", b"\t", b"\r\n", "\u3000".encode()]) for _ in range(draw.randint(1, 6))]
    if kind < 0.12:
        return [draw.choice(SPECIALS).encode() for _ in range(draw.randint(1, 4))]
    text = b"".join(random_token(draw) for _ in range(draw.randint(1, 14)))
    cuts = sorted(draw.randint(0, len(text)) for _ in range(draw.randint(0, 10)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def random_token(draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.55:
        return draw.choice(WORDS).encode()
    if kind < 0.6:
        return draw.choice(SPECIALS).encode()
    if kind < 0.7:
        return draw.randbytes(draw.randint(1, 4))
    low, high = draw.choice(RANGES) if kind < 0.95 else (0, 0x10FFFF)
    letters = [chr(draw.randint(low, high)) for _ in range(draw.randint(1, 4))]
    return "".join(letter for letter in letters if not 0xD800 <= ord(letter) <= 0xDFFF).encode()


def random_chain(draw: random.Random, tokens: list[bytes]) -> Chain:
    """A chain with candidates at every step, sometimes also after the last token."""
    steps = []
    for token in [*tokens, END] if draw.random() < 0.5 else tokens:
        shown = [token, *(END if draw.random() < 0.1 else random_token(draw) for _ in range(draw.randint(0, 3)))]
        shown = shown if draw.random() < 0.95 else shown[1:]
        parts = [draw.random() + 1e-9 for _ in shown]
        total = sum(parts) * draw.choice([1.0, 1.0, 1.3])
        steps.append([(candidate, math.log(part / total)) for candidate, part in zip(shown, parts, strict=True)])
    stops: list[StopReason] = ["end", "end", "cut", "length"]
    stop = draw.choice(stops)
    return Chain.from_tokens(f"q{draw.randint(0, 1)}", 0, tokens, steps if draw.random() < 0.9 else [], stop)


def check_target(chain: Chain, student: Tokenizer, target) -> None:
    ids = student.encode(chain.text).ids + [student.eos] * (chain.stop != "length")
    assert list(target.ids) == ids, "the ids of the tokenizer"
    assert len(target.kinds) == len(ids) == len(target.offsets) - 1
    for position in range(len(ids)):
        row = target.distribution(position)
        assert row and len(row) == target.offsets[position + 1] - target.offsets[position], "no token twice"
        assert all(0.0 < p <= 1.0 + 1e-9 for p in row.values()) and math.fsum(row.values()) <= 1.0 + 1e-9
        assert all(0 <= token < student.size for token in row)
        assert target.kind(position) != "hard" or row == {ids[position]: 1.0}
        assert (target.kind(position) == "end") == (position == len(ids) - 1 and chain.stop != "length")


def check_chunks(chunks, teacher_tokens: int, student_tokens: int) -> None:
    """Every token of both sides is in exactly one chunk, in order."""
    chunks = list(chunks)
    assert [token for chunk in chunks for token in chunk.teacher] == list(range(teacher_tokens))
    assert [token for chunk in chunks for token in chunk.student] == list(range(student_tokens))
    assert all(len(chunk.teacher) == len(chunk.student) == 1 for chunk in chunks if chunk.kind == "same")


if __name__ == "__main__":
    main()
