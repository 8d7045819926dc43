"""What does not go with ``task = "seq2seq"``, as sentences of problem and way out."""

from collections.abc import Iterator

from mlx_finetune.recipe.data import DataRecipe


def seq2seq_problems(
    data: DataRecipe, *, num_layers: str | int, neftune_alpha: float | None, compute_dtype: str
) -> Iterator[str]:
    """Every setting that an encoder-decoder model cannot be trained with; ``num_layers`` are those of [lora]."""
    if data.packing is True:
        yield (
            '`data.packing` = true does not go with `task` = "seq2seq": a prompt and an answer are two sequences; '
            'write "auto"'
        )
    if data.truncation == "split":
        yield (
            '`data.truncation` = "split" does not go with `task` = "seq2seq": a part of a prompt has no answer of its '
            'own; write "drop" or "keep-end"'
        )
    if not data.mask_prompt:
        yield (
            '`data.mask_prompt` = false does not go with `task` = "seq2seq": the encoder\'s tokens are not predicted; '
            "leave it out"
        )
    if neftune_alpha:
        yield (
            f'`training.neftune_alpha` = {neftune_alpha} does not go with `task` = "seq2seq", whose '
            "encoder and decoder share an embedding; leave it out"
        )
    if num_layers != "all":
        yield (
            f'`lora.num_layers` = {num_layers} does not go with `task` = "seq2seq", whose blocks are two stacks; '
            'write "all"'
        )
    if compute_dtype == "float16":
        yield (
            '`hardware.compute_dtype` = "float16" does not go with `task` = "seq2seq": T5\'s activations are larger '
            'than float16 can hold; write "bfloat16" or "float32"'
        )
