"""How fast is alignment, and transfer behind it? On real GSM8K solutions, side by side with other projects.

    POTSTILL_DATA=... python benchmarks/alignment.py [--peers ENV/bin/python] [--texts 1000]

One JSON line a case: name, ours, theirs, ratio (theirs / ours), unit, machine. Times are processor seconds of one
thread, the best of some runs; peers run in an environment of their own (`peers.py` says how to make it) and are "not
installed" where they are absent. `text to targets` needs a teacher's probabilities, which GSM8K has not: candidates are
the likeliest successors in the set, their mass drawn so that most steps are nearly certain (kept mass about 0.97).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import subprocess
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from peers import best
from potstill import tokenization
from potstill.alignment import dtw, spans
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.text_rule_completions import completions
from potstill.records import END, Chain
from potstill.tokenization import Tokenizer

PAIRS = ("p50k_base:t5", "cl100k_base:t5", "gpt2:mistral", "mistral:t5", "t5:cl100k_base")
CHAINS = 207_135  # of the paper
PEERS = Path(__file__).parent / "peers.py"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--peers", help="the python of the peers' environment")
    asked.add_argument("--texts", type=int, default=1000)
    asked.add_argument("--pairs", nargs="+", default=PAIRS)
    asked.add_argument("--chains", type=int, default=30, help="chains a question, for the targets")
    told = asked.parse_args()
    data = Path(os.environ["POTSTILL_DATA"])
    texts = solutions(data, told.texts)
    warping(data, texts, told.peers)
    for pair in told.pairs:
        names = pair.split(":")
        teacher, student = (tokenization.load_tokenizer(data / "tokenizers" / name) for name in names)
        cut(pair, texts, teacher, student, told.peers)
        whole(pair, texts, teacher, student, [data / "tokenizers" / name for name in names], told.peers)
        targets(pair, texts, teacher, student, told.chains)


def solutions(data: Path, n: int) -> list[str]:
    found = []
    for line in (data / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:n]:
        body, _, gold = re.sub(r"<<.*?>>", "", json.loads(line)["answer"]).partition("\n#### ")
        found.append(f"{body}\nThe answer is {gold}")
    return found


def warping(data: Path, texts: list[str], peers: str | None) -> None:
    """The published method on about 650 x 690 tokens."""
    teacher, student = (tokenization.load_tokenizer(data / "tokenizers" / name) for name in ("gpt2", "t5"))
    text = " ".join(texts[:14])
    own, theirs = [], []
    for tokenizer, into in ((teacher, own), (student, theirs)):
        pieces = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in tokenizer.encode(text).ids]
        into += pieces[:650] if tokenizer is teacher else [piece.replace(" ", "▁") for piece in pieces[:690]]
    name = f"dynamic time warping, {len(own)} x {len(theirs)}"
    ours = best(lambda: dtw(own, theirs), 7)
    bare = [piece.replace("▁", "").replace(" ", "") for piece in theirs]
    line(name, "plain Python", ours, best(lambda: plain(own, bare), 1), "s")
    for peer in ("merge-tokenizers DTW in C", "fastdtw"):
        line(name, peer, ours, ask(peers, peer, teacher=own, student=theirs, text=text), "s")


def plain(own: list[str], theirs: list[str]) -> float:
    least = [[math.inf] * (len(theirs) + 1) for _ in range(len(own) + 1)]
    least[0][0] = 0.0
    for i, a in enumerate(own, 1):
        a = a.replace(" ", "")
        for j, b in enumerate(theirs, 1):
            near = min(least[i - 1][j], least[i][j - 1], least[i - 1][j - 1])
            least[i][j] = Levenshtein.distance(a, b) + near
    return least[-1][-1]


def cut(pair: str, texts: list[str], teacher: Tokenizer, student: Tokenizer, peers: str | None) -> None:
    """Token spans that are there already: one text a call, and all texts in one call, each closed by a mark."""
    own, theirs = ([one.spans for one in tokenizer.encode_batch(texts)] for tokenizer in (teacher, student))
    count = sum(map(len, theirs))
    arrays = [(np.array(a), np.array(b)) for a, b in zip(own, theirs, strict=True)]
    single = best(lambda: [spans(a, b) for a, b in arrays], 5)
    ends = np.cumsum([0, *(len(text.encode()) + 1 for text in texts)])
    joined = [
        np.concatenate(
            [
                np.concatenate([part + start, [[stop - 1, stop]]])
                for part, start, stop in zip(side, ends[:-1], ends[1:], strict=True)
            ]
        )
        for side in zip(*arrays, strict=True)
    ]
    at_once = best(lambda: spans(*joined), 5)
    walk = ask(peers, "TRL 1.16 GOLD's walk", pairs=list(zip(own, theirs, strict=True)))
    line(
        f"spans to chunks, {pair}, text by text",
        "TRL 1.16 GOLD's walk",
        *rates(count, single, walk),
        "student tokens/s",
    )
    line(
        f"spans to chunks, {pair}, all texts at once",
        "TRL 1.16 GOLD's walk",
        *rates(count, at_once, walk),
        "student tokens/s",
    )
    words = [
        [[text.encode()[a:b].decode("utf-8", "replace") for a, b in side] for side in sides]
        for text, *sides in zip(texts, own, theirs, strict=True)
    ]
    other = ask(peers, "spacy-alignments", pairs=words)
    line(f"spans to chunks, {pair}, text by text", "spacy-alignments", *rates(count, single, other), "student tokens/s")


def whole(
    pair: str, texts: list[str], teacher: Tokenizer, student: Tokenizer, folders: list[Path], peers: str | None
) -> None:
    """Texts to chunks: both sides encoded, then aligned; and what encoding alone takes."""

    def every() -> None:
        for a, b in zip(teacher.encode_batch(texts), student.encode_batch(texts), strict=True):
            spans(a.spans, b.spans)

    count = sum(len(one.ids) for one in student.encode_batch(texts))
    ours = best(every, 3)
    files = [folder / "tokenizer.json" for folder in folders]
    name = f"texts to chunks, {pair}"
    if all(path.is_file() for path in files):
        other = ask(peers, "TRL 1.16 GOLD, texts to groups", texts=texts, tokenizers=list(map(str, files)))
    else:
        other = "not offered: tiktoken files"
    line(name, "TRL 1.16 GOLD, texts to groups", *rates(count, ours, other), "student tokens/s")
    bare = best(lambda: student.encoder.library.encode_batch(texts, add_special_tokens=False), 3)
    line(name, "encode_batch of the student alone", *rates(count, ours, bare), "student tokens/s")


def targets(pair: str, texts: list[str], teacher: Tokenizer, student: Tokenizer, share: int) -> None:
    """Chains to finished targets, rule `text`, completions included."""
    chains = imagined(texts, teacher, share)
    for rule in ("text", "span"):
        start = time.process_time()
        told: dict[str, Any] = {}
        if rule == "text":
            told = {"completions": completions(chains, student), "teacher": teacher}
        made = time.process_time() - start
        count = sum(len(transfer(chain, student, rule, **told)) for chain in chains)
        seconds = time.process_time() - start
        each = seconds / len(chains)
        print(
            json.dumps(
                {
                    "name": f"texts and teacher tokens to targets, {pair}, rule {rule}",
                    "ours": round(count / seconds),
                    "theirs": 510_000 if rule == "text" else None,
                    "ratio": round(count / seconds / 510_000, 4) if rule == "text" else None,
                    "unit": "student tokens/s; theirs: the stretch goal, 3 x 0.17 M",
                    "microseconds a token": round(1e6 * seconds / count, 1),
                    "of it completions": round(1e6 * made / count, 1),
                    "minutes for the paper's chains on 2 cores": round(each * CHAINS / 2 / 60, 1),
                    "tokens a chain": round(count / len(chains), 1),
                    "machine": machine(),
                }
            ),
            flush=True,
        )


def imagined(texts: list[str], teacher: Tokenizer, share: int) -> list[Chain]:
    """Texts as chains of a teacher that might have said something else; `share` of them to a question."""
    rows = [one.ids for one in teacher.encode_batch(texts)]
    after: dict[int, Counter[int]] = defaultdict(Counter)
    for row in rows:
        for token, following in pairwise(row):
            after[token][following] += 1
    draw = random.Random(7)
    made = []
    for index, row in enumerate(rows):
        steps: list[list[Any]] = []
        pieces = teacher.split(row)
        for place, token in enumerate(row):
            own = 1.0 - 10 ** -draw.uniform(0.3, 5.0) if draw.random() < 0.8 else draw.uniform(0.15, 0.7)
            others = [other for other, _ in after[row[place - 1]].most_common(6) if other != token][:4] if place else []
            weights = [draw.random() ** 2 + 0.01 for _ in others]
            left = 0.9 * (1.0 - own)
            step: list[Any] = [(pieces[place], math.log(own))]
            for other, weight in zip(others, weights, strict=True):
                what = teacher.vocabulary.candidate(other, place)
                if what is not None:
                    step.append((what, math.log(left * weight / sum(weights))))
            steps.append(step)
        steps.append([(END, math.log(0.97)), (b".", math.log(0.02)), (b" dollars", math.log(0.005))])
        made.append(Chain.from_tokens(f"q{index // share}", index % share, pieces, steps))
    return made


def rates(count: int, ours: float, theirs: float | str) -> tuple[float, float | str]:
    return round(count / ours), round(count / theirs) if isinstance(theirs, float) else theirs


def line(name: str, peer: str, ours: float, theirs: float | str, unit: str) -> None:
    ratio: float | None = None
    if isinstance(theirs, int | float):
        ratio = round(theirs / ours if unit == "s" else ours / theirs, 3)
    row = {
        "name": f"{name}; {peer}",
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "unit": unit,
        "machine": machine(),
    }
    print(json.dumps(row), flush=True)


def ask(python: str | None, what: str, **job: Any) -> float | str:
    """Seconds of a peer, or why there are none."""
    if python is None:
        return "not installed"
    done = subprocess.run([python, str(PEERS)], input=json.dumps({"what": what, **job}), capture_output=True, text=True)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    told = json.loads(done.stdout)
    return (
        told["seconds"]
        if "seconds" in told
        else f"not installed: {told['missing']}"
        if "missing" in told
        else f"refused: {told['refused']}"
    )


def machine() -> str:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}"


if __name__ == "__main__":
    main()
