"""Bytes, seconds, counts and figures to text and back; nowhere else. GB is 10^9 bytes."""

import re
from collections.abc import Sequence

_SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_SIZE_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(TB|GB|MB|kB|B)?\s*", re.IGNORECASE)


def format_bytes(num_bytes: float, decimals: int = 1) -> str:
    """``1_234_567`` -> ``"1.2 MB"``; powers of ten, one decimal, never negative zero."""
    for name, size in _SIZES:
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.{decimals}f} {name}"
    return f"{num_bytes:.0f} B"


def parse_bytes(text: str) -> int:
    """``"12 GB"`` -> ``12_000_000_000``. Raises ``ValueError`` with the allowed form."""
    match = _SIZE_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example '12 GB' or '800 MB'")
    factor = {"tb": 10**12, "gb": 10**9, "mb": 10**6, "kb": 10**3, "b": 1, None: 1}
    unit = match.group(2)
    return int(float(match.group(1)) * factor[unit.lower() if unit else None])


def format_seconds(seconds: float) -> str:
    """``3725`` -> ``"1h 02m"``, ``65`` -> ``"1m 05s"``, ``4.2`` -> ``"4.2 s"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"


def format_step(seconds: float) -> str:
    """The time of one step: ``0.0234`` -> ``"23 ms"``, ``1.234`` -> ``"1.23 s"``, from ten seconds on as above."""
    if seconds >= 10:
        return format_seconds(seconds)
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def format_count(count: float) -> str:
    """``135_000_000`` -> ``"135.0M"``; below a thousand the plain number."""
    for name, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.1f}{name}"
    return f"{count:.0f}"


def format_rate(per_second: float) -> str:
    """``12_345.6`` -> ``"12,346"``; two digits below ten, so that a slow thing is not ``"0"``."""
    return f"{per_second:,.0f}" if per_second >= 10 or per_second == 0 else f"{per_second:.2g}"


def counted(count: int, word: str) -> str:
    """``(1, "row")`` -> ``"1 row"``, ``(1200, "row")`` -> ``"1,200 rows"``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


#: Decimals beyond the usual ones at most, where two figures would look the same.
MORE_DECIMALS = 2


def format_figure(value: float, more: int = 0, *, grouped: bool = False) -> str:
    """Two or three digits that matter, and ``more`` decimals: ``"0.65"``, ``"12.3"``, ``"264"``; 1,264 if grouped."""
    decimals = more + (0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2)
    return f"{value:,.{decimals}f}" if grouped else f"{value:.{decimals}f}"


def format_pair(first: float, second: float, *, grouped: bool = False) -> tuple[str, str]:
    """Both with as many decimals as tell them apart: 264.18, 264.35. Where ``MORE_DECIMALS`` do not, both are alike."""
    for more in range(MORE_DECIMALS + 1):
        texts = format_figure(first, more, grouped=grouped), format_figure(second, more, grouped=grouped)
        if float(texts[0].replace(",", "")) != float(texts[1].replace(",", "")):
            return texts
    return format_figure(first, grouped=grouped), format_figure(first, grouped=grouped)


def decimals_beside(same: float, values: Sequence[float | None]) -> int:
    """Decimals, from 2 on and 4 at most, with which none of ``values`` looks like ``same``, as no change, and the ends
    of an interval, the last two, do not look alike."""
    known = [value for value in values if value is not None]
    most = 2 + MORE_DECIMALS
    for decimals in range(2, most):
        shown = [round(value - same, decimals) for value in known]
        if all(shown) and (len(shown) < 2 or shown[-1] != shown[-2]):
            return decimals
    return most


def format_energy(joules: float) -> str:
    """``7_200_000`` -> ``"2.00 kWh"``, ``1800`` -> ``"0.50 Wh"``."""
    hours = joules / 3600
    return f"{hours / 1000:.2f} kWh" if hours >= 1000 else f"{hours:.2f} Wh"
