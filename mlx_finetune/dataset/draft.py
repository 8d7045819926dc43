"""One rendered sequence on its way to the tokenizer, and the ways in which its mask is made."""

from dataclasses import dataclass

from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.mask import Rendering
from mlx_finetune.dataset.tokens import Span

PROMPT_TEMPLATE = "prompt template"
WHOLE_TEXT = "whole text"
LABEL = "label of a text"


@dataclass(frozen=True, slots=True)
class Draft:
    """One sequence before tokenisation. Without ``spans`` every token is a target.

    ``values`` are those of its row; with ``is_judged`` its last target is an input too, so that its state is known.
    """

    text: str
    spans: tuple[Span, ...] | None
    method: str
    example: Example
    is_document: bool  # beginning- and end-of-text tokens are put around it
    rendering: Rendering | None = None
    values: tuple[float, ...] = ()
    is_judged: bool = False
