"""Where places of a text stand once parts of it are written otherwise.

>>> moved = Moved([(1, 2), (4, 4)], [3, 1])   # of "a*bc" and more: "*" in three bytes, one byte put in before the fifth
>>> [moved.at(place) for place in range(6)]
[0, 1, 4, 5, 7, 8]
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


class Moved:
    """places: the parts, from and to, in order and apart; lengths: what each has become.

    What lay inside of a part is its end; so is the place where something was put in.
    """

    def __init__(self, places: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
        self.ends = [end for _, end in places]
        self.places = places
        self.shifts = [0]
        for (start, end), length in zip(places, lengths, strict=True):
            self.shifts.append(self.shifts[-1] + length - (end - start))
        assert all(a <= b for (_, a), (b, _) in pairwise(places))

    def at(self, place: int) -> int:
        number = bisect_right(self.ends, place)
        if number < len(self.places) and place > self.places[number][0]:
            return self.ends[number] + self.shifts[number + 1]
        return place + self.shifts[number]
