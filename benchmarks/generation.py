"""Speed of generation for evaluation, compared with transformers' `generate` in batches of 16 (float32).

    python benchmarks/generation.py --data FOLDER [--cases small base student student-causal] [--questions 16]
    python benchmarks/generation.py --data FOLDER --cases base --engines ctranslate2 --samples 8      # a part of it

Cases `small` and `base` are FlanT5 shapes with random weights, the T5 tokenizer and GSM8K prompts with four
demonstrations; every text has `--tokens` tokens. `student` and `student-causal` are toy models on the demo's questions,
with texts of natural lengths.

Prints one JSON line for each case, engine and number of samples. `ours` and `theirs` are tokens per second of CPU time on one
thread; `lengths` are those of the greedy texts; `equal` counts greedy texts with the same tokens. For n samples a
question, `theirs` is the rate of n single calls, calculated from one call; one sample is always measured. Without
CTranslate2 its lines are left out. Each call of this program measures `generate` itself, so cases can be run separately.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from potstill import demo, inference, models, prompts, tokenization
from potstill.inference import Decode, Engine, EngineKind, Generation, Request, batch_requests
from potstill.inference.kv_cache import read_prompts
from potstill.models import SHAPES, Student

BATCH = 16  # rows of a call of `generate`
BUDGET = 16384  # tokens of a batch of ours, a recipe's default
KINDS: tuple[EngineKind, ...] = ("transformers", "ctranslate2", "ctranslate2-int8")

ROOT = Path(__file__).parent.parent
TOY_MODELS = {
    path.name: path
    for folder in ("src/potstill/demo/models", "tools/toy_models/models")
    for path in sorted((ROOT / folder).iterdir())
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTSTILL_DATA"))
    parser.add_argument("--cases", nargs="+", default=["student", "student-causal", "small", "base"])
    parser.add_argument("--engines", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--questions", type=int, default=BATCH, help="number of questions for the FlanT5 shapes")
    parser.add_argument("--own", type=int, default=200, help="number of questions for the toy models")
    parser.add_argument("--tokens", type=int, default=32, help="length of the texts of the FlanT5 shapes")
    parser.add_argument("--samples", nargs="*", type=int, default=[8, 40])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for case in args.cases:
        if case in ("small", "base"):
            tokenizer = tokenization.load_tokenizer(Path(args.data) / "tokenizers" / "t5")
            student = models.random_student(SHAPES[f"flan-t5-{case}"], tokenizer, 0)
            texts, max_tokens = few_shot_prompts(Path(args.data), args.questions), args.tokens
        else:
            student = models.open_student(TOY_MODELS[case])
            texts, max_tokens = toy_prompts(args.own), 64
        rows = [tuple(student.encode(student.render(text))) for text in texts]
        measure(case, student, rows, max_tokens, args.samples, args.engines)


def measure(
    case: str,
    student: Student,
    rows: Sequence[tuple[int, ...]],
    max_tokens: int,
    samples: Sequence[int],
    kinds: Sequence[EngineKind],
) -> None:
    student.eval()
    generate(student, rows[:2], 2)  # warm-up
    reference, seconds = timed(lambda: generate(student, rows, max_tokens))
    length = sum(map(len, rows)) / len(rows)
    about = {"questions": len(rows), "prompt": round(length), "machine": platform.processor() or platform.machine()}
    rate = sum(map(len, reference)) / seconds
    lengths = sorted(map(len, reference))
    about["lengths"] = f"{lengths[0]} to {lengths[-1]}"
    for kind in kinds:
        if kind != "transformers" and importlib.util.find_spec("ctranslate2") is None:
            continue
        engine = inference.open_engine(student, kind)
        write(engine, rows[:2], 2, 1)
        texts, seconds = timed(lambda engine=engine: write(engine, rows, max_tokens, 1))
        count = sum(len(text.ids) + (text.stop == "end") for text in texts)
        equal = sum(list(text.ids) == row[: len(text.ids)] for text, row in zip(texts, reference, strict=True))
        print_row(case, kind, 1, count / seconds, rate, {**about, "tokens": count, "equal": f"{equal} of {len(rows)}"})
        for number in samples:
            texts, seconds = timed(lambda engine=engine, number=number: write(engine, rows, max_tokens, number))
            count = sum(len(text.ids) + (text.stop == "end") for text in texts)
            print_row(case, kind, number, count / seconds, rate, {**about, "tokens": count})


def print_row(case: str, kind: EngineKind, samples: int, ours: float, theirs: float, about: dict[str, object]) -> None:
    row = {"name": f"generation {case}", "engine": kind, "samples": samples, "ours": round(ours, 1)}
    row |= {"theirs": round(theirs, 1), "ratio": round(ours / theirs, 2), "unit": "tokens / s of CPU", **about}
    print(json.dumps(row), flush=True)


def timed(call: Callable[[], list]) -> tuple[list, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def write(engine: Engine, rows: Sequence[tuple[int, ...]], max_tokens: int, samples: int) -> list[Generation]:
    """Generate as evaluation does, in batches by length and budget. Returns the texts in the order of the rows."""
    requests = [Request((str(number), index), row) for number, row in enumerate(rows) for index in range(samples)]
    texts: dict[inference.SampleKey, Generation] = {}
    for batch in batch_requests(requests, BUDGET, max_tokens=max_tokens):
        for text in engine.generate(
            [requests[index] for index in batch],
            Decode(max_tokens=max_tokens, temperature=0.0 if samples == 1 else 0.7),
        ):
            texts[text.key] = text
    return [texts[request.key] for request in requests]


def generate(student: Student, rows: Sequence[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """transformers' loop: the ids of each text with the end token, in the order of the questions."""
    texts, end = [], student.tokenizer.eos
    causal = student.family == "causal"
    for start in range(0, len(rows), BATCH):
        ids, mask = read_prompts(student, rows[start : start + BATCH], left=causal)
        with torch.no_grad():
            output = student.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_tokens,
                eos_token_id=end,
                pad_token_id=student.tokenizer.pad,
            )
        for row in output[:, ids.shape[1] if causal else 1 :].tolist():
            texts.append(row[: row.index(end) + 1] if end in row else row)
    return texts


def few_shot_prompts(data: Path, count: int) -> list:
    """GSM8K's first test questions after its first four training questions with their solutions."""
    train, test = (read(data / "gsm8k" / f"{split}.jsonl") for split in ("train", "test"))
    demonstrations = []
    for row in train[:4]:
        rationale, _, gold = row["answer"].partition("####")
        demonstrations.append(prompts.Demonstration(row["question"], gold.strip(), rationale.strip()))
    form = prompts.FORMATS["few-shot-rationale"]
    return [prompts.build_prompt(row["question"], form, demonstrations) for row in test[:count]]


def toy_prompts(count: int) -> list:
    with TemporaryDirectory() as folder:
        demo.copy_data(Path(folder))
        rows = read(Path(folder) / "sets" / "steps.jsonl")[:count]
    return [prompts.build_prompt(row["question"], prompts.FORMATS["zero-shot-rationale"]) for row in rows]


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
