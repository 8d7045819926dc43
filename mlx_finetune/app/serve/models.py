"""What is served: one base in memory, and adapters of it that are put on and taken off between two steps.

A client names one of them by its id. An id stands for what was named on the command line and nothing else: no path, no
hub id and no folder comes in through a request. The base's own name is always there, with every adapter off.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_finetune.app.classify import check_answers
from mlx_finetune.app.generate import question
from mlx_finetune.app.open import Opened, Report, open_each
from mlx_finetune.app.serve.tasks import Task, read_tasks
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.errors import DataError, UsageError
from mlx_finetune.model.adapters.lora import adapter_layers, adapter_parameters, detach_adapter, module_at
from mlx_finetune.model.answers.batches import check_batchable
from mlx_finetune.model.inside.parts import num_embeddings
from mlx_finetune.model.inside.segments import learned_positions
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import ChatRecipe

_LEAST_BEGINNING = 8  # tokens; fewer are read as fast as they are copied


@dataclass(frozen=True, slots=True)
class Served:
    """One id: how its prompts are written and drawn.

    ``context`` is how many positions there are, ``num_ids`` how many token ids. ``fingerprint`` changes with the
    weights. ``beginning`` are the tokens of a chat before what the client says.
    """

    id: str
    tokenizer: ModelTokenizer
    data: DataRecipe
    chat: ChatRecipe
    parent: str | None
    context: int | None
    num_ids: int
    fingerprint: str
    beginning: tuple[int, ...]
    tasks: Mapping[str, Task]


class ModelRack:
    """The base and its adapters. Lives in the thread that loaded it."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Mapping[str, nn.Module]]) -> None:
        """``layers``: id -> path -> adapted layer; the base has none. No adapter is attached to ``model`` now."""
        self.model = model
        self._layers = {
            id_: [(*_owner(model, path), layer) for path, layer in of.items()] for id_, of in layers.items()
        }
        self._current: str | None = None

    def put_on(self, id_: str) -> nn.Module:
        """The model as ``id_``: the same weights, with its adapter and no other."""
        if id_ != self._current:
            for owner, key, layer in self._layers.get(self._current or "", ()):
                owner[key] = layer.linear
            self._current = id_
            for owner, key, layer in self._layers[id_]:
                owner[key] = layer
        return self.model


def open_rack(
    names: Sequence[str], *, base: Path, report: Report, max_rows: int, change: Callable[[ChatRecipe], ChatRecipe]
) -> tuple[ModelRack, tuple[Served, ...]]:
    """Load what ``names`` stand for. The first is what a request without a ``model`` gets, the base comes last.

    ``change`` puts settings of the command line in the place of the recipe's. Raises ``UsageError`` for two names with
    one id, and what ``open_each`` raises.
    """
    layers: dict[str, Mapping[str, nn.Module]] = {}
    served: list[Served] = []
    opened: Opened | None = None
    for opened in open_each(names, base=base, report=report):
        check_answers(opened, "serve")
        if opened.tokenizer.start_token_id is not None:
            raise UsageError(
                f"{opened.name} is an encoder-decoder model, which is not served: clients send conversations",
                "mlxft generate answers a file of prompts, several at once with --batch 16",
            )
        found = dict(adapter_layers(opened.model))
        one = _served(opened, id_of(opened.name), opened.info.name if found else None)
        if one.id in layers:
            raise UsageError(f"two of the names would be called {one.id!r}", "copy one of them to another name")
        layers[one.id] = found
        served.append(replace(one, chat=change(one.chat), tasks=read_tasks(opened)))
    assert opened is not None, "the command asks for a name"
    if max_rows > 1:
        check_batchable(opened.model)
    detach_adapter(opened.model)
    base_id = id_of(opened.info.name)
    if base_id not in layers and all(layers.values()):
        bare = replace(
            opened,
            tokenizer=load_tokenizer(opened.info.folder),
            data=DataRecipe.model_validate({"path": "-"}),
            chat=change(ChatRecipe.model_validate({})),
        )
        served.append(_served(bare, base_id, None))
        layers[base_id] = {}
    return ModelRack(opened.model, layers), tuple(map(_with_beginning, served))


def id_of(name: str) -> str:
    """What clients call ``name``: without folders, except the owner of a hub id and the run of a checkpoint."""
    path = Path(name)
    if name.startswith(("/", ".", "~")) or len(path.parts) > 2 or path.parts[:1] == ("adapters",):
        path = Path(path.expanduser().resolve())
        is_checkpoint = path.name.startswith("checkpoint-")
        return f"{path.parent.name}/{path.name}" if is_checkpoint else path.name
    return name.rstrip("/")


def _served(opened: Opened, id_: str, parent: str | None) -> Served:
    model, info = opened.model, opened.info
    learned = learned_positions(model)
    return Served(
        id=id_,
        tokenizer=opened.tokenizer,
        data=opened.data,
        chat=opened.chat,
        parent=None if parent is None else id_of(parent),
        context=info.context_length if learned is None else learned.num_positions,
        num_ids=num_embeddings(model) or opened.tokenizer.vocab_size,
        fingerprint=_fingerprint(opened),
        beginning=(),
        tasks={},
    )


def _with_beginning(served: Served) -> Served:
    """Nothing that a client sent is among these tokens: they are the template's and the recipe's system message."""
    chat = served.chat
    try:
        first, second = (
            render_prompt(question(text, chat), served.tokenizer, served.data) for text in ("1", "Why is the sky blue?")
        )
    except DataError:
        return served
    same = next(index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    return replace(served, beginning=tuple(first[:same]) if same >= _LEAST_BEGINNING else ())


def _fingerprint(opened: Opened) -> str:
    """Changes when a weight of the base or the adapter does."""
    digest = hashlib.sha256(opened.info.sha256.encode("ascii"))
    for name, weight in adapter_parameters(opened.model).items():
        digest.update(name.encode("utf-8"))
        digest.update(np.array(weight.astype(mx.float32)).tobytes())
    return f"mlxft-{digest.hexdigest()[:12]}"


def _owner(model: nn.Module, path: str) -> tuple[Any, str | int]:
    """The module or list that holds the module at ``path``, and under which key."""
    parent, _, name = path.rpartition(".")
    owner = module_at(model, parent) if parent else model
    return owner, int(name) if isinstance(owner, list) else name
