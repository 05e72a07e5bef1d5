"""Compare the answers of one model folder to the same prompts, here and in lm-evaluation-harness, item by item.

    potstill run recipes/evaluate.yaml --set student=FOLDER --set name=mine      # potstill's answers
    potstill export runs/mine --as lm-eval --to tasks                           # the same prompts as tasks
    ENV/bin/lm_eval run --model hf --model_args pretrained=FOLDER,dtype=float32 --include_path tasks --tasks ... \\
        --device cpu --batch_size 1 --log_samples --output_path samples
    python benchmarks/against_lm_eval.py runs/mine samples

Prints one JSON line for each task: how many texts are equal; how many other texts begin with potstill's, which had run
out of tokens (for encoder-decoder models the harness's limit is the prompt's length plus the requested tokens); how many
differ; and how often the verdicts on both texts, by potstill's grader, are equal. Then one line for each different
text. `graders.py` describes ENV, which also needs accelerate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from potstill.evaluation import checkpoint
from potstill.grading import grade
from potstill.records import BASE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("samples", type=Path)
    args = parser.parse_args()
    for path in sorted(args.samples.rglob("samples_potstill_*.jsonl")):
        task = path.name.removeprefix("samples_potstill_").rpartition("_")[0]
        for file in sorted((args.run / "test" / "0").glob("*.greedy.jsonl")):
            format = file.name.removesuffix(".greedy.jsonl")
            if task.endswith(format.replace("-", "_")):
                compare(task, args.run, format, path)


def compare(task: str, run: Path, format: str, path: Path) -> None:
    predictions = {row.question: row for row in checkpoint.read_predictions(run / "test", BASE, format, "greedy")}
    counts = dict.fromkeys(("equal", "ours is its beginning, out of tokens", "different", "same verdict"), 0)
    different = []
    samples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for sample in samples:
        doc, theirs = sample["doc"], sample["resps"][0][0]
        prediction = predictions[doc["id"]]
        if prediction.text.strip() == theirs.strip():
            counts["equal"] += 1
        elif prediction.stop == "length" and theirs.strip().startswith(prediction.text.strip()):
            counts["ours is its beginning, out of tokens"] += 1
        else:
            counts["different"] += 1
            different.append(
                {"question": doc["id"], "ours": prediction.text, "theirs": theirs, "stop": prediction.stop}
            )
        verdict = grade(theirs, doc["potstill_gold"], doc["potstill_task"], prediction.stop)
        counts["same verdict"] += verdict.grade == prediction.grade
    print(json.dumps({"name": f"texts beside lm-evaluation-harness; {task}", "n": len(samples), **counts}))
    for row in different:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
