"""Prompts for models without a chat template: Alpaca with and without input, plain joining, or a text file.

A file holds ``{instruction}``, ``{input}`` and ``{output}``; other braces stay as they are. Without an input, the
blocks between blank lines that mention ``{input}`` are left out. Text after ``{output}`` is learned with the answer.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.dataset.tokens import Tokenizer
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import Recipe

# The prompts of Stanford Alpaca (Taori et al. 2023), which adapters and data sets in this form expect to the letter.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n{output}"
)

MAX_FILE_BYTES = 1_000_000
_FIELD = re.compile(r"\{(instruction|input|output)\}")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """``name`` is for a person; the two texts hold ``{instruction}``, ``{output}`` and, the first, ``{input}``."""

    name: str
    with_input: str
    without_input: str

    def prompt(self, instruction: str, input_text: str) -> str:
        """Everything before the answer."""
        return _fill(self._before_and_after(input_text)[0], instruction, input_text)

    def ending(self, instruction: str, input_text: str) -> str:
        """Everything after the answer; empty for the built-in ones."""
        return _fill(self._before_and_after(input_text)[1], instruction, input_text)

    def _before_and_after(self, input_text: str) -> tuple[str, str]:
        text = self.with_input if input_text else self.without_input
        before, _, after = text.partition("{output}")
        return before, after


def _fill(text: str, instruction: str, input_text: str) -> str:
    values = {"instruction": instruction, "input": input_text, "output": ""}
    return _FIELD.sub(lambda match: values[match.group(1)], text)


ALPACA = PromptTemplate("alpaca", ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT)
#: What an encoder-decoder model is asked where nothing else is said.
PLAIN = PromptTemplate("plain", "{instruction}\n\n{input}{output}", "{instruction}{output}")
NONE = PromptTemplate("none", "{instruction}{input}{output}", "{instruction}{output}")


def load_prompt_template(name: str, *, base: Path | None = None) -> PromptTemplate:
    """``auto`` and ``alpaca`` are Alpaca's, ``none`` joins prompt and answer, a text with ``{instruction}`` is the
    template itself, anything else is a file (from ``base``).

    Raises ``DataError`` for a file that is missing, too large, not UTF-8, or without ``{instruction}``.
    """
    if name in ("auto", "alpaca"):
        return ALPACA
    if name == "none":
        return NONE
    if is_template_text(name):
        return parse_prompt_template(name, name)
    path = (base or Path()) / Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"[data] prompt_template = {name!r}: there is no such file",
            'write "alpaca", "none", or the path of a text file with {instruction}, {input} and {output}',
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path}: a prompt template of {path.stat().st_size} bytes", f"keep it under {MAX_FILE_BYTES}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the prompt template is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    return parse_prompt_template(name, text)


def template_hash(name: str, *, base: Path | None = None) -> str:
    """SHA-256 of the file that ``name``, as in ``load_prompt_template``, stands for; "" where it is no file.

    Raises ``OSError``.
    """
    path = (base or Path()) / Path(name).expanduser()
    return durable.hash_file(path) if not is_template_text(name) and path.is_file() else ""


def template_of(tokenizer: Tokenizer, data: DataRecipe, *, base: Path | None = None) -> PromptTemplate | None:
    """The template that rows go through; None where they go through the tokenizer's chat template.

    What an encoder-decoder model reads is no conversation, whatever its tokenizer brings. Raises ``DataError``.
    """
    if tokenizer.start_token_id is not None and data.prompt_template == "auto":
        return PLAIN
    if tokenizer.has_chat_template and data.prompt_template == "auto":
        return None
    return load_prompt_template(data.prompt_template, base=base)


def continues_text(recipe: Recipe, tokenizer: Tokenizer) -> bool:
    """True where prompts are text to go on with: text is trained on, and neither the recipe nor the model has a form.

    ``recipe`` is a resolved one, in which earlier versions left ``auto`` for Alpaca's form.
    """
    is_open = recipe.data.prompt_template == "auto" and not tokenizer.has_chat_template
    return recipe.task == "pretrain" and is_open


def settled_template(recipe: Recipe, tokenizer: Tokenizer, *, is_text: bool) -> str:
    """``data.prompt_template`` as task pretrain settles it once its rows are read; any other stays as it is.

    Where the rows are plain text (``is_text``), a prompt is text to go on with: a new model has seen no chat template,
    even one that its tokenizer brings. Other rows went through the form that prompts are then asked in.
    """
    data = recipe.data
    is_open = data.prompt_template == "auto" and data.chat_template == "auto"
    has_form = tokenizer.has_chat_template and (recipe.scratch is None or not is_text)
    if recipe.task != "pretrain" or not is_open or has_form:
        return data.prompt_template
    return NONE.name if is_text else ALPACA.name


def is_template_text(name: str) -> bool:
    """True where ``data.prompt_template`` is the template itself, and not the name of one."""
    return "{instruction}" in name


def parse_prompt_template(name: str, text: str) -> PromptTemplate:
    """A prompt template from its text; ``{output}`` is put at the end where it is missing."""
    if "{instruction}" not in text:
        raise DataError(
            f"prompt template {name!r} has no {{instruction}}",
            "the file needs {instruction}, may have {input}, and {output} where the answer goes",
        )
    text = text.rstrip("\n") if "{output}" in text else text + "{output}"
    if text.count("{output}") > 1 or "{instruction}" in text.partition("{output}")[2]:
        raise DataError(
            f"prompt template {name!r} must name {{output}} once, after {{instruction}}", "reorder the file"
        )
    blocks = re.split(r"\n{2,}", text)
    without = "\n\n".join(block for block in blocks if "{input}" not in block)
    if "{instruction}" not in without or "{output}" not in without:
        without = text
    return PromptTemplate(name, text, without)
