"""Texts compared: SQuAD's exact match and token F1, and checks that a recipe writes down (contains, length, regex).

Unicode: every text is brought to NFC first, so an accent is the same whether typed as one character or two; nothing
else is folded (no NFKC: it would turn "x2" with a raised 2 into "x2"). Checks are exact beyond that, case included.

Regular expressions come from users and may need exponential time. No limit on the length of the text helps (30
characters are enough), so they run in the package ``regex``, which transformers brings and which can be stopped: after
1 s of the process's processor time (so a paused machine changes nothing) the evaluation ends with an error. It
does not count as a miss: a score must not depend on the speed of the machine. The syntax is Python's.
"""

import functools
import re
import string
import unicodedata
import warnings
from collections import Counter

import regex

from mlx_finetune.errors import MlxftError, UsageError

REGEX_SECONDS = 1.0
MAX_REGEX_CHARS = 2_000

_ARTICLES = re.compile(r"\b(a|an|the)\b")
#: Written without spaces: a character is a word there, as in MLQA.
_CHARACTER_WORDS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def nfc(text: str) -> str:
    """The text in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no a/an/the, single spaces: SQuAD's normalisation (1606.05250, evaluate-v1.1.py).

    The same as SQuAD's for ASCII. Beyond it punctuation is Unicode's (category P), as in MLQA (1910.07475), and the
    text is NFC.
    """
    kept = (letter for letter in nfc(text).lower() if not _is_punctuation(letter))
    return " ".join(_ARTICLES.sub(" ", nfc("".join(kept))).split())


def words(text: str) -> list[str]:
    """The words of a normalised text; each Chinese or Japanese character is one."""
    return _CHARACTER_WORDS.sub(r" \1 ", text).split()


def exact_match(expected: str, got: str) -> bool:
    """Whether both are the same after ``normalise``."""
    return normalise(expected) == normalise(got)


def token_f1(expected: str, got: str) -> float:
    """F1 over words after ``normalise``, repeats counted; 1 if neither text has words, 0 if one has none (SQuAD 2)."""
    expected_words, got_words = words(normalise(expected)), words(normalise(got))
    if not expected_words or not got_words:
        return float(expected_words == got_words)
    common = (Counter(expected_words) & Counter(got_words)).total()
    return 2 * common / (len(expected_words) + len(got_words))


def contains(text: str, part: str) -> bool:
    """Whether ``part`` stands in ``text``, letter by letter, case included."""
    return nfc(part) in nfc(text)


def is_within(text: str, max_chars: int) -> bool:
    """Whether the text has at most ``max_chars`` characters (code points of its NFC form)."""
    return len(nfc(text)) <= max_chars


def compile_regex(source: str) -> "regex.Pattern[str]":
    """The expression, kept for the next call. Raises ``UsageError`` for one that is invalid or too long."""
    if len(source) > MAX_REGEX_CHARS:
        raise UsageError(
            f"the regular expression has {len(source):,} characters; at most {MAX_REGEX_CHARS:,} are allowed",
            "shorten it, or split it into several checks",
        )
    return _compile(source)


def matches(source: str, text: str) -> bool:
    """Whether the regular expression matches anywhere in the text (NFC).

    Raises ``UsageError`` for an invalid expression and ``MlxftError`` where the search takes more than 1 s of
    processor time.
    """
    pattern = compile_regex(source)
    try:
        return pattern.search(nfc(text), timeout=REGEX_SECONDS) is not None
    except TimeoutError:
        raise MlxftError(
            f"the regular expression {_show(source)} takes over {REGEX_SECONDS:g} s on {len(text):,} characters",
            "avoid repetitions inside repetitions, such as (a|aa)+ or (\\w+\\s?)*",
        ) from None


@functools.lru_cache(maxsize=256)
def _compile(source: str) -> "regex.Pattern[str]":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a syntax that may change one day
            return regex.compile(source)
    except RecursionError:
        reason = "it is nested too deeply"
    except (regex.error, ValueError, OverflowError) as error:
        reason = str(error)
    raise UsageError(
        f"the regular expression {_show(source)} is not valid: {reason}",
        "the syntax is that of Python's re; the characters . ( [ themselves are written \\. \\( \\[",
    )


def _show(source: str) -> str:
    return repr(source if len(source) <= 80 else source[:77] + "...")


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")
