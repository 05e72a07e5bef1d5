"""The first chains of a run: a teacher of whose first chains none is right is not asked for the others.

    >>> stored = [0, 0]                                        # chains of the run, and right ones
    >>> trial = Trial(10, look=lambda: (stored[0], stored[1]), fault=lambda: UserError("none is right"))
    >>> [trial.may(4) for _ in range(3)]                       # two requests for four texts, no third one
    [True, True, False]
    >>> stored[0] = 8; trial.verdict(4) is None                # two more chains may still be asked for
    False
    >>> stored[1] = 1; trial.verdict(4) is None, trial.may(1000)
    (True, True)

Shards have an even part each of the first chains, and look at those of all before they stop.
"""

from __future__ import annotations

from collections.abc import Callable

from potstill.errors import UserError


class Trial:
    def __init__(
        self, limit: int, look: Callable[[], tuple[int, int]], fault: Callable[[], UserError], parts: int = 1
    ) -> None:
        """limit  chains of which at least one has to be right
        look   how many chains of the run are stored, and how many of them are right
        fault  what to say where none is
        parts  how many shards share the first chains
        """
        self.limit, self.look, self.fault, self.parts = limit, look, fault, parts
        self.passed, self.asked, self.before = False, 0, look()[0]
        self.allowed = self._share(self.before)

    def may(self, n: int) -> bool:
        """Whether n further chains may be asked for now; counts them if so."""
        if not self.passed and (self.asked or self.before) and self.asked + n > self.allowed:
            return False
        self.asked += n
        return True

    def verdict(self, n: int) -> UserError | None:
        """What to say when all chains that were asked for are stored and n more would be: an error if enough were
        stored without a right one; else None, and more may be asked for."""
        stored, right = self.look()
        if right:
            self.passed = True
        elif stored + n > self.limit:
            return self.fault()
        else:
            self.allowed = self.asked + max(n, self._share(stored))
        return None

    def _share(self, stored: int) -> int:
        return -(-(self.limit - stored) // self.parts)
