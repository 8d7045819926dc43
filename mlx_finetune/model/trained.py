"""What training left in a folder, put on its base for answers: adapter, score head, and the tokenizer beside them.

Which folder that is, and whether it may be used, is for those to say who looked its name up.
"""

from pathlib import Path

import mlx.nn as nn

from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.adapters.lora import AdapterSpec, detach_adapter, fix_norms
from mlx_finetune.model.heads.files import read_head
from mlx_finetune.model.heads.score import HeadSpec, attach_head, detach_head
from mlx_finetune.model.inside.split import SplitModel


def attach_trained(
    model: nn.Module, folder: Path | None, *, is_adapter: bool
) -> tuple[AdapterSpec | None, HeadSpec | None]:
    """Put the adapter and the score head in ``folder`` on ``model``, which is frozen and answers from then on.

    What another folder left on it is taken off. Without an adapter ``folder`` is that of ``model`` itself, or None
    where nothing was trained. Raises ``ModelError`` as ``load_adapter`` and ``read_head`` do.
    """
    spec = None
    if folder is not None and is_adapter:
        spec = load_adapter(model, folder)
    else:
        detach_adapter(model)
    detach_head(model)
    found = None if folder is None else read_head(folder)
    if found is not None:
        attach_head(SplitModel(model), *found)
    model.freeze()
    model.eval()
    fix_norms(model)
    return spec, None if found is None else found[0]


def tokenizer_folder(folder: Path | None, base: Path) -> Path:
    """The one of the two with the tokenizer that was trained with: ``folder`` where it has one, else the base's."""
    return folder if folder is not None and (folder / "tokenizer.json").is_file() else base
