"""From a name to the texts of the experiment: stretches of the held-out text, three contexts long."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.eval.rows import Chosen, choose_rows
from mlx_finetune.app.eval.seen import with_seen
from mlx_finetune.app.eval.subject import Subject, has_no_data
from mlx_finetune.app.eval.texts import documents
from mlx_finetune.dataset.formats import Text
from mlx_finetune.dataset.kinds import is_trainable
from mlx_finetune.errors import UsageError
from mlx_finetune.model.long_text.rotations import rotations

VERSION = 1
CONTEXTS = 3  # a text has so many
NUM_TEXTS = 8
#: A context is divided into so many buckets of positions.
BUCKETS = 4
_ALL_ROWS = 10**9


@dataclass(frozen=True, slots=True)
class Experiment:
    """Texts (N, 3 context + 1) of token ids to be read, ``context`` tokens of each kept.

    They are made of rows one behind the other, whose mean length is ``row_tokens``.
    """

    subject: Subject
    chosen: Chosen
    context: int
    texts: NDArray[np.int32]
    row_tokens: float
    identity: Mapping[str, object]

    @property
    def edges(self) -> list[int]:
        """Where buckets of positions begin, and where the last one ends; contexts end where buckets do."""
        return [place * self.context // BUCKETS for place in range(CONTEXTS * BUCKETS + 1)]


def prepare_experiment(
    subject: Subject, *, given: str | None, context: int | None, num_texts: int | None, base: Path
) -> Experiment:
    """Texts out of the held-out rows in their order, or of ``given``; ``context`` is the model's own unless named.

    Raises ``ModelError`` for a model without rotary embeddings, ``UsageError`` where the text is too short.
    """
    opened = subject.opened
    rotations(opened.model)
    context = context or opened.info.context_length
    if context is None:
        raise UsageError(f"{opened.name} does not say how long its context is", "name it: --context N")
    if given is None and has_no_data(subject):
        raise UsageError(f"{opened.name} has no held-out text of its own", "name some: --data FILE_OR_FOLDER")
    if given is None and not is_trainable("text", subject.task):
        raise UsageError(
            f"--sinks reads plain text, and the rows of a {subject.task} run are none", "name a text: --data FILE"
        )
    chosen = choose_rows(
        subject.data if given is None else subject.data.model_copy(update={"format": "auto"}),
        base=subject.folder if given is None else base,
        training_base=subject.folder,
        given=given,
        max_rows=_ALL_ROWS,
        category=None,
        shots=0,
        seed=subject.seed,
    )
    chosen = with_seen(subject, chosen, given)
    if not all(isinstance(row.example, Text) for row in chosen.rows):
        raise UsageError(
            "--sinks reads plain text, and the rows are questions with answers", "name a text: --data FILE"
        )
    rows = documents(opened.tokenizer, [row.part for row in chosen.rows])
    ids = np.concatenate([row.ids for row in rows])
    texts = stretches(ids, CONTEXTS * context + 1, num_texts or NUM_TEXTS)
    if not len(texts):
        raise UsageError(
            f"the text has {len(ids):,} tokens; {CONTEXTS} contexts of {context:,} are {CONTEXTS * context:,}",
            "name a longer text: --data FILE, or a shorter context: --context N",
        )
    identity = {
        "version": VERSION,
        **subject.hashes(),
        "context": context,
        "texts_sha256": hashlib.sha256(texts.tobytes()).hexdigest(),
    }
    return Experiment(subject, chosen, context, texts, len(ids) / len(rows), identity)


def stretches(ids: NDArray[np.int32], length: int, most: int) -> NDArray[np.int32]:
    """At most ``most`` pieces of ``length`` tokens that share none, spread over ``ids``: (N, length), N may be 0."""
    count = len(ids) // length
    chosen = [count * place // min(most, count) for place in range(min(most, count))]
    return np.array([ids[one * length : (one + 1) * length] for one in chosen], np.int32).reshape(-1, length)
