"""Aligners of other projects for `alignment.py`, in their own environment.

    python -m venv ENV
    ENV/bin/pip install fastdtw spacy-alignments merge-tokenizers tokenizers numpy
    ENV/bin/pip install --no-deps trl==1.16.0

Reads a job (JSON) from standard input and prints seconds. Imports nothing of potstill. Of TRL, only the alignment
functions are taken from its files, so that its dependencies are not needed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.load(sys.stdin)
    try:
        print(json.dumps(JOBS[job["what"]](job)))
    except ImportError as fault:
        print(json.dumps({"missing": str(fault)}))
    except NotImplementedError as fault:
        print(json.dumps({"refused": str(fault).split(".")[0]}))


def merge_tokenizers(job: dict[str, Any]) -> dict[str, float]:
    from merge_tokenizers import DTWAligner
    from merge_tokenizers.types import TokenizedPair

    aligner = DTWAligner(distance_name="levenshtein")
    teacher_tokens, student_tokens = job["teacher"], job["student"]
    normalized = (
        [token.replace(" ", "") for token in teacher_tokens],
        [token.replace("▁", "") for token in student_tokens],
    )
    pair = TokenizedPair(
        tokens_a=teacher_tokens,
        tokens_b=student_tokens,
        preprocessed_tokens_a=normalized[0],
        preprocessed_tokens_b=normalized[1],
        text=job["text"],
    )
    return {"seconds": best(lambda: aligner._align_pair(pair), 3)}


def fastdtw(job: dict[str, Any]) -> dict[str, float]:
    from fastdtw import fastdtw as warp
    from rapidfuzz.distance import Levenshtein

    teacher_tokens, student_tokens = job["teacher"], job["student"]
    numbers = [[i] for i in range(len(teacher_tokens))], [[i] for i in range(len(student_tokens))]

    def distance(a: Any, b: Any) -> float:
        return Levenshtein.distance(
            teacher_tokens[min(int(a[0]), len(teacher_tokens) - 1)],
            student_tokens[min(int(b[0]), len(student_tokens) - 1)],
        )

    return {"seconds": best(lambda: warp(*numbers, dist=distance), 3)}


def spacy_alignments(job: dict[str, Any]) -> dict[str, float]:
    from spacy_alignments import get_alignments

    def align_all() -> None:
        for teacher_side, student_side in job["pairs"]:
            get_alignments(teacher_side, student_side)

    return {"seconds": best(align_all, 3)}


def trl_walk(job: dict[str, Any]) -> dict[str, float]:
    walk = functions_of("experimental/gold/gold_trainer.py", ["_align_by_byte_offsets"])["_align_by_byte_offsets"]

    def align_all() -> None:
        for teacher_side, student_side in job["pairs"]:
            walk(student_side, teacher_side)

    return {"seconds": best(align_all, 5)}


def trl_texts(job: dict[str, Any]) -> dict[str, float]:
    """Texts to aligned groups: both sides encoded with byte offsets, then the walk."""
    import tokenizers

    names = ["encode_with_byte_offsets", "_normalize_byte_offsets", "is_byte_level_tokenizer"]
    encode = functions_of("experimental/utils.py", names)["encode_with_byte_offsets"]
    walk = functions_of("experimental/gold/gold_trainer.py", ["_align_by_byte_offsets"])["_align_by_byte_offsets"]
    backends = [tokenizers.Tokenizer.from_file(path) for path in job["tokenizers"]]

    def align_all() -> None:
        teacher_side, student_side = (encode(backend, job["texts"]) for backend in backends)
        for (_, first), (_, second) in zip(teacher_side, student_side, strict=True):
            walk(second, first)

    return {"seconds": best(align_all, 2)}


JOBS = {
    "merge-tokenizers DTW in C": merge_tokenizers,
    "fastdtw": fastdtw,
    "spacy-alignments": spacy_alignments,
    "TRL 1.16 GOLD's walk": trl_walk,
    "TRL 1.16 GOLD, texts to groups": trl_texts,
}


def best(call: Any, times: int) -> float:
    """The least processor seconds of several calls, because other load only adds to the time."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def functions_of(file: str, names: list[str]) -> dict[str, Any]:
    """Functions (also static methods) from a file of TRL, without importing the file, with the helpers and constants that
    they use."""
    package = importlib.util.find_spec("trl")
    if package is None or package.origin is None:
        raise ImportError("trl")
    tree = ast.parse((Path(package.origin).parent / file).read_text())
    methods = [node for part in tree.body if isinstance(part, ast.ClassDef) for node in part.body]
    nodes: list[ast.stmt] = [node for node in (*tree.body, *methods) if defines(node) & set(names)]
    for _ in range(3):  # helpers of helpers
        used = {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}
        nodes += [node for node in tree.body if node not in nodes and defines(node) & used]
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list, node.returns = [], None
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
    namespace: dict[str, Any] = {"json": json}
    nodes.sort(key=lambda node: node.lineno)
    exec(compile(ast.Module(nodes, []), file, "exec"), namespace)
    return namespace


def defines(node: ast.stmt) -> set[str]:
    """The names that a function definition or an assignment defines."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    return (
        {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Assign)
        else set()
    )


if __name__ == "__main__":
    main()
