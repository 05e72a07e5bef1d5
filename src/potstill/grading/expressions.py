"""Symbolic: answers that are expressions (sets, intervals, radicals, matrices, polynomials), compared by Math-Verify.

>>> gold = parse_gold_expression("$\\\\boxed{12\\\\pi}$")
>>> gold, extract_marked_expression(" 12\u03c0 square units.", gold), is_same_expression(gold, "12\\\\pi")
('12\\\\pi', '12\\\\pi', True)

Math-Verify (the extra `math`) works in a process of its own, which is ended after `SECONDS`: an expression may take
forever to simplify. What is too long, too deep or too large for any answer is not given to it. Equal texts need no
process.
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
_IN_DOLLARS = re.compile(r"\$([^$\n]{1,300})\$|\\\(([^\n]{1,300}?)\\\)")
_ANOTHER = re.compile(r"\s?,?\s?or\s(?:[a-z]+\s)?(?:\$|\\\()")  # "$3$ or $4$"
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?![A-Za-z]*\()")
_WRAPPED = re.compile(r"\\(?:text|mathrm|operatorname|mbox|textbf|mathbf)\s?\{[^{}]*\}|\\(?:begin|end)\{[a-z]+\}")
_UNITS = re.compile(r"(?:\s+(?!or\b|and\b)[A-Za-z]{2,})+$")
_READABLE = re.compile(r"[0-9\\${}()\[\]\u03c0\u221a\u221e]|(?<![A-Za-z'])[A-Za-z](?![A-Za-z'])")
_LETTERS_ONLY = re.compile(r"\s*[A-Za-z]+(?:\s[A-Za-z]+){0,2}\s*")
_PROSE = re.compile(
    r"\s*(?:correct|right|wrong|incorrect|below|above|clear|as follows|reasonable|known|given)\b", re.IGNORECASE
)
# What no answer has, and what would keep algebra busy: powers of powers, huge exponents, factorials of large numbers.
_HUGE = re.compile(
    r"\^\s?\{?\s?-?[0-9]{4,}|\\binom\s?\{\s?[0-9]{4,}|[0-9]{4,}\s?!|!\s?!|\^[^\s+*/=,-]{0,40}\^[^\s+*/=,-]{0,40}\^|[0-9]{120,}"
)


def parse_gold_expression(gold: str) -> str | None:
    """The expression of a gold answer, None where it is empty. Raises UserError where the extra `math` is missing."""
    if importlib.util.find_spec("math_verify") is None:
        hint = "pip install 'potstill[math]', or name another task"
        raise UserError("the task math needs Math-Verify, which is not installed", hint=hint)
    return _clean_expression(gold) or None


def extract_marked_expression(text: str, target: str) -> str | None:
    """What a mark marks, as LaTeX, None where it is no expression."""
    boxed = _BOXED.fullmatch(text[:2000])
    line = boxed[1] if boxed else text[:2000].strip().split("\n")[0]
    if _PROSE.match(line):
        return None
    inside = None if boxed else _IN_DOLLARS.search(line)
    if inside and _ANOTHER.match(line, inside.end()):
        return line[inside.start() : inside.start() + 200]
    own = (inside[1] or inside[2]) if inside else line if "\\" in line else normalize.read_answer_sentence(line)
    if not _READABLE.search(own) and not _LETTERS_ONLY.fullmatch(own):
        return None
    return _clean_expression(own) or None


def extract_unmarked_expression(text: str, target: str) -> str | None:
    """The last formula of a text, else what its last line says."""
    found = list(_IN_DOLLARS.finditer(text, max(0, len(text) - 4000)))
    if found:
        return _clean_expression(found[-1][1] or found[-1][2]) or None
    last = normalize.read_last_line(text)
    return extract_marked_expression(last.rpartition("=")[2] if last.count("=") else last, target)


def is_same_expression(gold: str, found: str) -> bool:
    return _remove_spacing(gold) == _remove_spacing(found) or (
        _is_checkable(gold) and _is_checkable(found) and _is_equal(gold, found)
    )


def format_expression(value: str) -> str:
    return value[:200]


def _clean_expression(text: str) -> str:
    """An expression without dollars, boxes, units and its final period, its signs those of LaTeX."""
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
    """Whether words stand between the signs: then this is a sentence, and a part of it is not the answer."""
    return len(_WORDS.findall(_WRAPPED.sub("", text))) > 1 and re.search(r"[0-9\\]", text) is not None


@lru_cache(maxsize=1 << 14)
def _is_equal(gold: str, found: str) -> bool:
    return _WORKER.ask([gold, found], TIMEOUT_SECONDS) is True


_WORKER: Final = process.WorkerProcess("potstill.grading.expressions")


def _serve_requests() -> None:
    """Answer pairs of expressions on standard input until it ends."""
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.set_int_max_str_digits(4300)
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr
    verify = _build_verifier()
    print("true", file=answers, flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(used + 2 * TIMEOUT_SECONDS), resource.RLIM_INFINITY)
        )  # if nobody ends it
        print(json.dumps(verify(*json.loads(line))), file=answers, flush=True)


def _build_verifier() -> Any:
    import math_verify

    library: Any = math_verify  # None turns its own timeouts off, which its annotations do not say
    how = [library.LatexExtractionConfig()]  # its grammar only: the reader of plain expressions would evaluate the text

    def equal(gold: str, found: str) -> bool:
        try:
            sides = [
                library.parse(f"${text}$", how, parsing_timeout=None, raise_on_error=False) for text in (gold, found)
            ]
            return all(sides) and bool(library.verify(*sides, timeout_seconds=None, raise_on_error=False))
        except Exception:  # a library that fails on an expression finds it not equal
            return False

    return equal


if __name__ == "__main__":
    _serve_requests()
