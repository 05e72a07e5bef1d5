"""Graders of other projects for `grading.py`, in their own environment.

    python -m venv ENV
    ENV/bin/pip install lm_eval math-verify torch==2.13.0 --constraint constraints.txt

Reads a job (JSON: `what`, `pairs` of text, gold answer, task, answer type) from standard input. Prints which pairs the
grader calls right, its processor seconds, and how often it raised an error, which counts as not right. Imports nothing of
potstill. The filters of lm-evaluation-harness are read from its task files, and its stop strings are applied to the
texts first, as in its generation. Math-Verify looks for letters if the answer is a choice, otherwise for expressions.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

Pair = tuple[str, str, str, str]
# answer type -> a BBH task with suitable filters
LIKE = {"choice": "snarks", "list": "word_sorting", "brackets": "dyck_languages"}
PAIRS_OF_WORDS = {"yes": "navigate", "no": "navigate", "true": "boolean_expressions", "false": "boolean_expressions"}


def main() -> None:
    job = json.load(sys.stdin)
    try:
        grade = GRADERS[job["what"]]()
    except ImportError as fault:
        print(json.dumps({"missing": str(fault)}))
        return
    pairs = [tuple(pair) for pair in job["pairs"]]
    grade(pairs[0])
    start = time.process_time()
    right, errors = [], 0
    for pair in pairs:
        try:
            right.append(grade(pair))
        except Exception:
            right.append(False)
            errors += 1
    print(json.dumps({"right": right, "seconds": time.process_time() - start, "errors": errors}))


def authors() -> Any:
    """The rule of the paper's repository: the last unsigned number; for BBH the gold answer as a part of the text."""

    def grade(pair: Pair) -> bool:
        text, gold, task, _ = pair
        if task.startswith("bbh/"):
            return "the answer is" in text and gold in text.split("the answer is")[1]
        numbers, gold_numbers = (re.findall(r"\d*\.?\d+", value) for value in (text, gold))
        return not gold_numbers or (bool(numbers) and float(numbers[-1]) == float(gold_numbers[-1]))

    return grade


def math_verify() -> Any:
    from math_verify import StringExtractionConfig, parse, verify

    letters = [StringExtractionConfig(strings=tuple("ABCDEFGHIJKLMNOPQR"))]

    def read(text: str, form: str) -> Any:
        options: Any = {"parsing_timeout": None} | ({"extraction_config": letters} if form == "choice" else {})
        return parse(text, **options)

    def grade(pair: Pair) -> bool:
        text, gold, _, form = pair
        gold = gold.strip("()") if form == "choice" else f"${gold}$"
        return bool(verify(read(gold, form), read(text, form), timeout_seconds=None))

    return grade


def lm_eval(which: str) -> Any:
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters import build_filter_ensemble

    @functools.cache
    def task(name: str) -> tuple[Any, list[str], dict[str, Any]]:
        config = read_task(name)
        steps = next(filter["filter"] for filter in config["filter_list"] if filter["name"] == which)
        parts = [(step["function"], {k: v for k, v in step.items() if k != "function"} or None) for step in steps]
        metric = config["metric_list"][0]
        options = {k: v for k, v in metric.items() if k in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
        return build_filter_ensemble(which, parts), config["generation_kwargs"]["until"], options

    def grade(pair: Pair) -> bool:
        text, gold, name, form = pair
        ensemble, until, options = task(similar_task(name, form, gold))
        for stop in until:
            text = text.split(stop)[0]
        filtered = [[text]]
        for step in ensemble.filters:
            filtered = list(step().apply(filtered, [{"input": "", "target": gold}]))
        answer = filtered[0] if isinstance(filtered[0], str) else filtered[0][0]
        return bool(exact_match_hf_evaluate([answer], [gold], **options)["exact_match"])

    return grade


def similar_task(task: str, form: str, gold: str) -> str:
    """The task file whose filters fit the answer: of the same BBH task, of the same answer type, or of GSM8K."""
    if task.startswith("bbh/"):
        return f"bbh/cot_zeroshot/{task.removeprefix('bbh/')}.yaml"
    like = LIKE.get(form) or PAIRS_OF_WORDS.get(gold.lower())
    return f"bbh/cot_zeroshot/{like}.yaml" if like else "gsm8k/gsm8k-cot.yaml"


def read_task(name: str) -> dict[str, Any]:
    import yaml

    package = importlib.util.find_spec("lm_eval")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "tasks" / name

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: Any, node: Any) -> Any:
        module, _, attribute = node.value.partition(".")
        spec = importlib.util.spec_from_file_location(module, path.parent / f"{module}.py")
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, attribute)

    Loader.add_constructor("!function", function)
    config = yaml.load(path.read_text(), Loader)
    included = config.pop("include", None)
    return {**(yaml.load((path.parent / included).read_text(), Loader) if included else {}), **config}


GRADERS = {
    "lm-evaluation-harness, strict": lambda: lm_eval("strict-match"),
    "lm-evaluation-harness, flexible": lambda: lm_eval("flexible-extract"),
    "Math-Verify": math_verify,
    "the authors' rule": authors,
}

if __name__ == "__main__":
    main()
