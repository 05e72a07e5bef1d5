"""Time and memory of every stage for one chain of 1k, 8k and 32k tokens.

    POTSTILL_DATA=... python benchmarks/long_chains.py [--tokens 1024 8192 32768] [--only transfer train]

Prints one JSON line for each part and length: part, tokens, seconds (processor seconds for one chain), MiB (the most memory
in use while the part ran, above what was in use before), status. At the end it prints a table. Its last column says by
what the time of a token grew from the shortest to the longest chain: 1.0 is linear. Each measurement has a process of its
own, one thread, and a limit (`--seconds`, `--gib`), beyond which the table says "over".

The chain is artificial: sentences with equations, whose numbers differ. Its teacher's tokens are GPT-2's, the student's are
T5's, and the teacher's candidates are drawn as in `alignment.py`. Models have random weights, two layers (`SHAPES`), and
the whole vocabulary of T5.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from potstill.records import Chain

TOKENS: Final = (1024, 8192, 32768)
WARM_TOKENS: Final = 128
TEACHER, STUDENT = "gpt2", "t5"
NAMES: Final = ("Tom", "Ann", "Maria", "Jack", "Olga", "Peter")
THINGS: Final = ("apples", "pens", "books", "stamps", "coins", "eggs")
PROMPT: Final = "Tom has 3 apples. He buys 4 more. How many apples does he have?"
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin with one of these")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of one measurement")
    parser.add_argument("--gib", type=float, default=8.0, help="limit of memory of one measurement")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    rows = []
    for name, prepare in PARTS.items():
        if name.startswith(tuple(args.only)):
            prepare(WARM_TOKENS)()  # what libraries prepare at the first use
            rows += [run_part(name, prepare, tokens, args.seconds, args.gib) for tokens in args.tokens]
    print("\n" + format_table(rows, args.tokens))


def run_part(name: str, prepare: Callable[[int], Work], tokens: int, seconds: float, gib: float) -> dict[str, Any]:
    """Measure a part in a process of its own, and print the result."""
    row: dict[str, Any] = {"part": name, "tokens": tokens, "seconds": None, "MiB": None, "status": "ok"}
    with contextlib.suppress(RuntimeError):  # the cache holds what the parts of this length share
        long_chain(tokens)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), int(gib * 2**30)))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        try:
            answer = measure(prepare(tokens))
        except (MemoryError, RuntimeError) as fault:
            is_memory = isinstance(fault, MemoryError) or "allocate" in str(fault)
            answer = {"status": f"over {gib:g} GiB" if is_memory else str(fault)[:200]}
        except Exception as fault:
            answer = {"status": f"{type(fault).__name__}: {fault}"[:200]}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    row |= json.loads(answer) if answer else {"status": f"over {seconds:g} s"}
    print(json.dumps(row), flush=True)
    return row


def measure(work: Work) -> dict[str, float]:
    """Processor seconds of the fastest of up to three runs, and the peak of memory of the first one."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use
    seconds, peak = [], 0
    while not seconds or (len(seconds) < 3 and sum(seconds) < 3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
        peak = memory("VmHWM") if len(seconds) == 1 else peak
    return {"seconds": round(min(seconds), 5), "MiB": round((peak - before) / 1024, 1)}


def memory(field: str) -> int:
    """A field of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def format_table(rows: list[dict[str, Any]], lengths: list[int]) -> str:
    """A row for each part: seconds and MiB at each length, and by what the time of a token grew."""
    head = "".join(f" {tokens} tokens, s | MiB |" for tokens in lengths)
    lines = [f"| part |{head} time of a token |", "|---|" + "---:|---:|" * len(lengths) + "---:|"]
    for part in dict.fromkeys(row["part"] for row in rows):
        cells, measured = [], []
        for tokens in lengths:
            row = next(row for row in rows if (row["part"], row["tokens"]) == (part, tokens))
            cells += [f"{row['seconds']:.3g}", f"{row['MiB']:.0f}"] if row["status"] == "ok" else [row["status"], ""]
            if row["status"] == "ok":
                measured.append(row["seconds"] / tokens)
        growth = f"x {measured[-1] / measured[0]:.1f}" if len(measured) == len(lengths) and measured[0] else ""
        lines.append(f"| {part} | {' | '.join(cells)} | {growth} |")
    return "\n".join(lines)


# The chain.


@functools.cache
def tokenizer(name: str) -> Any:
    from potstill import tokenization

    return tokenization.load_tokenizer(Path(os.environ["POTSTILL_DATA"]) / "tokenizers" / name)


def sentences(seed: int = 1) -> Any:
    draw = random.Random(seed)
    while True:
        name, thing, a, b = draw.choice(NAMES), draw.choice(THINGS), draw.randint(2, 999), draw.randint(2, 99)
        yield draw.choice(
            (
                f"{name} has {a} {thing} and buys {b} more, so there are {a} + {b} = {a + b} {thing}.",
                f"Each of the {b} boxes has {a} {thing}, which makes {b} * {a} = {a * b}.",
                f"Wait, that is not what the question asks. {name} gives away {b} of {a + b} {thing}: {a + b} - {b} = {a}.",
            )
        )


def long_text(tokens: int, seed: int = 1) -> str:
    """A solution of about so many tokens of the student."""
    lines, left, made = [], tokens - 8, sentences(seed)
    while left > 0:
        batch = [next(made) for _ in range(1 + left // 32)]
        lines += batch
        left -= sum(len(row.ids) for row in tokenizer(STUDENT).encode_batch(batch))
    return "\n".join(lines) + "\nThe answer is 7"


@functools.cache
def long_chain(tokens: int, seed: int = 1) -> Chain:
    """The chain with the teacher's tokens and five candidates at each."""
    from alignment import chains_with_candidates

    [chain] = chains_with_candidates([long_text(tokens, seed)], tokenizer(TEACHER), 1)
    return chain


# Parts. Each function prepares what is not measured, and returns what is.


def server_response(tokens: int) -> Work:
    from potstill.teachers.openai_api import chain_reader, response
    from potstill.teachers.openai_api.token_entries import ReaderContext

    chain = long_chain(tokens)
    content = [
        {
            "token": token.decode("utf-8", "replace"),
            "logprob": step[0][1],
            "bytes": list(token),
            "top_logprobs": [
                {"token": piece.decode("utf-8", "replace"), "logprob": value, "bytes": list(piece)}
                for piece, value in step
                if isinstance(piece, bytes)
            ],
        }
        for token, step in zip(chain.tokens, chain.candidates, strict=False)
    ]
    message = {"role": "assistant", "content": chain.text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": content}}
    body = json.dumps({"choices": [choice]}).encode()

    def read() -> None:
        [parsed] = response.decode_body(body).choices
        chain_reader.read_chain(parsed, "q", 0, ReaderContext(source="teacher", semantics="raw"))

    return read


def store_chains(tokens: int) -> Work:
    from potstill.storage import atomic, parquet, segments

    chain, folder = long_chain(tokens), Path(tempfile.mkdtemp())

    def store() -> None:
        with atomic.Appender(folder / segments.segment_name(segments.UNSHARDED)) as segment:
            segment.append_lines([segments.encode_chain(chain)])
        parquet.write_chains(folder / "chains.parquet", segments.merge_segments(folder))
        os.remove(folder / segments.segment_name(segments.UNSHARDED))

    return store


def read_chains(tokens: int) -> Work:
    from potstill.storage import parquet

    path = Path(tempfile.mkdtemp()) / "chains.parquet"
    parquet.write_chains(path, [long_chain(tokens)])
    return lambda: list(parquet.read_chains(path))


def grade(tokens: int) -> Work:
    from potstill import grading

    text = long_chain(tokens).text
    return lambda: grading.grade(text, "7", "gsm8k")


def filter_rules(tokens: int) -> Work:
    from potstill.data.chain_filter import ChainFilter, FilterRules

    text, other = long_chain(tokens).text, long_text(tokens, seed=2)
    rules = FilterRules(near_duplicate_threshold=0.9, script="latin", drop_wrong_equations=True)

    def judge() -> None:
        chain_filter = ChainFilter(rules)
        assert [chain_filter.drop_reason(each, True) for each in (text, other)] == [None, None]

    return judge


def insert_marks(tokens: int) -> Work:
    from potstill.alignment import rewrite

    return lambda: rewrite.prepare_chain(long_chain(tokens), {}, "insert")


def remove_marks(tokens: int) -> Work:
    from potstill.alignment import rewrite

    marked, _ = rewrite.prepare_chain(long_chain(tokens), {}, "insert")
    return lambda: rewrite.prepare_chain(marked, {}, "remove")


def rewrite_characters(tokens: int) -> Work:
    from potstill.alignment import rewrite

    return lambda: rewrite.prepare_chain(long_chain(tokens), {"*": "x", "s.": " ."}, None)


def rule(name: str) -> Callable[[int], Work]:
    def prepare(tokens: int) -> Work:
        from potstill.alignment.cross_tokenizer import transfer
        from potstill.alignment.text_rule_completions import completions

        chain, student = long_chain(tokens), tokenizer(STUDENT)
        student.encode("warm")

        def work() -> None:
            options: dict[str, Any] = {}
            if name == "text":
                options = {"completions": completions([chain], student), "teacher": tokenizer(TEACHER)}
            transfer(chain, student, name, **options)

        return work

    return prepare


def target_of(tokens: int) -> Any:
    from potstill.alignment.cross_tokenizer import transfer

    return transfer(long_chain(tokens), tokenizer(STUDENT), "span")


def store_targets(tokens: int) -> Work:
    import numpy as np

    from potstill.alignment import target_store

    chain, target, folder = long_chain(tokens), target_of(tokens), Path(tempfile.mkdtemp())

    def store() -> None:
        for name, array in target_store.pack_targets([(chain, target)]).items():
            np.save(folder / f"{name}.npy", array)

    return store


def read_targets(tokens: int) -> Work:
    from potstill.alignment import target_store

    chain = long_chain(tokens)
    store = store_targets(tokens)
    store()
    folder = next(cell.cell_contents for cell in store.__closure__ or () if isinstance(cell.cell_contents, Path))
    return lambda: target_store.TargetStore(folder).get(chain)


@functools.cache
def student(family: str, length: int) -> Any:
    from potstill import models

    names = tokenizer(STUDENT)
    return models.random_student(replace(SHAPES[family], vocabulary=names.size, length=length), names, seed=1)


def examples(family: str, tokens: int, chains: int = 1) -> list[Any]:
    from potstill.models import Example

    model, target = student(family, tokens + 256), target_of(tokens)
    return [Example(tuple(model.encode(PROMPT)), target, question="q", format="all")] * chains


def batch(family: str) -> Callable[[int], Work]:
    def prepare(tokens: int) -> Work:
        rows = examples(family, tokens)
        return lambda: student(family, tokens + 256).batch(rows)

    return prepare


def train(family: str, *, recompute: bool = False, chains: int = 1) -> Callable[[int], Work]:
    """A step: forward, backward, and AdamW. With two chains under a prompt, each has half of the tokens."""

    def prepare(tokens: int) -> Work:
        from potstill import training

        model, rows = student(family, tokens + 256), examples(family, tokens // chains, chains)
        if recompute:
            model.enable_gradient_checkpointing()
        schedule, optimizer = training.Schedule("constant", 1e-4), training.build_optimizer(model, 1e-4)
        settings: Any = {"first": 1, "last": 1, "schedule": schedule, "seed": 1}
        return lambda: list(training.train_steps(model, optimizer, lambda _: [rows], **settings))

    return prepare


def generate(family: str, temperature: float = 0.0, **options: Any) -> Callable[[int], Work]:
    """Generated tokens."""

    def prepare(tokens: int) -> Work:
        from potstill import inference
        from potstill.inference.transformers import TransformersEngine

        model = student(family, tokens + 256)
        engine = TransformersEngine(model)
        engine.end_tokens = (-1,)  # no text ends before its limit
        request = inference.Request(("q", 0), tuple(model.encode(PROMPT)))
        decode = inference.Decode(max_tokens=tokens, temperature=temperature, seed=1, **options)
        return lambda: engine.generate([request], decode)

    return prepare


def watch(kind: str) -> Callable[[int], Work]:
    """What looks at every generated token, without a model: the tokens of the chain, one by one."""

    def prepare(tokens: int) -> Work:
        from potstill.inference.sampling import AnswerDetector, CalculatorDecoding, RepeatDetector

        names = tokenizer(TEACHER)
        ids = names.encode(long_chain(tokens).text.replace("The answer is", "It is")).ids

        def token_bytes(token: int, position: int) -> bytes:
            return names.token_bytes(token)

        def work() -> None:
            if kind == "repeats":
                repeats, text = RepeatDetector(1, token_bytes), []
                for token in ids:
                    text.append(token)
                    repeats.add([0], [text])
            elif kind == "calculator":
                calculator = CalculatorDecoding(1, names, token_bytes)
                for position, token in enumerate(ids):
                    calculator.pending[0] = []
                    calculator.add(0, token, position)
            else:
                answers = AnswerDetector(1, token_bytes, "line" if kind == "answer line" else "sentence")
                for position, token in enumerate(ids):
                    answers.add(0, token, position)

        return work

    return prepare


def score(family: str) -> Callable[[int], Work]:
    """The log-probabilities of an existing chain."""

    def prepare(tokens: int) -> Work:
        from potstill import inference
        from potstill.inference.transformers import TransformersEngine

        model, text = student(family, tokens + 256), long_chain(tokens).text
        engine, request = TransformersEngine(model), inference.Request(("q", 0), tuple(model.encode(PROMPT)))
        return lambda: engine.score([request], [text], top_logprobs=5)

    return prepare


def _shapes() -> Mapping[str, Any]:
    from potstill.models import Shape

    causal = Shape("causal", 64, 2, 4, 192, 16, 1, kv_heads=2)
    return {"causal": causal, "t5": Shape("t5", 64, 2, 4, 128, 16, 1)}


SHAPES: Final = _shapes()
PARTS: Final[dict[str, Callable[[int], Work]]] = {
    "sample: local teacher, 5 log-probabilities": generate("causal", 1.0, top_logprobs=5, stop_at_answer="line"),
    "sample: score a chain": score("causal"),
    "sample: read a server's response": server_response,
    "sample: store": store_chains,
    "filter: read": read_chains,
    "filter: grade": grade,
    "filter: all rules": filter_rules,
    "align: insert calculator marks": insert_marks,
    "align: remove calculator marks": remove_marks,
    "align: rewrite characters": rewrite_characters,
    "align: rule one-hot": rule("one-hot"),
    "align: rule span": rule("span"),
    "align: rule text": rule("text"),
    "align: rule paper (dtw)": rule("paper"),
    "align: store targets": store_targets,
    "train: read targets": read_targets,
    "train: batch, causal": batch("causal"),
    "train: batch, T5": batch("t5"),
    "train: step, causal": train("causal"),
    "train: step, causal, activation checkpointing": train("causal", recompute=True),
    "train: step, causal, two chains of a prompt": train("causal", chains=2),
    "train: step, T5": train("t5"),
    "train: step, T5, activation checkpointing": train("t5", recompute=True),
    "evaluate: greedy tokens, causal": generate("causal"),
    "evaluate: greedy tokens, T5": generate("t5"),
    "evaluate: look for an answer line": watch("answer line"),
    "evaluate: look for an answer sentence": watch("answer sentence"),
    "evaluate: look for repeats": watch("repeats"),
    "evaluate: calculator": watch("calculator"),
}


if __name__ == "__main__":
    main()
