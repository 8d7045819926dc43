"""Record what transformers and PEFT say about the tiny T5s into tests/golden/t5.json.

    PYTHONPATH=.:tests python tests/golden/record_t5.py

Needs torch, peft and transformers (the extra ``parity``). Buckets of distances, logits and greedy answers of both tiny
models, and the losses of five steps of an adapter: tests/model/seq2seq and tests/train/objectives compare with it.
"""

import json
import tempfile
from pathlib import Path

from t5_adapter import our_losses
from t5_reference import SHOWN, load_theirs, their_answers, their_buckets, their_logits, their_losses
from tiny_t5 import write_tiny_t5

GOLDEN = Path(__file__).resolve().parent / "t5.json"


def main() -> None:
    """Write the file."""
    found: dict[str, object] = {"buckets": their_buckets()}
    for name, is_tied in (("tied", True), ("untied", False)):
        with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as adapter:
            folder = write_tiny_t5(Path(made), is_tied=is_tied)
            model = load_theirs(folder)
            our_losses(folder, Path(adapter))  # which saves the adapter that both begin with
            found[name] = {
                "logits": [
                    [[round(float(one), 5) for one in row] for row in rows] for rows in their_logits(model)[..., :SHOWN]
                ],
                "answers": their_answers(model),
                "losses": their_losses(folder, Path(adapter))[0],
            }
    GOLDEN.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
