"""The answer type `math`: expressions (sets, intervals, radicals, matrices, polynomials), compared by Math-Verify.

    >>> gold = parse_gold_expression("$\\\\boxed{12\\\\pi}$")
    >>> gold, extract_marked_expression(" 12\u03c0 square units.", gold), is_same_expression(gold, "12\\\\pi")
    ('12\\\\pi', '12\\\\pi', True)

Math-Verify (the extra `math`) runs in a worker process, which is stopped after `TIMEOUT_SECONDS`, because simplifying
an expression may never end. Expressions that are too long, too deeply nested or too large for an answer are not
compared. Equal texts are compared without the worker process.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from functools import lru_cache
from typing import Any, Final

from potstill import process
from potstill.errors import UserError
from potstill.grading import normalize

TIMEOUT_SECONDS: Final = 20.0
_MEMORY_BYTES: Final = 4 << 30
_MAX_CHARS: Final = 300
_MAX_DEPTH: Final = 12
_UNICODE: Final = {
    "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u22c5": "\\cdot ",
    "\u2264": "\\le ", "\u2265": "\\ge ", "\u00b2": "^2", "\u00b3": "^3", "\u222a": "\\cup ", "\u2229": "\\cap ",
    "\u00b1": "\\pm ", "\u00b0": "^\\circ ", "\u2208": "\\in ", "\u03b8": "\\theta ", "\u00a0": " ", "\u00f7": "/",
}  # fmt: skip
_TABLE: Final = str.maketrans(_UNICODE)
_ROOT = re.compile("\u221a\\s?(?:\\(([^()]*)\\)|([0-9]+|[a-z]))")
_BOXED = re.compile(r"\s*\\boxed\s*\{(.*)\}[\s.]*", re.DOTALL)
# A dollar sign inside a formula is escaped: "$\\$18.90$".
_IN_DOLLARS = re.compile(r"(?<!\\)\$((?:[^$\n\\]|\\[^\n]){1,300})\$|\\\(([^\n]{1,300}?)\\\)")
_ANOTHER = re.compile(r"\s?,?\s?or\s(?:[a-z]+\s)?(?:\$|\\\()")  # "$3$ or $4$"
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?![A-Za-z]*\()")
_WRAPPED = re.compile(r"\\(?:text|mathrm|operatorname|mbox|textbf|mathbf)\s?\{[^{}]*\}|\\(?:begin|end)\{[a-z]+\}")
_UNITS = re.compile(r"(?:\s+(?!or\b|and\b)[A-Za-z]{2,})+$")
_DECIMAL = re.compile(rf"[{normalize.STRIP_CHARS}]*\.[0-9]")  # ".35625", whose point is no period
_READABLE = re.compile(r"[0-9\\${}()\[\]\u03c0\u221a\u221e]|(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])")
_LETTERS_ONLY = re.compile(r"\s*[A-Za-z]+(?:\s[A-Za-z]+){0,2}\s*")
_PROSE = re.compile(
    r"\s*(?:correct|right|wrong|incorrect|below|above|clear|as follows|reasonable|known|given)\b", re.IGNORECASE
)
# Powers of powers, huge exponents and factorials of large numbers: no answer has them, and Math-Verify would not end.
_HUGE = re.compile(
    r"\^\s?\{?\s?-?[0-9]{4,}|\\binom\s?\{\s?[0-9]{4,}|[0-9]{4,}\s?!|!\s?!|\^[^\s+*/=,-]{0,40}\^[^\s+*/=,-]{0,40}\^|[0-9]{120,}"
)


def parse_gold_expression(gold: str) -> str | None:
    """The expression of a gold answer; None if it is empty. Raises UserError if the extra `math` is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        what = "the task math needs Math-Verify, which is not installed"
        hint = "pip install 'potstill[math]', or name another task"
        raise UserError(what, code="E-grade-missing-math", hint=hint)
    return _clean_expression(gold) or None


