r"""How the page, the card and the terminal write numbers, checkpoints and tokens.

>>> percent_number(0.125), format_percent(0.125), format_points(-0.125), format_count(12345), format_duration(272)
('12.5', '12.5\xa0%', '−12.5', '12\u202f345', '4 min 32 s')
"""

from __future__ import annotations

from potstill.records import Checkpoint, End
from potstill.report.model import Interval


def format_points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign unless it is zero.

    >>> format_points(0.125), format_points(-0.0004)
    ('+12.5', '0.0')
    """
    text = f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[1:] == "0.0" else text


def percent_number(share: float) -> str:
    """A share in percent, without the sign %."""
    return f"{100 * share:.1f}"


def format_percent(share: float | Interval) -> str:
    """A share, or the value of an interval, as a percentage."""
    return f"{percent_number(share.value if isinstance(share, Interval) else share)}\N{NO-BREAK SPACE}%"


def format_count(number: int) -> str:
    """An integer; from 10 000 on, its thousands are set apart."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(number) > 9999 else str(number)


def format_duration(seconds: float) -> str:
    """Seconds in hours, minutes and seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def checkpoint_label(checkpoint: Checkpoint) -> str:
    """A checkpoint in a table: its step, the share of an interpolation, its on-policy steps.

    >>> checkpoint_label(Checkpoint(350)), checkpoint_label(Checkpoint(350, 0.3))
    ('350', '350 × 0.3')
    """
    return f"{format_count(checkpoint.step)}{checkpoint.suffix}"


def readable_token(token: bytes | End) -> str:
    r"""A token as one short word: white space has symbols, bytes that are no text are hexadecimal.

    >>> from potstill.records import END
    >>> readable_token(b" 12"), readable_token(b"\n"), readable_token(b"\xe2\x82"), readable_token(END)
    ('␣12', '⏎', 'E2 82', 'end')
    >>> readable_token(b"")
    '∅'
    """
    if isinstance(token, End):
        return "end"
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return " ".join(f"{byte:02X}" for byte in token)
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"
