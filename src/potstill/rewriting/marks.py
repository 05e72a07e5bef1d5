"""GSM8K's calculator marks put into chains, or taken out, before they are aligned.

    >>> chain = Chain.from_tokens("q", 0, [b"3 *", b" 4", b" =", b" 12", b"."], [[(b"?", -1.0)]] * 5)
    >>> made, certain = with_marks(chain, "insert")
    >>> made.text, made.tokens[3], made.candidates[3], certain
    ('3 * 4 = <<3*4=12>>12.', b' <<3*4=12>>12', ((b' <<3*4=12>>12', 0.0),), ((7, 20),))
    >>> with_marks(made, "remove")[0].text
    '3 * 4 = 12.'

The teacher never said how likely a mark is, nor what it would write behind one. So the tokens that a mark touches, and
the number behind it, become one token that is certain: hard targets, of which `certain` says where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

from potstill.calculator import sums
from potstill.calculator.sums import Edit
from potstill.records import Chain
from potstill.rewriting.moved import Moved

Marks = Literal["insert", "remove"]
Places = tuple[tuple[int, int], ...]
ERRORS: Final = "surrogateescape"  # bytes that are no UTF-8 stay what they are


def with_marks(chain: Chain, marks: Marks | None) -> tuple[Chain, Places]:
    """The chain with marks before the results of its sums, or without any; the chain itself where that changes nothing.

    Returned with it: the stretches of the new content, in bytes, that the rewriting made certain.
    """
    if marks == "insert":
        return _once(chain, sums.insertions, ())
    places: Places = ()
    if marks == "remove":
        while b"<<" in chain.content:  # a mark may stand inside of another
            before = chain
            chain, places = _once(before, sums.removals, places)
            if chain is before:
                break
    return chain, places


def _once(chain: Chain, find: Callable[[str], Sequence[Edit]], earlier: Places) -> tuple[Chain, Places]:
    text = chain.content.decode("utf-8", ERRORS)
    edits = find(text)
    if not edits:
        return chain, earlier

    def at(place: int) -> int:
        return len(text[:place].encode("utf-8", ERRORS))

    written = [(at(each.start), at(each.end), each.text.encode(), at(each.until)) for each in edits]
    places: list[tuple[int, int]] = []
    for start, end, new, until in reversed(written):  # from the back, so that the places before stay
        chain, own = _edited(chain, start, end, new, until)
        shift = len(new) - (end - start)
        places = [own, *((max(low + shift, own[1]), high + shift) for low, high in places)]
    moved = Moved([(start, end) for start, end, _, _ in written], [len(new) for _, _, new, _ in written])
    places += [(moved.at(low), moved.at(high)) for low, high in earlier]
    return chain, tuple(sorted(place for place in places if place[1] > place[0]))


def _edited(chain: Chain, start: int, end: int, new: bytes, until: int) -> tuple[Chain, tuple[int, int]]:
    """Bytes start to end written as `new`; what they and the bytes up to `until` touch is one certain token."""
    touched = [number for number, (low, high) in enumerate(chain.spans) if low < until and high > start]
    low, high = start, until
    first = behind = sum(span[1] <= start for span in chain.spans)
    if touched:
        first, behind = touched[0], touched[-1] + 1
        low, high = min(low, chain.spans[first][0]), max(high, chain.spans[behind - 1][1])
    shift = len(new) - (end - start)
    written = chain.content[low:start] + new + chain.content[end:high]
    tokens, spans, steps = (), (), ()
    if touched and written:
        tokens, spans, steps = (written,), ((low, high + shift),), (((written, 0.0),),)
    made = replace(
        chain,
        content=chain.content[:low] + written + chain.content[high:],
        tokens=(*chain.tokens[:first], *tokens, *chain.tokens[behind:]),
        spans=(*chain.spans[:first], *spans, *((a + shift, b + shift) for a, b in chain.spans[behind:])),
        candidates=(*chain.candidates[:first], *steps, *chain.candidates[behind:]) if chain.candidates else (),
    )
    return made, (low, high + shift)
