"""Token entries: what a server states about each token of a text, and which bytes of the text each entry describes.

>>> logprobs = Logprobs(tokens=[" 4", "token_id:17"], token_logprobs=[-0.1, -0.2])
>>> read_entries(Choice(text=" 4", logprobs=logprobs), ReaderContext("teacher", "raw"))[1]
TokenEntry(piece=b'', name=17, logprob=-0.2, alternatives=[])

`match_text` and `match_parts` find the entries of a text. A server may hide or change the thought of a model and still
list its log-probabilities; these must not be assigned to the words of the answer.

    >>> tokens = ["<think>", "4", "?", "</think>", "4", "."]
    >>> entries = [TokenEntry(token.encode(), token, -0.1, ()) for token in tokens]
    >>> match_text(entries, b"4."), match_parts(entries, [b"4?", b"4."])
    ((4, 6), [(1, 3), (4, 6)])

`locate_tokens` finds the byte span of each token, although some bytes are unknown and some entries are missing.

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
from typing import Final, Literal, NamedTuple

from potstill.records import END, End, Semantics, token_spans
from potstill.teachers.openai_api.response import Choice, Logprobs, TokenOutcome, token_bytes

LearntPart = Literal["both", "reasoning", "answer"]
# None: another special token, or unknown bytes; empty: a token that holds only a part of a character
Piece = bytes | End | None
MAX_GAP_BYTES: Final = 64  # bytes without an entry that may precede a token
REPLACEMENT: Final = "�".encode()


@dataclass(frozen=True, slots=True)
class ReaderContext:
    """What is known about a server when its responses are read.

    lookup            token id and position in the text -> the token's bytes, if the teacher's tokenizer is available
    end_names         the strings by which the server names the end token
    reasoning         the part of a reasoning model's output that becomes the chain
    has_stop_strings  whether the requests contain stop strings: then a text whose end has no entry was cut at one
    """

    source: str
    semantics: Semantics
    lookup: Callable[[int, int], Piece] | None = None
    end_names: frozenset[str] = frozenset()
    reasoning: LearntPart = "both"
    has_stop_strings: bool = False


class TokenEntry(NamedTuple):
    """One token position. `name` is the token's id, else its string; an alternative is (piece, name, log-probability);
    an unknown log-probability (natural logarithm) is None."""

    piece: Piece
    name: int | str
    logprob: float | None
    alternatives: Sequence[tuple[Piece, int | str, float | None]]


def read_entries(choice: Choice, context: ReaderContext) -> list[TokenEntry]:
    """The entries of a choice, in order; empty without log-probabilities."""
    logprobs = choice.logprobs
    if logprobs is None:
        return []
    if logprobs.content is not None:
        return [_read_entry(entry, position, context) for position, entry in enumerate(logprobs.content)]
    return _read_parallel_lists(logprobs, context)


def _read_entry(entry: TokenOutcome, position: int, context: ReaderContext) -> TokenEntry:
    alternatives = [
        (
            _read_piece(outcome.token, token_bytes(outcome), outcome.id, position, context),
            _name_of(outcome),
            outcome.logprob,
        )
        for outcome in getattr(entry, "top_logprobs", None) or ()
    ]
    name, piece = _name_of(entry), _read_piece(entry.token, token_bytes(entry), entry.id, position, context)
    if isinstance(name, int) and context.lookup is None:
        # The bytes of an entry may include those of omitted entries; as an alternative the token has only its own.
        piece = next((other for other, other_name, _ in alternatives if other_name == name), piece)
    return TokenEntry(piece, name, entry.logprob, alternatives)


def _read_parallel_lists(logprobs: Logprobs, context: ReaderContext) -> list[TokenEntry]:
    values, tables = logprobs.token_logprobs or [], logprobs.top_logprobs or []
    entries = []
    for position, token in enumerate(logprobs.tokens or []):
        table = (tables[position] if position < len(tables) else None) or {}
        entries.append(
            TokenEntry(
                _read_piece(token or "", None, None, position, context),
                _parse_token_id(token or ""),
                values[position] if position < len(values) else None,
                [
                    (_read_piece(other, None, None, position, context), _parse_token_id(other), value)
                    for other, value in table.items()
                ],
            )
        )
    return entries


def _name_of(outcome: TokenOutcome) -> int | str:
    return outcome.id if outcome.id is not None else _parse_token_id(outcome.token)


def _parse_token_id(token: str) -> int | str:
    """17 for `token_id:17`, which vLLM writes if asked for ids; any other string unchanged."""
    digits = token[9:19] if token.startswith("token_id:") else ""
    return int(digits) if len(token) < 20 and digits.isascii() and digits.isdecimal() else token


def _read_piece(token: str, data: bytes | None, token_id: int | None, position: int, context: ReaderContext) -> Piece:
    if token_id is None and isinstance(parsed := _parse_token_id(token), int):
        token_id, token = parsed, ""
    if token_id is not None and context.lookup is not None:
        return context.lookup(token_id, position)
    if token in context.end_names:
        return END
    if data and (data != REPLACEMENT or "�" not in token):
        return data
    return token.encode("utf-8", "replace") if "�" not in token else None


EntryRange = tuple[int, int]  # entries from the first up to, and without, the second
_THOUGHT_NAMES: Final = rb"think|thinking|thought|thoughts|reasoning|seed:think"
_OPENING_TAG: Final = re.compile(
    rb"\s*(?:<(?:%b)>|\[THINK\]|<\|channel\|>\w+<\|message\|>)" % _THOUGHT_NAMES, re.IGNORECASE
)
_CLOSING_TAG: Final = re.compile(
    rb"</(?:%b)>|\[/THINK\]|<\|channel\|>final<\|message\|>" % _THOUGHT_NAMES, re.IGNORECASE
)


def match_text(entries: Sequence[TokenEntry], text: bytes) -> EntryRange:
    """The entries of a text that is everything the server returned; all entries if none clearly belongs to other text.
    Entries after the text (the end, a stop string) are included."""
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
    """The entries of each part of a text, whose last part is the answer; an empty range for a part without entries."""
    joined, starts = _join_entries(entries)
    closing, opening = _last_closing_tag(joined), _OPENING_TAG.match(joined)
    ranges: list[EntryRange] = []
    stop = len(entries)
    for number, part in reversed(list(enumerate(parts))):  # from the back: the answer is easiest to find
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
    """The bytes of all entries, and the start of each; an entry of unknown bytes has length 0."""
    pieces = [entry.piece if isinstance(entry.piece, bytes) else b"" for entry in entries]
    return b"".join(pieces), list(accumulate(map(len, pieces), initial=0))


def _first_entry(starts: Sequence[int], position: int) -> int:
    """The first entry that begins at or after a byte; entries without bytes directly before it are skipped."""
    index = bisect_left(starts, position)
    return bisect_right(starts, position) - 1 if starts[index] == position else index


def _skip_whitespace(entries: Sequence[TokenEntry], first: int, text: bytes) -> int:
    """The first entry after whitespace that servers strip from the beginning of `text`."""
    while first < len(entries):
        piece = entries[first].piece
        if not isinstance(piece, bytes) or not piece or piece.strip() or text.startswith(piece):
            break
        first += 1
    return first


def _last_closing_tag(joined: bytes) -> tuple[int, int] | None:
    """The byte span of the last tag that closes a thought."""
    tags = list(_CLOSING_TAG.finditer(joined))
    return tags[-1].span() if tags else None


class TokenSpan(NamedTuple):
    """The bytes from start to end of a text. `prefix`: earlier bytes of the same character, from tokens whose strings
    the server could not show."""

    start: int
    end: int
    prefix: bytes = b""


def consecutive_spans(pieces: Sequence[bytes]) -> list[TokenSpan | None]:
    """The spans of tokens that together are exactly the text."""
    return [TokenSpan(start, end) for start, end in token_spans(pieces)]


def locate_tokens(
    text: str, pieces: Sequence[bytes | End | None], defects: set[str]
) -> tuple[bytes, list[TokenSpan | None]]:
    """The content, and the span of each piece in it; None for a piece whose bytes or position are unknown.

    pieces   see `Piece`
    defects  gains the defects of the text, see `chain_reader.read_chain`

    The content is the text, except that a byte which a piece knows replaces U+FFFD.
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
    """Walks through the text from left to right. Tokens of unknown bytes are `pending` until the next known token
    shows how many bytes lie between."""

    def __init__(self, text: bytes, count: int, defects: set[str]) -> None:
        self.text, self.position = text, 0
        self.content = bytearray()
        self.spans: list[TokenSpan | None] = [None] * count
        self.pending: list[int] = []
        self.only_partial = True  # the pending tokens are all parts of one character
        self.defects = defects

    def locate(self, index: int, piece: bytes) -> bool:
        """Assign a span to a piece; False if the text ends before it."""
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
            if piece.startswith(rest):  # a stop string cut the text here
                self.defects.add("tokens beyond the text")
                return False
            self.defects.add("entries missing")
            return True
        self._settle_pending(start)
        self._assign(index, piece, len(piece))
        return True

    def _complete_character(self, index: int, piece: bytes) -> bool:
        """Handle a piece that begins with a whole character, which the server names at the token that completes it,
        after pending tokens without a string. False if it is no such piece."""
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
        """Assign the bytes before `end` to the pending tokens if there is one byte for each, else to none."""
        gap = end - self.position
        if self.pending and self.only_partial and gap == len(self.pending):
            start = self.position
            for index in self.pending:
                prefix = _unfinished_bytes(self.text[start : self.position])
                self._assign(index, self.text[self.position : self.position + 1], 1, prefix)
        elif self.pending:
            self.defects.add("bytes unknown")
        elif gap:
            self.defects.add("entries missing")
        self._clear_pending()
        self._copy_until(end)

    def finish(self) -> None:
        if self.pending or self.position < len(self.text):
            if "tokens beyond the text" in self.defects:
                self._clear_pending()
                self._copy_until(len(self.text))
            else:
                self._settle_pending(len(self.text))

    def _clear_pending(self) -> None:
        self.pending.clear()
        self.only_partial = True

    def _assign(self, index: int, piece: bytes, width: int, prefix: bytes = b"") -> None:
        """Append a piece to the content; it covers `width` bytes of the text."""
        start = len(self.content)
        self.content += piece
        self.position += width
        self.spans[index] = TokenSpan(start, len(self.content), prefix)

    def _copy_until(self, end: int) -> None:
        self.content += self.text[self.position : end]
        self.position = end


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unfinished_bytes(piece: bytes) -> bytes:
    """The bytes at the end that are the beginning of a character."""
    for size in range(1, min(4, len(piece) + 1)):
        tail = piece[-size:]
        if tail[0] >= 0xC0:
            return tail if not _is_utf8(tail) else b""
    return b""
