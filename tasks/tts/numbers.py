"""English numbers as they are said: amounts, years, ordinals, decimals, money, times, fractions, telephone numbers.

American usage, without "and" inside a number and without hyphens: 1,984 is "one thousand nine hundred eighty four".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from re import Match

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = (
    "", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion", "septillion",
    "octillion", "nonillion", "decillion",
)  # fmt: skip
IRREGULAR = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
}
LONGEST_AMOUNT = 9
"""Digits in a row, without commas, that are still read as an amount; longer ones are codes, read digit by digit."""
YEARS = range(1100, 2100)
"""Bare numbers of four digits in this range are read as years, in pairs of digits."""

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_AMOUNT = rf"{_WHOLE}(?:\.[0-9]+)?"
_SIGNS = "".join(CURRENCIES)
_SCALE = r"(?:\s?(?P<scale>thousand|million|billion|trillion|[kKmMbB]n?)(?![A-Za-z]))?"
_SHORT_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}


def cardinal(number: int) -> str:
    """An amount in words; beyond 10 ** 36 its digits.

    Args:
        number: at least 0.
    """
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        rest = number % 100
        return f"{ONES[number // 100]} hundred" + (f" {cardinal(rest)}" if rest else "")
    if number >= 1000 ** len(SCALES):
        return digit_by_digit(str(number))
    parts, scale = [], 0
    while number:
        number, group = divmod(number, 1000)
        if group:
            parts.append(f"{cardinal(group)} {SCALES[scale]}".strip())
        scale += 1
    return " ".join(reversed(parts))


def ordinal(number: int) -> str:
    """A place in an order, such as "twenty first"."""
    *head, last = cardinal(number).split(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    else:
        last = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*head, last])


def year(number: int) -> str:
    """A year of four digits as it is said: "nineteen oh five", "two thousand five", "twenty twenty"."""
    century, rest = divmod(number, 100)
    if century % 10 == 0 and rest < 10:
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def digit_by_digit(text: str) -> str:
    """The digits of a text, one word each; everything else is left out."""
    return " ".join(ONES[int(letter)] for letter in text if letter in "0123456789")


def whole(text: str) -> str:
    """Digits as they stand in a text, with or without commas, in words."""
    bare = text.replace(",", "")
    if (len(bare) > 1 and bare[0] == "0") or (bare == text and len(bare) > LONGEST_AMOUNT):
        return digit_by_digit(bare)
    if len(bare) > 3 * len(SCALES):  # before int(), which refuses texts of thousands of digits
        return digit_by_digit(bare)
    if bare == text and len(bare) == 4 and int(bare) in YEARS:
        return year(int(bare))
    return cardinal(int(bare))


def spell_numbers(text: str) -> str:
    """A text in which every run of the digits 0 to 9 is spelled out."""
    for pattern, spell in _RULES:
        text = pattern.sub(partial(_replace, spell), text)
    return text


def _replace(spell: Callable[[Match[str]], str], match: Match[str]) -> str:
    """What a rule makes of a match, kept apart from letters and digits beside it."""
    words = spell(match)
    if words == match[0]:
        return words
    before = " " if match.string[max(0, match.start() - 1) : match.start()].isalnum() and words[:1].isalnum() else ""
    after = " " if match.string[match.end() : match.end() + 1].isalnum() and words[-1:].isalnum() else ""
    return f"{before}{words}{after}"


def keeps_stop(match: Match[str]) -> bool:
    """Whether the full stop at the end of an abbreviation also ends the sentence: a capital follows, or nothing."""
    if not match[0].endswith("."):
        return False
    rest = match.string[match.end() : match.end() + 8].lstrip("\"')]")
    return not rest.strip() or (rest[:1].isspace() and rest.lstrip()[:1].isupper())


def _amount(text: str, scale: str | None = None) -> str:
    """A whole or decimal number that is an amount, never a year; with `scale`, that many thousands, millions, ..."""
    before, point, after = text.partition(".")
    bare = before.replace(",", "")
    words = digit_by_digit(bare) if len(bare) > 3 * len(SCALES) else cardinal(int(bare or 0))
    if point:
        words += f" point {digit_by_digit(after)}"
    return f"{words} {_SHORT_SCALES.get(scale.lower(), scale.lower())}" if scale else words


def _money(match: Match[str]) -> str:
    text, scale = match["amount"], match["scale"]
    one, many, small_one, small_many = CURRENCIES[match["sign"]]
    before, _, after = text.partition(".")
    bare = before.replace(",", "")
    if scale or len(after) not in (0, 2) or not small_one or len(bare) > 3 * len(SCALES):
        words = _amount(text, scale)
        return f"{words} {one if words == 'one' else many}"
    units, cents = int(bare), int(after or 0)
    parts = [f"{cardinal(units)} {one if units == 1 else many}"] if units or not cents else []
    parts += [f"{cardinal(cents)} {small_one if cents == 1 else small_many}"] if cents else []
    return " and ".join(parts)


def _telephone(match: Match[str]) -> str:
    groups = re.findall("[0-9]+", match[0])
    return ("plus " if match[0].startswith("+") else "") + ", ".join(map(digit_by_digit, groups))


def _time(match: Match[str]) -> str:
    hour, minute, second, half = match["hour"], match["minute"], match["second"], match["half"]
    if int(hour) > 24 or not (minute or half):
        return match[0]
    words = cardinal(int(hour))
    if minute and int(minute):
        words += f" {'oh ' if int(minute) < 10 else ''}{cardinal(int(minute))}"
    elif minute and not half and not second:
        words += " o'clock" if 1 <= int(hour) <= 12 else " hundred" if int(hour) > 12 else " zero zero"
    if second:
        words += f" and {cardinal(int(second))} second{'' if int(second) == 1 else 's'}"
    if half:
        words += f" {half.upper()}-M"  # the hyphen keeps the letter A from being read as the article
        words += "." * keeps_stop(match)
    return words


def _fraction(match: Match[str]) -> str:
    above, below = int(match[2]), int(match[3])
    if not 0 < above < below <= 100:
        return match[0]
    name = "half" if below == 2 else "quarter" if below == 4 else ordinal(below)
    plural = "" if above == 1 else "s"
    return f"{f'{_amount(match[1])} and ' if match[1] else ''}{cardinal(above)} {name}{plural}"


def _decade(match: Match[str]) -> str:
    number = int(match[1])
    words = whole(match[1]) if number >= 100 else cardinal(number)
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _number(match: Match[str]) -> str:
    parts = match[0].split(".")
    if len(parts) == 1:
        return whole(parts[0])
    if len(parts) > 2:  # a version
        return " point ".join(map(whole, parts))
    return f"{_leading(parts[0])} point {digit_by_digit(parts[1])}".strip()


def _leading(text: str) -> str:
    """The whole part of a decimal: an amount, nothing where nothing stands, digits where it begins with several 0."""
    bare = text.replace(",", "")
    return "" if not bare else digit_by_digit(bare) if len(bare) > 1 and bare[0] == "0" else _amount(bare)


_RULES = (
    (re.compile(rf"(?P<sign>[{_SIGNS}])\s?(?P<amount>{_AMOUNT}){_SCALE}"), _money),
    (re.compile(rf"(?<![\w.,])(?P<amount>{_AMOUNT}){_SCALE}\s?(?P<sign>[{_SIGNS}])(?!\s?[0-9])"), _money),
    (
        re.compile(
            r"(?<![\w.,+-])(?:\+[0-9]{1,3}[ -]?(?:\(?[0-9]{1,4}\)?[ -]?){1,4}[0-9]{2,}"
            r"|(?:1[ -])?(?:\([0-9]{3}\) ?|[0-9]{3}[ -])?[0-9]{3}-[0-9]{4})(?![\w-])"
        ),
        _telephone,
    ),
    (
        re.compile(
            r"(?<![\w:.,])(?P<hour>[0-9]{1,2})(?::(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?)?"
            r"(?:\s?(?P<half>[aApP])(?:\.[mM]\.|[mM]))?(?![\w:])"
        ),
        _time,
    ),
    (
        re.compile(r"(?<![\w.,])([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,9})(?:st|nd|rd|th)(?!\w)", re.IGNORECASE),
        lambda match: ordinal(int(match[1].replace(",", ""))),
    ),
    (re.compile(r"(?<![\w.,])'?([1-9][0-9]{0,2}0)s(?!\w)"), _decade),
    (re.compile(rf"(?<![\w./,])(?:({_WHOLE}) )?([0-9]{{1,3}})[/⁄]([0-9]{{1,3}})(?![\w/])"), _fraction),
    (re.compile(rf"(?<![\w.,-])({_AMOUNT})-(?={_AMOUNT}(?![\w-]))"), lambda match: f"{match[1]} to "),
    (re.compile(r"(?<=[0-9]) - (?=[0-9][0-9.,]* ?[=+*/×÷-])"), lambda match: " minus "),
    (re.compile(r"(?<![^\s(\[\"'])-(?=\.?[0-9])"), lambda match: "minus "),
    (re.compile(r"(?<![\w:])([0-9]+):([0-9]+)(?![\w:])"), lambda match: f"{match[1]} to {match[2]}"),
    (re.compile(r"(?<=[0-9])[/:⁄-](?=\w)|(?<=\w)-(?=[0-9])"), lambda match: " "),
    (re.compile(rf"{_WHOLE}(?:\.[0-9]+)*|(?<![\w.])\.[0-9]+"), _number),
)  # the order matters: what is more special comes first
"""Patterns and how each of them is said."""
