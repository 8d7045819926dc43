"""Regular expressions out of files from strangers, compiled where they cannot take for ever.

Python's matcher tries every way to divide a text among repeats: ``(a+)+`` over 40 letters takes longer than anyone
waits. Repeats and alternatives inside a repeat and back references are refused; what is left is counted in bits, the
base-2 logarithm of the ways to match a path of some 60 characters. 22 bits take 0.05 s a path at the very worst, what
adapters really use (names, ``.*``, ``\\d+``) microseconds.
"""

import math
import re
import re._constants as _codes  # pyright: ignore[reportMissingImports]
import re._parser as _parser  # pyright: ignore[reportMissingImports]
from collections.abc import Iterable, Sequence
from typing import Any

from mlx_finetune.errors import ModelError

_MAX_CHARACTERS = 2_000
MAX_BITS = 22
_REPEAT_BITS = 5
_REPEATS = frozenset({_codes.MAX_REPEAT, _codes.MIN_REPEAT, _codes.POSSESSIVE_REPEAT})


def compile_pattern(pattern: str, before: str = "", after: str = "", *, max_bits: float = MAX_BITS) -> re.Pattern[str]:
    """``before + pattern + after``, compiled. Raises ``ModelError`` where ``pattern`` is none, or a dangerous one.

    ``before`` and ``after`` are ours and not looked at; ``pattern`` must be complete by itself.
    """
    shown = repr(pattern[:100])
    if len(pattern) > _MAX_CHARACTERS:
        raise ModelError(f"the adapter's configuration has a pattern of {len(pattern):,} characters: {shown}...")
    try:
        bits = _count_bits(_parser.parse(pattern), inside=False)
        compiled = re.compile(before + pattern + after)
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"the adapter's configuration has a pattern that is no regular expression: {shown}") from error
    if bits > max_bits:
        raise ModelError(
            f"the adapter's configuration has a pattern that could take for ever: {shown}",
            "write the names of the modules instead",
        )
    return compiled


def _count_bits(parsed: Iterable[tuple[Any, Any]], *, inside: bool) -> float:
    """Bits of one sequence; infinite for what is refused. ``inside`` a repeat nothing may be chosen again."""
    bits = 0.0
    for code, argument in parsed:
        if code in _REPEATS:
            bits += _repeat_bits(*argument, inside=inside)
        elif code is _codes.BRANCH:
            bits += _branch_bits(argument[1], inside=inside)
        elif code in (_codes.GROUPREF, _codes.GROUPREF_EXISTS):
            return math.inf
        elif code is _codes.SUBPATTERN:
            bits += _count_bits(argument[-1], inside=inside)
        elif code in (_codes.ASSERT, _codes.ASSERT_NOT):
            bits += _count_bits(argument[1], inside=inside)
        elif code is _codes.ATOMIC_GROUP:
            bits += _count_bits(argument, inside=inside)
    return bits


def _repeat_bits(low: int, high: int, body: Iterable[tuple[Any, Any]], *, inside: bool) -> float:
    if high <= 1:
        return _count_bits(body, inside=inside) + (high - low)
    return math.inf if inside else _REPEAT_BITS + _count_bits(body, inside=True)


def _branch_bits(branches: Sequence[Any], *, inside: bool) -> float:
    """None for plain words of which no one begins another, which leave no choice."""
    words = ["".join(chr(argument) for code, argument in branch if code is _codes.LITERAL) for branch in branches]
    is_plain = all(len(word) == len(branch) for word, branch in zip(words, branches, strict=True))
    begins = any(a.startswith(b) for n, a in enumerate(words) for m, b in enumerate(words) if n != m)
    if is_plain and not begins:
        return 0
    return math.inf if inside else math.log2(len(branches)) + max(_count_bits(one, inside=False) for one in branches)
