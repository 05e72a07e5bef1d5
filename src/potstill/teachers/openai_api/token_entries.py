"""Token entries: what a server returns for each token of a text, and which bytes of the text an entry describes.

`match_text` and `match_parts` find the entries of a text. A server may hide or change a model's thought but still list
the thought's log-probabilities. They must not be assigned to the words of the answer.

    >>> tokens = ["<think>", "4", "?", "</think>", "4", "."]
    >>> entries = [TokenEntry(token.encode(), token, -0.1, ()) for token in tokens]
    >>> match_text(entries, b"4."), match_parts(entries, [b"4?", b"4."])
    ((4, 6), [(1, 3), (4, 6)])

`locate_tokens` finds the byte span of each token, even if bytes are unknown or entries are missing.

>>> defects = set()
>>> content, spans = locate_tokens("é 4", [b"", "é".encode(), b" 4"], defects)   # the server names é at its last byte
>>> [(content[span.start : span.end], span.prefix) for span in spans if span], defects
([(b'\\xc3', b''), (b'\\xa9', b'\\xc3'), (b' 4', b'')], set())
>>> content, spans = locate_tokens("a é 4", [b"a", b"\\xa9", b" 4"], defects)    # the entry of b" \\xc3" is missing
>>> [(span.start, span.end) for span in spans], defects
([(0, 1), (3, 4), (4, 6)], {'entries missing'})
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

from potstill.recipe.teacher import LearntPart
from potstill.records import END, End, Semantics
from potstill.teachers.openai_api.response import Choice, Logprobs, TokenLogprobs, TokenOutcome, token_bytes

# The bytes of a token, or END. None: another special token, or unknown bytes; empty: only a part of a character
Piece = bytes | End | None
MAX_GAP_BYTES: Final = 64  # maximum number of bytes without an entry before a token
REPLACEMENT: Final = "�".encode()
DEFECT_BEYOND_TEXT: Final = "tokens beyond the text"
DEFECT_ENTRIES_MISSING: Final = "entries missing"
DEFECT_BYTES_UNKNOWN: Final = "bytes unknown"


@dataclass(frozen=True, slots=True)
class ReaderContext:
    """The settings and known facts of a server that are needed to read its responses.

    source            name of the teacher in the keys of its chains
    semantics         meaning of the log-probabilities, see `records.Chain`
    lookup            token id and position in the text -> the token's bytes; None without the teacher's tokenizer
    end_names         strings by which the server names the end token
    reasoning         the part of a reasoning model's output that becomes the chain
    has_stop_strings  whether the requests contain stop strings; a text whose end has no entry then ended at a stop string
    """

    source: str
    semantics: Semantics
    lookup: Callable[[int, int], Piece] | None = None
    end_names: frozenset[str] = frozenset()
    reasoning: LearntPart = "both"
    has_stop_strings: bool = False


class TokenEntry(NamedTuple):
    """One token position.

    name          the token's id, or its string if the id is unknown
    logprob       natural logarithm; None if it is unknown
    alternatives  tuples (piece, name, logprob)
    """

    piece: Piece
    name: int | str
    logprob: float | None
    alternatives: Sequence[tuple[Piece, int | str, float | None]]


def read_entries(choice: Choice, context: ReaderContext) -> list[TokenEntry]:
    """The entries of a choice, in order; empty without log-probabilities."""
    logprobs = choice.logprobs
    if logprobs is None:
        return []
    outcomes = logprobs.content if logprobs.content is not None else _join_lists(logprobs)
    return [_read_entry(outcome, position, context) for position, outcome in enumerate(outcomes)]


def _join_lists(logprobs: Logprobs) -> list[TokenLogprobs]:
    """The parallel lists of legacy completions as one list."""
    tokens, values, tables = logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or []
    missing = [None] * len(tokens)
    outcomes = []
    for token, value, table in zip(tokens, [*values, *missing], [*tables, *missing], strict=False):
        alternatives = [TokenOutcome(name, logprob) for name, logprob in (table or {}).items()]
        outcomes.append(TokenLogprobs(token or "", value, top_logprobs=alternatives))
    return outcomes


def _read_entry(outcome: TokenLogprobs, position: int, context: ReaderContext) -> TokenEntry:
    alternatives = [
        (_read_piece(other, position, context), _name_of(other), other.logprob) for other in outcome.top_logprobs or ()
    ]
    piece, name = _read_piece(outcome, position, context), _name_of(outcome)
    if isinstance(name, int) and context.lookup is None:
        # The bytes of an entry may include bytes of omitted entries. The same token's alternative has only its own bytes.
        piece = next((other for other, other_name, _ in alternatives if other_name == name), piece)
    return TokenEntry(piece, name, outcome.logprob, alternatives)


def _name_of(outcome: TokenOutcome) -> int | str:
    """The id of a token, or its string without an id. If ids are requested, vLLM writes the string `token_id:17`."""
    token = outcome.token
    if outcome.id is not None:
        return outcome.id
    digits = token[9:19] if token.startswith("token_id:") else ""
    return int(digits) if len(token) < 20 and digits.isascii() and digits.isdecimal() else token


def _read_piece(outcome: TokenOutcome, position: int, context: ReaderContext) -> Piece:
    name, token, data = _name_of(outcome), outcome.token, token_bytes(outcome)
    if isinstance(name, int):
        if context.lookup is not None:
            return context.lookup(name, position)
        token = token if outcome.id is not None else ""
    if token in context.end_names:
        return END
    if data and (data != REPLACEMENT or "�" not in token):
        return data
    return token.encode("utf-8", "replace") if "�" not in token else None


EntryRange = tuple[int, int]  # indices of entries: start (inclusive) and stop (exclusive)
_THOUGHT_NAMES: Final = rb"think|thinking|thought|thoughts|reasoning|seed:think"
_OPENING_TAG: Final = re.compile(
    rb"\s*(?:<(?:%b)>|\[THINK\]|<\|channel\|>\w+<\|message\|>)" % _THOUGHT_NAMES, re.IGNORECASE
)
_CLOSING_TAG: Final = re.compile(
    rb"</(?:%b)>|\[/THINK\]|<\|channel\|>final<\|message\|>" % _THOUGHT_NAMES, re.IGNORECASE
)


def match_text(entries: Sequence[TokenEntry], text: bytes) -> EntryRange:
    """The entries of a text that is not split into parts, including entries after it (the end, a stop string).

    All entries, unless some of them clearly belong to other text before it.
    """
    joined, starts = _join_entries(entries)
    if not text or joined.startswith(text):
        return 0, len(entries)
    position = joined.rfind(text)
    if position > 0:
        return _first_entry(starts, position), len(entries)
    closing = None if _CLOSING_TAG.search(text) else _last_closing_tag(joined)
    first = _skip_whitespace(entries, _first_entry(starts, closing[1]), text) if closing else 0
    return first, len(entries)


def match_parts(entries: Sequence[TokenEntry], parts: Sequence[bytes]) -> list[EntryRange]:
    """The entries of each part of a text; an empty range for a part without entries. The last part is the answer."""
    joined, starts = _join_entries(entries)
    closing, opening = _last_closing_tag(joined), _OPENING_TAG.match(joined)
    ranges: list[EntryRange] = []
    stop = len(entries)
    for number, part in reversed(list(enumerate(parts))):  # from the end, because the answer is easiest to find
        position = joined.rfind(part, 0, starts[stop]) if part else -1
        matched = stop, stop
        if position >= 0:
            first, end = _first_entry(starts, position), bisect_left(starts, position + len(part))
            matched = first, max(first, end if starts[end] == position + len(part) else end - 1)
        elif part and number == len(parts) - 1:
            if closing:
                matched = _skip_whitespace(entries, _first_entry(starts, closing[1]), part), stop
        elif part and number == 0:
            end = min(stop, bisect_left(starts, closing[0])) if closing else stop
            first = _first_entry(starts, opening.end()) if opening else 0
            matched = min(first, end), end
        ranges.append(matched)
        stop = matched[0]
    return ranges[::-1]


def _join_entries(entries: Sequence[TokenEntry]) -> tuple[bytes, list[int]]:
    """The bytes of all entries, joined, and the start of each entry. An entry of unknown bytes has length 0."""
    pieces = [entry.piece if isinstance(entry.piece, bytes) else b"" for entry in entries]
    return b"".join(pieces), list(accumulate(map(len, pieces), initial=0))


def _first_entry(starts: Sequence[int], position: int) -> int:
    """The first entry that begins at or after a byte position. Entries without bytes directly before it are skipped."""
    index = bisect_left(starts, position)
    return bisect_right(starts, position) - 1 if starts[index] == position else index


def _skip_whitespace(entries: Sequence[TokenEntry], first: int, text: bytes) -> int:
    """The first entry after whitespace that the server stripped from the beginning of `text`."""
    while first < len(entries):
        piece = entries[first].piece
        if not isinstance(piece, bytes) or not piece or piece.strip() or text.startswith(piece):
            break
        first += 1
    return first


def _last_closing_tag(joined: bytes) -> tuple[int, int] | None:
    """The byte span of the last tag that closes a thought; None without such a tag."""
    tags = list(_CLOSING_TAG.finditer(joined))
    return tags[-1].span() if tags else None


class TokenSpan(NamedTuple):
    """The span of a token: the bytes of a text from `start` to `end`.

    prefix  earlier bytes of the same character, from tokens whose strings the server could not write
    """

    start: int
    end: int
    prefix: bytes = b""


def locate_tokens(text: str, pieces: Sequence[Piece], defects: set[str]) -> tuple[bytes, list[TokenSpan | None]]:
    """The content, and the span of each piece in it; None for a piece whose bytes or position are unknown.

    defects  the defects of the text (see `chain_reader.read_chain`) are added to this set

    The content is the text in UTF-8, in which known bytes of a piece replace U+FFFD.
    """
    locator = _TokenLocator(text.encode("utf-8", "replace"), len(pieces), defects)
    for index, piece in enumerate(pieces):
        if not isinstance(piece, bytes) or not piece:
            locator.pending.append(index)
            locator.only_partial = locator.only_partial and piece == b""
        elif not locator.locate(index, piece):
            break
    locator.finish()
    return bytes(locator.content), locator.spans


class _TokenLocator:
    """Walks through the text from left to right.

    Tokens of unknown bytes are `pending` until the position of the next known token shows how many bytes they have.
    """

    def __init__(self, text: bytes, count: int, defects: set[str]) -> None:
        self.text, self.position, self.content = text, 0, bytearray()
        self.spans: list[TokenSpan | None] = [None] * count
        self.pending: list[int] = []
        self.only_partial = True  # the pending tokens are all parts of one character
        self.defects = defects

    def locate(self, index: int, piece: bytes) -> bool:
        """Assign a span to a piece. Returns False if the text ends before the piece."""
        at_start = self.position == 0 and not self.pending
        if at_start and piece[:1] == b" " and not self.text.startswith(b" ") and self.text.startswith(piece[1:]):
            piece = piece[1:] or piece  # the server stripped the text
        if self.pending and self._complete_character(index, piece):
            return True
        if not self.pending and self.text.startswith(REPLACEMENT, self.position) and not _is_utf8(piece):
            self._assign(index, piece, len(REPLACEMENT))
            return True
        start = self.text.find(piece, self.position, self.position + MAX_GAP_BYTES + len(piece))
        if start < 0:
            rest = self.text[self.position :]
            if not rest and not _is_utf8(piece):  # the text ends inside a character, which a string cannot show
                self._assign(index, piece, 0)
                return True
            is_cut = piece.startswith(rest)  # a stop string cut the text here
            self.defects.add(DEFECT_BEYOND_TEXT if is_cut else DEFECT_ENTRIES_MISSING)
            return not is_cut
        self._settle_pending(start)
        self._assign(index, piece, len(piece))
        return True

    def _complete_character(self, index: int, piece: bytes) -> bool:
        """Handle a piece that begins with a character whose first bytes belong to pending tokens.

        The server writes such a character at the token that completes it. Returns False for any other piece.
        """
        width = len(piece.decode("utf-8", "replace")[:1].encode())
        if width < 2 or not self.text.startswith(piece, self.position):
            return False
        if self.text.find(piece, self.position + 1, self.position + 4 * len(self.pending) + len(piece)) >= 0:
            self.pending.append(index)  # the text has the piece twice: the pending tokens may be the first one
            self.only_partial = False
        elif self.only_partial and len(self.pending) + 1 == width:  # one byte per token is the only possibility
            for offset, other in enumerate(self.pending):
                self._assign(other, piece[offset : offset + 1], 1, piece[:offset])
            self._clear_pending()
            self._assign(index, piece[width - 1 :], len(piece) - width + 1, piece[: width - 1])
        else:
            self.pending.append(index)
            self.only_partial = False
            self._copy_until(self.position + len(piece))
        return True

    def _settle_pending(self, end: int) -> None:
        """Assign the bytes before `end` to the pending tokens, if there is exactly one byte per token."""
        gap = end - self.position
        if self.pending and self.only_partial and gap == len(self.pending):
            start = self.position
            for index in self.pending:
                prefix = _unfinished_bytes(self.text[start : self.position])
                self._assign(index, self.text[self.position : self.position + 1], 1, prefix)
        elif self.pending:
            self.defects.add(DEFECT_BYTES_UNKNOWN)
        elif gap:
            self.defects.add(DEFECT_ENTRIES_MISSING)
        self._clear_pending()
        self._copy_until(end)

    def finish(self) -> None:
        if DEFECT_BEYOND_TEXT in self.defects:
            self._copy_until(len(self.text))
        elif self.pending or self.position < len(self.text):
            self._settle_pending(len(self.text))

    def _clear_pending(self) -> None:
        self.pending.clear()
        self.only_partial = True

    def _assign(self, index: int, piece: bytes, width: int, prefix: bytes = b"") -> None:
        """Append a piece to the content. The piece covers `width` bytes of the text."""
        start = len(self.content)
        self.content += piece
        self.position += width
        self.spans[index] = TokenSpan(start, len(self.content), prefix)

    def _copy_until(self, end: int) -> None:
        self.content += self.text[self.position : end]
        self.position = end


def _is_utf8(piece: bytes) -> bool:
    return piece.decode("utf-8", "ignore").encode() == piece


def _unfinished_bytes(piece: bytes) -> bytes:
    """The bytes at the end of a piece that begin an unfinished character."""
    for size in range(1, min(4, len(piece) + 1)):
        tail = piece[-size:]
        if tail[0] >= 0xC0:
            return tail if not _is_utf8(tail) else b""
    return b""
