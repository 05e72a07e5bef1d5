"""Five finite languages of arithmetic reasoning. `oracle` computes exact distributions over them by counting.

A language is a function that draws the constants of a question, and returns a function that writes one of its texts:

    >>> import random
    >>> write = LANGUAGES["shop"](random.Random(0))
    >>> write(lambda *options: options[0]).splitlines()[-1]
    'The answer is $1,252.05.'

`write` asks `pick` at each choice. How likely each option is, is a taste of the question, so that the texts of a question
resemble each other as the samples of one teacher do.

`sums`, `shop` and `steps` are for development. `german` and `ledger` were written at the same time and not looked at until
the rule was finished: see docs/log.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

Pick = Callable[..., str]  # options -> one of them
Write = Callable[[Pick], str]

NAMES: Final = (
    "Weng",
    "Natalia",
    "Tom",
    "Jen",
    "Omar",
    "Lucy",
    "Bob",
    "Alice",
    "Kim",
    "Raj",
    "Maria",
    "Ken",
    "Zoë",
    "Ivan",
    "Sofia",
    "Paul",
)
THINGS: Final = (
    "apples",
    "pencils",
    "marbles",
    "tickets",
    "cookies",
    "stickers",
    "books",
    "eggs",
    "cards",
    "flowers",
    "bottles",
    "coins",
)


def sums(draw: random.Random) -> Write:
    """Small sums and products in sentences."""
    name, thing, helper = draw.choice(NAMES), draw.choice(THINGS), draw.choice(NAMES)
    a, b, times = draw.randint(3, 70), draw.randint(3, 150), draw.choice([2, 3, 4, 5, 6, 7, 8, 12, 25, 60])
    price = draw.choice([0.5, 1.5, 2, 2.5, 3, 4, 5, 12, 12.5, 15, 125])

    def write(pick: Pick) -> str:
        def result(value: float) -> float:
            """Now and then wrong, in the ways that models are."""
            if pick("right", "right ", "wrong") != "wrong":
                return value
            return value + int(pick("1", "-1", "10", "-10", "100", "2", "-3", "9", "20", "-5", "3", "50"))

        def number(value: float) -> str:
            if value != int(value):
                return f"{value:.2f}" if pick("cents", "short") == "cents" else f"{value:g}"
            whole = int(value)
            return f"{whole:,}" if whole > 999 and pick("comma", "plain") == "comma" else str(whole)

        # Which numbers of the problem are taken, and in which order, is what solutions differ in most.
        pairs = {"ab": (a, b), "ba": (b, a), "at": (a, times), "ta": (times, a), "bt": (b, times), "aa": (a, a + times)}
        left, right = pairs[pick(*pairs)]
        opening = pick(
            "", f"{name} has {left} {thing}.", f"First, {name} had {left} {thing}.", f"{helper} gives {right} more."
        )
        first = result(left + right)
        unit = pick(f" {thing}", "", " in all")
        verb = pick("has", "gets", "will have")
        start = pick("So there are", f"Now {name} {verb}", f"{name} {verb}", "In total:")
        added = f"{start} {left} + {right} = {number(first)}{unit}."
        star = pick("*", "x", "times")
        if pick("sell", "weeks") == "sell":
            second = result(first * price)
            money = pick("$", "dollars")
            worth = f"${number(second)}" if money == "$" else f"{number(second)} dollars"
            unit_price = f"${number(price)}" if money == "$" else number(price)
            earned = pick("earns", "earned", "earning", "is paid")
            last = pick(f"Selling them, {name} {earned}", f"At this price {name} {earned}", "They cost")
            last = f"{last} {number(first)} {star} {unit_price} = {worth}."
        else:
            second = result(first * times)
            last = pick("Each week it is", f"In {times} weeks it is", "Altogether that makes", "Therefore:")
            last = f"{last} {number(first)} {star} {times} = {number(second)}{unit}."
        stop = pick("\n", " ")
        body = stop.join(part for part in (opening, added, last) if part)
        return f"{body}\nThe answer is {number(second)}" + pick("", ".")

    return write


def shop(draw: random.Random) -> Write:
    """Prices with cents, products written `x` and `*`, amounts up to 120,000, names of several words."""
    firsts = ("Mary Ann", "Dr. van Dyke", "Aunt Rosalind", "Old Mr. Petrov", "Jean-Luc", "Sarah O'Neil", "Miss Okonkwo")
    goods = (
        "boxes of colored pencils",
        "solar-panel kits",
        "bags of rice",
        "concert tickets",
        "used bicycles",
        "chairs",
    )
    other, good = draw.choice(firsts), draw.choice(goods)
    prices = [round(draw.choice([1, 10, 100]) * draw.uniform(0.5, 2.5), draw.choice([0, 1, 2])) for _ in range(60)]
    counts = [draw.randint(2, draw.choice([60, 480])) for _ in range(150)]
    fees = [0, 5, 12.5, 49.99, 350]

    # The problem leaves its numbers open, so the first number of a text may be any of many, and so may all that follow.
    def write(pick: Pick) -> str:
        name, price, count = pick(*firsts), float(pick(*map(str, prices))), int(pick(*map(str, counts)))
        extra, fee = int(pick(*map(str, counts[:30]))), float(pick(*map(str, fees)))
        sign, style, product = (
            pick("$", "dollars", "$ "),
            pick("1,234.50", "1234.50", "1234.5"),
            pick("x", "*", "times"),
        )

        def money(value: float) -> str:
            text = f"{value:,.2f}" if style == "1,234.50" else f"{value:.2f}"
            if style == "1234.5" or (value == int(value) and pick("cents", "whole") == "whole"):
                text = f"{value:.2f}".rstrip("0").rstrip(".")
            return f"{text} dollars" if sign == "dollars" else sign.strip() + text

        def slip(value: float) -> float:
            """A wrong digit, a lost or doubled power of ten, or a sum that is off."""
            kind = pick("right", "right ", "right  ", "digit", "ten", "off")
            if kind == "digit":
                place = int(pick("1", "10", "100", "1000"))
                return value + place * int(pick("1", "2", "-1", "3", "-2", "5", "4", "-4", "6", "7"))
            if kind == "ten":
                return value * 10 if pick("more", "less") == "more" else round(value / 10, 2)
            return value + float(pick("0.5", "0.05", "-0.25", "12", "1.99")) if kind == "off" else value

        amount = {"count": count, "both": count + extra, "extra": extra}[
            pick("count", "both", "count ", "extra").strip()
        ]
        lines = []
        if amount == count + extra and pick("said", "silent") == "said":
            lines.append(f"{pick(name, 'She', 'They')} needs {count} + {extra} = {count + extra} {good}.")
        first = slip(amount * price)
        who = pick(name, other, f"The {good}", "This", "Together they")
        verb = pick("costs", "will cost", "comes to", "is worth", "pays")
        lines.append(f"{who} {verb} {amount} {product} {money(price)} = {money(first)}.")
        if fee and pick("fee", "free") == "fee":
            what = pick("shipping", "the delivery", f"{other}'s fee", "tax")
            total = slip(first + fee)
            lines.append(
                f"{pick('With', 'Adding', 'Plus')} {what}, that is {money(first)} + {money(fee)} = {money(total)}."
            )
        else:
            parts = int(pick("2", "3", "4", "10"))
            total = slip(round(first / parts, 2))
            lines.append(f"{pick('Split', 'Shared')} by {parts}: {money(first)} / {parts} = {money(total)}.")
        return pick("\n", " ").join(lines) + f"\nThe answer is {money(total)}" + pick(".", "")

    return write


def steps(draw: random.Random) -> Write:
    """Numbered steps in Markdown, with fractions, percentages, negative numbers, hours and a boxed answer."""
    whole, percent = draw.randint(20, 9000), draw.choice([5, 8, 12, 15, 25, 30, 33, 45, 60, 75, 150])
    top, bottom, minutes = draw.randint(1, 7), draw.choice([2, 3, 4, 5, 8, 9, 12]), draw.randint(15, 600)
    subject = draw.choice(("the tank", "her savings", "the train", "a class", "the temperature", "the bakery's flour"))

    def write(pick: Pick) -> str:
        head, bold = pick("Step {}: ", "{}. ", "**Step {}.** ", "- "), pick("**", "")
        sign = pick("%", " percent", "%")

        def slip(value: int) -> int:
            wrong = pick("0", "0 ", "0  ", "1", "-1", "10", "-9", "sign", "double", "100", "-27").strip()
            return -value if wrong == "sign" else 2 * value if wrong == "double" else value + int(wrong)

        def ratio(up: int, down: int) -> str:
            return pick(f"{up}/{down}", rf"\frac{{{up}}}{{{down}}}", f"{up / down:.2f}", f"{up} ÷ {down}")

        part = slip(whole * percent // 100)
        rest = slip(whole - part)
        rows = []
        if pick("part", "rest") == "part":
            find = pick("Find", "Compute", "First we need")
            rows.append(f"{find} {percent}{sign} of {whole}: {whole} * {percent / 100:g} = {part}")
            rows.append(f"{pick('Subtract', 'So')} {whole} - {part} = {bold}{rest}{bold}")
        else:
            kept = 100 - percent
            rows.append(f"{pick('What remains of', 'There is left in')} {subject} is {kept}{sign}, or {rest}")
        last = slip(rest * top // bottom)
        take, part_of_it, product = pick("Take", "Multiply by", "Now use"), ratio(top, bottom), pick("*", "×", "times")
        rows.append(f"{take} {part_of_it}: {rest} {product} {top}/{bottom} = {last}")
        if pick("time", "none") == "time":
            hours, left = divmod(minutes, 60)
            clock = pick(f"{hours}:{left:02d}", f"{hours} h {left} min", f"{minutes / 60:.1f} hours")
            rows.append(f"{pick('It takes', 'This lasts')} {minutes} minutes = {clock}")
        body = "\n".join(head.format(index + 1) + row for index, row in enumerate(rows))
        return body + pick(f"\n\nThe answer is {last}.", f"\nThe answer is \\boxed{{{last}}}.", f"\n**Answer:** {last}")

    return write


def german(draw: random.Random) -> Write:
    """German, with decimal commas, points in thousands, umlauts and compounds."""
    names, things = (
        ("Jürgen", "Frau Müller", "Anneliese", "Oma Grete", "Björn"),
        ("Äpfel", "Blumentöpfe", "Bücher", "Eier"),
    )
    name, thing = draw.choice(names), draw.choice(things)
    count, more, price = draw.randint(3, 900), draw.randint(2, 70), draw.choice([0.35, 1.49, 2.8, 9.95, 17, 240])

    def write(pick: Pick) -> str:
        def euro(value: float) -> str:
            text = f"{value:,.2f}".translate(str.maketrans(",.", ".,"))
            text = text if pick("Punkt", "ohne") == "Punkt" else text.replace(".", "")
            return (text.removesuffix(",00") if pick("kurz", "lang") == "kurz" else text) + pick(" Euro", " €", "€")

        def slip(value: float) -> float:
            return round(value + float(pick("0", "0 ", "0  ", "1", "-1", "10", "0.1", "-100", "7", "-0.5", "30")), 2)

        total = count + (more if pick("mehr", "gleich") == "mehr" else 0)
        total = int(slip(total))
        first = pick(
            f"{name} hat {total} {thing}.",
            f"Zunächst besitzt {name} {count} {thing}, also insgesamt {total}.",
            f"Zusammen sind es {count} + {total - count} = {total} {thing}.",
        )
        cost = slip(total * price)
        sign, verb = pick("·", "*", "mal", "x"), pick("kosten", "ergeben", "bringen ihr")
        second = f"{pick('Alle', 'Diese', 'Die')} {thing} {verb} {total} {sign} {euro(price)} = {euro(cost)}."
        end = pick("Die Antwort lautet", "Das Gesamtergebnis beträgt", "Antwort:")
        return pick("\n", " ").join([first, second]) + f"\n{end} {euro(cost)}" + pick(".", "")

    return write


def ledger(draw: random.Random) -> Write:
    """Lines of assignments with identifiers, dates and clock times; hardly a word."""
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1998, 2031)
    start, rate, units = draw.randint(300, 1300), draw.choice([0.125, 1.5, 18, 27.75, 1200]), draw.randint(2, 99)
    names = ("total_cost", "sumTotal", "x", "net_income_2", "balance")

    def write(pick: Pick) -> str:
        name, equals, product = pick(*names), pick(" = ", "=", " := "), pick("*", " * ")
        value = units * rate

        def slip(number: float) -> float:
            return number + float(pick("0", "0 ", "0  ", "1", "-1", "0.25", "64", "-10", "1000", "3.5"))

        def show(number: float) -> str:
            return pick(f"{number:g}", f"{number:.2f}", f"{number:.3e}" if number > 500 else f"{number:.1f}")

        date = pick(f"{year}-{month:02d}-{day:02d}", f"{day}/{month}/{year}", f"{month:02d}/{day:02d}/{year % 100:02d}")
        first = slip(value)
        end = int(slip(start + 60 * (units % 9)))
        lines = [f"{name}{equals}{units}{product}{rate:g}{pick('  # ', ' -> ', equals)}{show(first)}"]
        if pick("dated", "undated") == "dated":
            lines.insert(0, pick("# ", "// ", "") + date)
        if pick("timed", "untimed") == "timed":
            clock = f"{start // 60:02d}:{start % 60:02d}"
            stop, later = pick("t", "end", "stop_at"), f"{end // 60 % 24:02d}:{end % 60:02d}"
            lines.append(f"{stop}{equals}{clock} + {units % 9}h{equals}{later}")
        last = slip(first + start)
        lines.append(f"{name} += {start}{pick('; ', '  # ', ' -> ')}{show(last)}")
        return "\n".join(lines) + f"\nThe answer is {show(last)}" + pick("", ".")

    return write


LANGUAGES: Final[dict[str, Callable[[random.Random], Write]]] = {
    "sums": sums,
    "shop": shop,
    "steps": steps,
    "german": german,
    "ledger": ledger,
}
DEVELOPMENT: Final = ("sums", "shop", "steps")