def extract_marked_expression(text: str, gold: str) -> str | None:
    """The marked expression in LaTeX; None if the text is not an expression."""
    boxed = _BOXED.fullmatch(text[:2000])
    line = boxed[1] if boxed else text[:2000].strip().split("\n")[0]
    if _PROSE.match(line):
        return None
    formula = None if boxed else _IN_DOLLARS.search(line)
    if formula and _ANOTHER.match(line, formula.end()):
        return line[formula.start() : formula.start() + 200]
    if formula:
        answer = formula[1] or formula[2]
    elif "\\" in line:
        answer = line
    else:
        answer = normalize.read_answer_sentence(line)
        answer = "." + answer if _DECIMAL.match(line) else answer
    if not _READABLE.search(answer) and not _LETTERS_ONLY.fullmatch(answer):
        return None
    return _clean_expression(answer) or None


def extract_unmarked_expression(text: str, gold: str) -> str | None:
    """The last formula of a text; if it has no formula, the answer in its last line."""
    formulas = list(_IN_DOLLARS.finditer(text, max(0, len(text) - 4000)))
    if formulas:
        return _clean_expression(formulas[-1][1] or formulas[-1][2]) or None
    last = normalize.read_last_line(text)
    return extract_marked_expression(last.rpartition("=")[2] if last.count("=") else last, gold)


def is_same_expression(gold: str, answer: str) -> bool:
    if _remove_spacing(gold) == _remove_spacing(answer):
        return True
    return _is_checkable(gold) and _is_checkable(answer) and compare_by_value(gold, answer)


def _clean_expression(text: str) -> str:
    """The expression without dollar signs, boxes, units and a final period; Unicode signs become LaTeX commands."""
    text = text[:2000].strip().translate(_TABLE)
    text = _ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    boxed = _BOXED.fullmatch(text.strip("$ "))
    text = boxed[1] if boxed else text
    text = re.sub(r"\\\[|\\\]|(?<!\\)\\\(|(?<!\\)\\\)|(?<!\\)\$|\\displaystyle", " ", text)
    text = " ".join(text.strip().rstrip(".").strip("*` ").split())
    bare = _UNITS.sub("", text)
    return bare if re.search(r"[0-9\\]", bare) else text


def _remove_spacing(text: str) -> str:
    return re.sub(r"\s+|\\left|\\right|\\!|\\,|\\;", "", text.replace("dfrac", "frac").replace("tfrac", "frac"))


def _is_checkable(text: str) -> bool:
    depth = deepest = 0
    for sign in text:
        depth += (sign in "{([") - (sign in "})]")
        deepest = max(deepest, depth)
    return len(text) <= _MAX_CHARS and deepest <= _MAX_DEPTH and _HUGE.search(text) is None and not _has_prose(text)


def _has_prose(text: str) -> bool:
    """Whether the text is a sentence that contains formulas; then no part of it is the answer."""
    return len(_WORDS.findall(_WRAPPED.sub("", text))) > 1 and re.search(r"[0-9\\]", text) is not None


@lru_cache(maxsize=1 << 14)
def compare_by_value(gold: str, answer: str) -> bool:
    return _WORKER.ask([gold, answer], TIMEOUT_SECONDS) is True


_WORKER: Final = process.WorkerProcess("potstill.grading.expressions")


def _serve_requests() -> None:
    """The worker's loop: compare pairs of expressions from standard input until the end of the input."""
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.set_int_max_str_digits(4300)
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr
    verify = _build_verifier()
    print("true", file=answers, flush=True)
    for line in sys.stdin:
        limit = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime + 2 * TIMEOUT_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))  # in case the parent never stops it
        print(json.dumps(verify(*json.loads(line))), file=answers, flush=True)


def _build_verifier() -> Any:
    import math_verify

    library: Any = math_verify  # Any: a timeout of None disables timeouts, but its annotations do not allow None
    latex_only = [library.LatexExtractionConfig()]  # the extractor of plain expressions would evaluate the text

    def equal(gold: str, answer: str) -> bool:
        try:
            sides = [
                library.parse(f"${text}$", latex_only, parsing_timeout=None, raise_on_error=False)
                for text in (gold, answer)
            ]
            return all(sides) and bool(library.verify(*sides, timeout_seconds=None, raise_on_error=False))
        except Exception:  # if the library fails on an expression, the expressions are not equal
            return False

    return equal


if __name__ == "__main__":
    _serve_requests()
