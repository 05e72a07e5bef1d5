"""Speed of the alignment and the transfer on GSM8K solutions, compared with other projects.

    POTSTILL_DATA=... python benchmarks/alignment.py [--peers ENV/bin/python] [--texts 1000]

Prints one JSON line for each case: name, ours, theirs, ratio (theirs / ours), unit, machine. Times are processor
seconds of one thread, the best of several runs. Peers run in their own environment, which `peers.py` describes; without
it their value is "not installed". The extra `compiled` is needed. For the targets, GSM8K has no teacher's
probabilities: the candidates are the likeliest successors in the set, with probabilities drawn so that most steps are
nearly certain (kept mass about 0.97).

    POTSTILL_DATA=... python benchmarks/alignment.py --memory 2000 20000

Prints the peak memory and the processor time of a process that reads these numbers of chains (eight a question) and makes
the targets of the first 256 of them, as the stage `align` does: rule `text`, p50k to T5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from peers import best
from potstill import models, tokenization
from potstill.alignment import compiled, dtw, spans, target_store
from potstill.alignment.coverage import Coverage
from potstill.alignment.cross_tokenizer import transfer
from potstill.alignment.text_rule_completions import completions
from potstill.recipe import parse_recipe
from potstill.records import END, Chain, Verdict
from potstill.stages import align
from potstill.storage import parquet
from potstill.tokenization import Tokenizer

PAIRS = ("p50k_base:t5", "cl100k_base:t5", "gpt2:mistral", "mistral:t5", "t5:cl100k_base")
CHAINS = 207_135  # of the paper
PEERS = Path(__file__).parent / "peers.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of the peers' environment")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--chains", type=int, default=30, help="chains a question, for the targets")
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    data = Path(os.environ["POTSTILL_DATA"])
    if args.one:
        measure_memory(data, int(args.one[0]), Path(args.one[1]))
        return
    for count in args.memory or ():
        memory(data, count)
    if args.memory:
        return
    texts = solutions(data, args.texts)
    time_warping(data, texts, args.peers)
    for pair in args.pairs:
        names = pair.split(":")
        teacher, student = (tokenization.load_tokenizer(data / "tokenizers" / name) for name in names)
        chunks_of_spans(pair, texts, teacher, student, args.peers)
        chunks_of_texts(pair, texts, teacher, student, [data / "tokenizers" / name for name in names], args.peers)
        targets(pair, texts, teacher, student, args.chains)


def solutions(data: Path, n: int) -> list[str]:
    texts = []
    for line in (data / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()[:n]:
        body, _, gold = re.sub(r"<<.*?>>", "", json.loads(line)["answer"]).partition("\n#### ")
        texts.append(f"{body}\nThe answer is {gold}")
    return texts


def time_warping(data: Path, texts: list[str], peers: str | None) -> None:
    """The published method on about 650 x 690 tokens."""
    teacher, student = (tokenization.load_tokenizer(data / "tokenizers" / name) for name in ("gpt2", "t5"))
    text = " ".join(texts[:14])
    teacher_tokens, student_tokens = [], []
    for tokenizer, into in ((teacher, teacher_tokens), (student, student_tokens)):
        pieces = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in tokenizer.encode(text).ids]
        into += pieces[:650] if tokenizer is teacher else [piece.replace(" ", "▁") for piece in pieces[:690]]
    name = f"dynamic time warping, {len(teacher_tokens)} x {len(student_tokens)}"
    ours = best(lambda: dtw(teacher_tokens, student_tokens), 7)
    plain_student_tokens = [piece.replace("▁", "").replace(" ", "") for piece in student_tokens]
    plain = best(lambda: plain_python_dtw(teacher_tokens, plain_student_tokens), 2)
    line(name, "plain Python", ours, plain, "s")
    compiled.dtw(teacher_tokens, student_tokens)  # compile
    line(f"{name}, compiled", "plain Python", best(lambda: compiled.dtw(teacher_tokens, student_tokens), 7), plain, "s")
    for peer in ("merge-tokenizers DTW in C", "fastdtw"):
        line(name, peer, ours, ask(peers, peer, teacher=teacher_tokens, student=student_tokens, text=text), "s")


def plain_python_dtw(teacher_tokens: list[str], student_tokens: list[str]) -> float:
    cost = [[math.inf] * (len(student_tokens) + 1) for _ in range(len(teacher_tokens) + 1)]
    cost[0][0] = 0.0
    for i, a in enumerate(teacher_tokens, 1):
        a = a.replace(" ", "")
        for j, b in enumerate(student_tokens, 1):
            before = min(cost[i - 1][j], cost[i][j - 1], cost[i - 1][j - 1])
            cost[i][j] = Levenshtein.distance(a, b) + before
    return cost[-1][-1]


def chunks_of_spans(pair: str, texts: list[str], teacher: Tokenizer, student: Tokenizer, peers: str | None) -> None:
    """Chunks of known token spans: text by text, and all texts in one call, with a mark after each text."""
    teacher_spans, student_spans = (
        [encoding.spans for encoding in tokenizer.encode_batch(texts)] for tokenizer in (teacher, student)
    )
    count = sum(map(len, student_spans))
    arrays = [(np.array(a), np.array(b)) for a, b in zip(teacher_spans, student_spans, strict=True)]
    single = best(lambda: [spans(a, b) for a, b in arrays], 5)
    compiled.spans(*arrays[0])  # compile
    single_compiled = best(lambda: [compiled.spans(a, b) for a, b in arrays], 5)
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
    joint = best(lambda: spans(*joined), 5)
    walk = ask(peers, "TRL 1.16 GOLD's walk", pairs=list(zip(teacher_spans, student_spans, strict=True)))
    line(
        f"spans to chunks, {pair}, text by text",
        "TRL 1.16 GOLD's walk",
        *rates(count, single, walk),
        "student tokens/s",
    )
    line(
        f"spans to chunks, {pair}, text by text, compiled",
        "TRL 1.16 GOLD's walk",
        *rates(count, single_compiled, walk),
        "student tokens/s",
    )
    line(
        f"spans to chunks, {pair}, all texts at once",
        "TRL 1.16 GOLD's walk",
        *rates(count, joint, walk),
        "student tokens/s",
    )
    words = [
        [[text.encode()[a:b].decode("utf-8", "replace") for a, b in side] for side in sides]
        for text, *sides in zip(texts, teacher_spans, student_spans, strict=True)
    ]
    other = ask(peers, "spacy-alignments", pairs=words)
    line(f"spans to chunks, {pair}, text by text", "spacy-alignments", *rates(count, single, other), "student tokens/s")


def chunks_of_texts(
    pair: str, texts: list[str], teacher: Tokenizer, student: Tokenizer, folders: list[Path], peers: str | None
) -> None:
    """Chunks of texts: both sides are encoded, then aligned; and the time of the encoding alone."""

    def encode_and_align() -> None:
        for a, b in zip(teacher.encode_batch(texts), student.encode_batch(texts), strict=True):
            spans(a.spans, b.spans)

    count = sum(len(encoding.ids) for encoding in student.encode_batch(texts))
    ours = best(encode_and_align, 3)
    files = [folder / "tokenizer.json" for folder in folders]
    name = f"texts to chunks, {pair}"
    if all(path.is_file() for path in files):
        other = ask(peers, "TRL 1.16 GOLD, texts to groups", texts=texts, tokenizers=list(map(str, files)))
    else:
        other = "not offered: tiktoken files"
    line(name, "TRL 1.16 GOLD, texts to groups", *rates(count, ours, other), "student tokens/s")
    encoding_only = best(lambda: student.encoder.library.encode_batch(texts, add_special_tokens=False), 3)
    line(name, "encode_batch of the student alone", *rates(count, ours, encoding_only), "student tokens/s")


def targets(pair: str, texts: list[str], teacher: Tokenizer, student: Tokenizer, share: int) -> None:
    """Chains to finished targets, rule `text`, completions included."""
    chains = chains_with_candidates(texts, teacher, share)
    for rule in ("text", "span"):
        start = time.process_time()
        context: dict[str, Any] = {}
        if rule == "text":
            context = {"completions": completions(chains, student), "teacher": teacher}
        completion_seconds = time.process_time() - start
        count = sum(len(transfer(chain, student, rule, **context)) for chain in chains)
        seconds = time.process_time() - start
        seconds_per_chain = seconds / len(chains)
        print(
            json.dumps(
                {
                    "name": f"texts and teacher tokens to targets, {pair}, rule {rule}",
                    "ours": round(count / seconds),
                    "theirs": 510_000 if rule == "text" else None,
                    "ratio": round(count / seconds / 510_000, 4) if rule == "text" else None,
                    "unit": "student tokens/s; theirs: the stretch goal, 3 x 0.17 M",
                    "microseconds a token": round(1e6 * seconds / count, 1),
                    "of it completions": round(1e6 * completion_seconds / count, 1),
                    "minutes for the paper's chains on 2 cores": round(seconds_per_chain * CHAINS / 2 / 60, 1),
                    "tokens a chain": round(count / len(chains), 1),
                    "machine": machine(),
                }
            ),
            flush=True,
        )


def memory(data: Path, count: int) -> None:
    """Print the peak memory of a process that aligns `count` chains."""
    with tempfile.TemporaryDirectory() as name:
        run_dir = Path(name)
        teacher = tokenization.load_tokenizer(data / "tokenizers" / "p50k_base")
        texts = solutions(data, 7000)

        def chains() -> Iterator[Chain]:
            for start in range(0, count, 400):
                begin = start % len(texts)
                for chain in chains_with_candidates(texts[begin : begin + min(400, count - start)], teacher, 8):
                    yield replace(chain, question=f"{start:07}-{int(chain.question[1:]):03}", source="teacher")

        parquet.write_chains(run_dir / "sample" / "chains.parquet", chains())
        keys = (chain.key for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet", candidates=False))
        verdicts = ((key, Verdict("right", "1")) for key in keys)
        parquet.write_verdicts(run_dir / "filter" / "verdicts.parquet", verdicts)
        command = [sys.executable, __file__, "--one", str(count), name]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps({"name": f"aligning, {count} chains", **result}), flush=True)


def measure_memory(data: Path, count: int, run_dir: Path) -> None:
    """Begin to align the chains of a run in this process, and print its memory and time."""
    recipe = parse_recipe(
        f"name: bench\nteacher: {{kind: openai, model: m}}\ntransfer: {{rule: text}}\n"
        f"student: {{tokenizer: {data / 'tokenizers' / 't5'}, shape: flan-t5-base}}\n",
        "bench.yaml",
    )
    tokenizer = models.tokenizer_from_recipe(recipe)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    blocks = align._all_blocks(run_dir, recipe, tokenizer, Coverage(tokenizer))
    arrays = target_store.join_blocks([next(blocks)])
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()[:12]
    row = {"peak MiB": round(peak), "MiB over the start": round(peak - before)}
    print(json.dumps(row | {"processor s": round(seconds, 1), "digest": digest}))


def chains_with_candidates(texts: list[str], teacher: Tokenizer, share: int) -> list[Chain]:
    """Texts as chains with artificial candidates; `share` chains for each question."""
    rows = [encoding.ids for encoding in teacher.encode_batch(texts)]
    successors: dict[int, Counter[int]] = defaultdict(Counter)
    for row in rows:
        for token, following in pairwise(row):
            successors[token][following] += 1
    draw = random.Random(7)
    chains = []
    for index, row in enumerate(rows):
        steps: list[list[Any]] = []
        pieces = teacher.split(row)
        for position, token in enumerate(row):
            probability = 1.0 - 10 ** -draw.uniform(0.3, 5.0) if draw.random() < 0.8 else draw.uniform(0.15, 0.7)
            others = (
                [other for other, _ in successors[row[position - 1]].most_common(6) if other != token][:4]
                if position
                else []
            )
            weights = [draw.random() ** 2 + 0.01 for _ in others]
            rest = 0.9 * (1.0 - probability)
            step: list[Any] = [(pieces[position], math.log(probability))]
            for other, weight in zip(others, weights, strict=True):
                candidate = teacher.vocabulary.candidate(other, position)
                if candidate is not None:
                    step.append((candidate, math.log(rest * weight / sum(weights))))
            steps.append(step)
        steps.append([(END, math.log(0.97)), (b".", math.log(0.02)), (b" dollars", math.log(0.005))])
        chains.append(Chain.from_tokens(f"q{index // share}", index % share, pieces, steps))
    return chains


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


def ask(python: str | None, case: str, **job: Any) -> float | str:
    """The seconds of a peer, or the reason why it has none."""
    if python is None:
        return "not installed"
    done = subprocess.run([python, str(PEERS)], input=json.dumps({"what": case, **job}), capture_output=True, text=True)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    answer = json.loads(done.stdout)
    if "seconds" in answer:
        return answer["seconds"]
    return f"not installed: {answer['missing']}" if "missing" in answer else f"refused: {answer['refused']}"


def machine() -> str:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}"


if __name__ == "__main__":
    main()
