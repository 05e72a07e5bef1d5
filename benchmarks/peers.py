"""The other side of `alignment.py`: aligners of other projects, in an environment of their own.

    python -m venv ENV
    ENV/bin/pip install fastdtw spacy-alignments merge-tokenizers tokenizers numpy
    ENV/bin/pip install --no-deps trl==1.16.0

Reads a job (JSON) on its standard input and prints seconds. It imports nothing of potstill. Of TRL only the functions
of the alignment are run, taken from its files, so that none of its own dependencies is needed.
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
    own, theirs = job["teacher"], job["student"]
    clean = [token.replace(" ", "") for token in own], [token.replace("▁", "") for token in theirs]
    pair = TokenizedPair(
        tokens_a=own, tokens_b=theirs, preprocessed_tokens_a=clean[0], preprocessed_tokens_b=clean[1], text=job["text"]
    )
    return {"seconds": best(lambda: aligner._align_pair(pair), 3)}


def fastdtw(job: dict[str, Any]) -> dict[str, float]:
    from fastdtw import fastdtw as warp
    from rapidfuzz.distance import Levenshtein

    own, theirs = job["teacher"], job["student"]
    numbers = [[i] for i in range(len(own))], [[i] for i in range(len(theirs))]

    def distance(a: Any, b: Any) -> float:
        return Levenshtein.distance(own[min(int(a[0]), len(own) - 1)], theirs[min(int(b[0]), len(theirs) - 1)])

    return {"seconds": best(lambda: warp(*numbers, dist=distance), 3)}


def spacy_alignments(job: dict[str, Any]) -> dict[str, float]:
    from spacy_alignments import get_alignments

    def every() -> None:
        for own, theirs in job["pairs"]:
            get_alignments(own, theirs)

    return {"seconds": best(every, 3)}


def trl_walk(job: dict[str, Any]) -> dict[str, float]:
    walk = _functions("experimental/gold/gold_trainer.py", ["_align_by_byte_offsets"])["_align_by_byte_offsets"]

    def every() -> None:
        for own, theirs in job["pairs"]:
            walk(theirs, own)

    return {"seconds": best(every, 5)}


def trl_whole(job: dict[str, Any]) -> dict[str, float]:
    """Texts to aligned groups: both sides encoded with byte offsets, then the walk."""
    import tokenizers

    names = ["encode_with_byte_offsets", "_normalize_byte_offsets", "is_byte_level_tokenizer"]
    encode = _functions("experimental/utils.py", names)["encode_with_byte_offsets"]
    walk = _functions("experimental/gold/gold_trainer.py", ["_align_by_byte_offsets"])["_align_by_byte_offsets"]
    backends = [tokenizers.Tokenizer.from_file(path) for path in job["tokenizers"]]

    def every() -> None:
        own, theirs = (encode(backend, job["texts"]) for backend in backends)
        for (_, first), (_, second) in zip(own, theirs, strict=True):
            walk(second, first)

    return {"seconds": best(every, 2)}


JOBS = {
    "merge-tokenizers DTW in C": merge_tokenizers,
    "fastdtw": fastdtw,
    "spacy-alignments": spacy_alignments,
    "TRL 1.16 GOLD's walk": trl_walk,
    "TRL 1.16 GOLD, texts to groups": trl_whole,
}


def best(call: Any, times: int) -> float:
    """The least processor seconds of some calls: other work on the machine only ever adds."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def _functions(file: str, names: list[str]) -> dict[str, Any]:
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        raise ImportError("trl")
    tree = ast.parse((Path(found.origin).parent / file).read_text())
    wanted = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    # Whatever small helpers and constants those name at the top of the file come along.
    for _ in range(3):
        used = {name.id for one in wanted for name in ast.walk(one) if isinstance(name, ast.Name)}
        wanted += [
            node
            for node in tree.body
            if node not in wanted
            and (
                (isinstance(node, ast.FunctionDef) and node.name in used)
                or (
                    isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in used for t in node.targets)
                )
            )
        ]
    for node in wanted:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list, node.returns = [], None
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
    space: dict[str, Any] = {"json": json}
    wanted.sort(key=lambda node: node.lineno)
    exec(compile(ast.Module(wanted, []), file, "exec"), space)
    return space


if __name__ == "__main__":
    main()
