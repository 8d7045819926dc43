"""The number an answer ends with, by the rules of GSM8K (2110.14168), as an exact decimal.

A text with ``####`` answers with the first number after the last such mark; any other with its last number. Currency
signs, thousands commas, units and a trailing dot are dropped: ``1,200``, ``$12.50``, ``-3``, ``5kg``, ``12.``. What is
no plain number is refused, not read in part: ``3/4``, ``5:30``, ``1.2.3``, ``12,50`` (a decimal comma or two
numbers?), ``\\frac{3}{4}``, more than 100 digits, an exponent beyond 999. Where the number that counts is such a one
the answer has none; report how many have none. A digit inside a word (``CO2``) is no number, and a hyphen after a word
or number (``10-3``) is no minus.

Unicode: digits are ASCII's; the true minus sign is read as ``-``, and no-break spaces between groups of three as
commas.
"""

import re
from decimal import Decimal

_MARK = "####"
_MAX_DIGITS = 100

_FOUND = re.compile(
    r"""
    \\[dt]?frac\s*\{[^{}]{0,40}\}\s*\{[^{}]{0,40}\}  # a fraction: a match without a run is refused below
    | [\u00bc-\u00be\u2150-\u215e]                   # a fraction in one character
    | (?<![A-Za-z0-9_])
      (?P<run>\.?[0-9]++(?:(?:[.,:\u00a0\u202f]|\{,\}|\\,|\s?[/\u2044]\s?)[0-9]++)*+)
      (?P<exponent>[eE][-+]?[0-9]++)?
      (?P<tail>[\u00bc-\u00be\u2150-\u215e]?)
    """,
    re.VERBOSE,
)
_GROUP = re.compile(r"\{,\}|\\,|[\u00a0\u202f]")
_NUMBER = re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{2,3})*,[0-9]{3})(?:\.[0-9]+)?|\.[0-9]+")
_EXPONENT = re.compile(r"(?:[eE][-+]?[0-9]{1,3})?")
_CURRENCY = "[$\u20ac\u00a3\u00a5]"
_MINUS = re.compile(rf"(?:(?<![A-Za-z0-9_)\]%])[-\u2212]{_CURRENCY}?|{_CURRENCY}[-\u2212])\Z")


def final_number(text: str) -> Decimal | None:
    """The number the text answers with, or None. ``12.0`` and ``12`` are equal as decimals."""
    _, mark, after = text.rpartition(_MARK)
    found = list(_FOUND.finditer(after))
    if not found:
        return None
    return _read(after, found[0] if mark else found[-1])


def _read(text: str, found: "re.Match[str]") -> Decimal | None:
    run, exponent, tail = found["run"], found["exponent"] or "", found["tail"]
    if run is None or tail or len(run) > _MAX_DIGITS or not _EXPONENT.fullmatch(exponent):
        return None
    number = _GROUP.sub(",", run)
    if not _NUMBER.fullmatch(number):
        return None
    start = found.start("run")
    sign = "-" if _MINUS.search(text, max(0, start - 3), start) else ""
    return Decimal(sign + number.replace(",", "") + exponent)
