import importlib.util
import sys

import pytest

from mlx_finetune.errors import UsageError
from mlx_finetune.scoring.bleu import bleu, check_installed, corpus_bleu

needs_sacrebleu = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="needs the extra `bleu`")


def test_without_sacrebleu_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    for call in (check_installed, lambda: bleu("a", "a"), lambda: corpus_bleu(["a"], ["a"])):
        with pytest.raises(UsageError, match="needs the package sacrebleu") as caught:
            call()
        assert "mlx-finetune[bleu]" in caught.value.hint


@needs_sacrebleu
def test_bleu_by_hand():
    """Precisions 5/6, 3/5, 1/4 and, smoothed, 1/(2 * 3); the lengths are equal."""
    assert bleu("the cat sat on the mat", "the cat sat on a mat") == pytest.approx(
        (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )
    assert bleu("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1)
    assert bleu("caf\u00e9 here", "cafe\u0301 here") == pytest.approx(1)


@needs_sacrebleu
def test_corpus_bleu_counts_over_all_answers():
    expected, got = ["the cat sat on the mat", "one two three four"], ["the cat sat on a mat", "one two three four"]
    assert corpus_bleu(expected, got) == pytest.approx((9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25)
