"""Generation for evaluation: tokens a second of CPU time, ours beside transformers' `generate` (batches of 16, fp32).

    python benchmarks/generation.py --data FOLDER [--cases small base student student-causal] [--questions 16]
    python benchmarks/generation.py --data FOLDER --cases base --engines ctranslate2 --samples 8      # a part of it

One JSON line a case: `small` and `base` are FlanT5 shapes with random weights, the real tokenizer and GSM8K prompts
with four demonstrations, every text as long as `--tokens`; `student` and `student-causal` are the package's models on
their own questions, at the lengths that they write; `lengths` are those of the greedy texts, so both can be seen.
`ours` and `theirs` are tokens a second of CPU time of one thread; `equal` is how many greedy texts are the same, token
by token. For n samples a question `theirs` is what n single calls would give, from the measured cost of one; 1 is
always measured. Without CTranslate2 its lines are left out. Every part measures `generate` for itself, so that parts
may run at different times.
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
from potstill.inference.kv_cache import pad_prompts
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
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", type=Path, default=os.environ.get("POTSTILL_DATA"))
    asked.add_argument("--cases", nargs="+", default=["student", "student-causal", "small", "base"])
    asked.add_argument("--engines", nargs="+", choices=KINDS, default=KINDS)
    asked.add_argument("--questions", type=int, default=BATCH, help="of the large shapes")
    asked.add_argument("--own", type=int, default=200, help="questions of the package's models")
    asked.add_argument("--tokens", type=int, default=32, help="length of the large shapes' texts")
    asked.add_argument("--samples", nargs="*", type=int, default=[8, 40])
    told = asked.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for case in told.cases:
        if case in ("small", "base"):
            tokenizer = tokenization.load_tokenizer(Path(told.data) / "tokenizers" / "t5")
            student = models.random_student(SHAPES[f"flan-t5-{case}"], tokenizer, 0)
            texts, most = solved_prompts(Path(told.data), told.questions), told.tokens
        else:
            student = models.open_student(TOY_MODELS[case])
            texts, most = own_prompts(told.own), 64
        rows = [tuple(student.encode(student.render(text))) for text in texts]
        measure(case, student, rows, most, told.samples, told.engines)


def measure(
    case: str,
    student: Student,
    rows: Sequence[tuple[int, ...]],
    most: int,
    samples: Sequence[int],
    kinds: Sequence[EngineKind],
) -> None:
    student.eval()
    generate(student, rows[:2], 2)  # what is only made once
    theirs, spent = timed(lambda: generate(student, rows, most))
    length = sum(map(len, rows)) / len(rows)
    about = {"questions": len(rows), "prompt": round(length), "machine": platform.processor() or platform.machine()}
    written = sum(map(len, theirs))
    rate = written / spent
    lengths = sorted(map(len, theirs))
    about["lengths"] = f"{lengths[0]} to {lengths[-1]}"
    for kind in kinds:
        if kind != "transformers" and importlib.util.find_spec("ctranslate2") is None:
            continue
        engine = inference.open_engine(student, kind)
        write(engine, rows[:2], 2, 1)
        texts, own = timed(lambda engine=engine: write(engine, rows, most, 1))
        ours = [len(text.ids) + (text.stop == "end") for text in texts]
        equal = sum(list(text.ids) == row[: len(text.ids)] for text, row in zip(texts, theirs, strict=True))
        told(case, kind, 1, sum(ours) / own, rate, {**about, "tokens": sum(ours), "equal": f"{equal} of {len(rows)}"})
        for number in samples:
            texts, own = timed(lambda engine=engine, number=number: write(engine, rows, most, number))
            count = sum(len(text.ids) + (text.stop == "end") for text in texts)
            told(case, kind, number, count / own, rate, {**about, "tokens": count})


def told(case: str, kind: EngineKind, samples: int, ours: float, theirs: float, about: dict[str, object]) -> None:
    row = {"name": f"generation {case}", "engine": kind, "samples": samples, "ours": round(ours, 1)}
    row |= {"theirs": round(theirs, 1), "ratio": round(ours / theirs, 2), "unit": "tokens / s of CPU", **about}
    print(json.dumps(row), flush=True)


def timed(what: Callable[[], list]) -> tuple[list, float]:
    before = time.process_time()
    made = what()
    return made, time.process_time() - before


def write(engine: Engine, rows: Sequence[tuple[int, ...]], most: int, samples: int) -> list[Generation]:
    """As evaluation does it: batches by length and budget. The texts in the order of the rows."""
    asked = [Request((str(place), index), row) for place, row in enumerate(rows) for index in range(samples)]
    found: dict[inference.SampleKey, Generation] = {}
    for batch in batch_requests(asked, BUDGET, max_tokens=most):
        own = [asked[index] for index in batch]
        for text in engine.generate(own, Decode(max_tokens=most, temperature=0.0 if samples == 1 else 0.7)):
            found[text.key] = text
    return [found[request.key] for request in asked]


def generate(student: Student, rows: Sequence[tuple[int, ...]], most: int) -> list[list[int]]:
    """The library's loop, in the order of the questions; ids with the end token."""
    made, end = [], student.tokenizer.eos
    causal = student.family == "causal"
    for start in range(0, len(rows), BATCH):
        ids, mask = pad_prompts(rows[start : start + BATCH], student.tokenizer.pad, left=causal, device=student.device)
        with torch.no_grad():
            whole = student.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=most,
                eos_token_id=end,
                pad_token_id=student.tokenizer.pad,
            )
        for row in whole[:, ids.shape[1] if causal else 1 :].tolist():
            made.append(row[: row.index(end) + 1] if end in row else row)
    return made


def solved_prompts(data: Path, count: int) -> list:
    """GSM8K's first test questions behind its first four training questions with their solutions."""
    train, test = (read(data / "gsm8k" / f"{split}.jsonl") for split in ("train", "test"))
    shown = []
    for row in train[:4]:
        rationale, _, gold = row["answer"].partition("####")
        shown.append(prompts.Demonstration(row["question"], gold.strip(), rationale.strip()))
    form = prompts.FORMATS["few-shot-rationale"]
    return [prompts.build_prompt(row["question"], form, shown) for row in test[:count]]


def own_prompts(count: int) -> list:
    with TemporaryDirectory() as folder:
        demo.copy_data(Path(folder))
        rows = read(Path(folder) / "sets" / "steps.jsonl")[:count]
    return [prompts.build_prompt(row["question"], prompts.FORMATS["zero-shot-rationale"]) for row in rows]


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
