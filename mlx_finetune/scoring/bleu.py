"""BLEU through ``sacrebleu``, an optional extra, with its own words (13a), so that figures compare with published
ones.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from mlx_finetune.errors import UsageError
from mlx_finetune.scoring.text import nfc


def check_installed() -> None:
    """Raise ``UsageError`` where sacrebleu is not installed; call it before an evaluation begins."""
    _sacrebleu()


def bleu(expected: str, got: str) -> float:
    """BLEU of one answer, 0 to 1: for intervals and pairs. Raises ``UsageError`` without sacrebleu.

    Orders of n-grams longer than the answer are left out (``effective_order``); the mean over rows is not corpus BLEU.
    """
    return _sacrebleu().sentence_bleu(nfc(got), [nfc(expected)], use_effective_order=True).score / 100


def corpus_bleu(expected: Sequence[str], got: Sequence[str]) -> float:
    """BLEU of all answers together, 0 to 1: the figure papers print. Raises ``UsageError`` without sacrebleu."""
    assert len(expected) == len(got)
    return _sacrebleu().corpus_bleu([nfc(text) for text in got], [[nfc(text) for text in expected]]).score / 100


def _sacrebleu() -> ModuleType:
    try:
        return import_module("sacrebleu")
    except ImportError as error:
        raise UsageError(
            f"the score `bleu` needs the package sacrebleu, which cannot be imported: {error}",
            "pip install 'mlx-finetune[bleu]', or leave bleu out",
        ) from None
