"""The same model folder and prompts, answered here and by lm-evaluation-harness: equal item by item?

    potstill run recipes/evaluate.yaml --set student=FOLDER --set name=mine      # its answers
    potstill export runs/mine --as lm-eval --out tasks                           # the same prompts as its tasks
    ENV/bin/lm_eval run --model hf --model_args pretrained=FOLDER,dtype=float32 --include_path tasks --tasks ... \\
        --device cpu --batch_size 1 --log_samples --output_path samples
    python benchmarks/against_lm_eval.py runs/mine samples

One JSON line a task: how many texts are equal; how many of the others begin with ours, which had run out of tokens (for
encoder-decoder models its limit is the prompt's length plus the tokens asked for); the rest item by item. Then how many
of the verdicts on their texts, which our grader gives, are those of ours. `graders.py` says how to make ENV; it needs
accelerate too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from potstill.evaluation import checkpoint
from potstill.grading import grade
from potstill.records import BASE


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", type=Path)
    asked.add_argument("samples", type=Path)
    told = asked.parse_args()
    for path in sorted(told.samples.rglob("samples_potstill_*.jsonl")):
        task = path.name.removeprefix("samples_potstill_").rpartition("_")[0]
        for file in sorted((told.run / "test" / "0").glob("*.greedy.jsonl")):
            format = file.name.removesuffix(".greedy.jsonl")
            if task.endswith(format.replace("-", "_")):
                compare(task, told.run, format, path)


def compare(task: str, run: Path, format: str, path: Path) -> None:
    ours = {row.question: row for row in checkpoint.read_predictions(run / "test", BASE, format)}
    counts = dict.fromkeys(("equal", "ours is its beginning, out of tokens", "different", "same verdict"), 0)
    different = []
    samples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for sample in samples:
        doc, theirs = sample["doc"], sample["resps"][0][0]
        mine = ours[doc["id"]]
        if mine.text.strip() == theirs.strip():
            counts["equal"] += 1
        elif mine.stop == "length" and theirs.strip().startswith(mine.text.strip()):
            counts["ours is its beginning, out of tokens"] += 1
        else:
            counts["different"] += 1
            different.append({"question": doc["id"], "ours": mine.text, "theirs": theirs, "stop": mine.stop})
        verdict = grade(theirs, doc["potstill_gold"], doc["potstill_task"], mine.stop)
        counts["same verdict"] += verdict.grade == mine.grade
    print(json.dumps({"name": f"texts beside lm-evaluation-harness; {task}", "n": len(samples), **counts}))
    for each in different:
        print(json.dumps(each, ensure_ascii=False))


if __name__ == "__main__":
    main()
