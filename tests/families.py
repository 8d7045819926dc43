"""Tokenizers for the chat templates in ../shared/models/templates: byte-level, with every marker of the template added.

The template decides how a conversation reads, the tokenizer only how text becomes ids; markers of the form ``<|x|>``,
``[X]`` and the like become special tokens, ``<think>`` and the tool tags added tokens that are not special.
"""

import json
import re
from pathlib import Path

from tiny import make_tokenizer
from tokenizers import AddedToken

from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer

SPECIAL = re.compile(
    r"<\|[^|<>\s'\"]+\|?>|<[a-z_]+\|>|<｜[^｜<>]+｜>|</?(?:start|end)_of_turn>|\[/?[A-Z_]{3,}\]|<BOS_TOKEN>"
)
PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

#: Part of the file name -> (bos, eos), as the models' own tokenizers have them.
ENDS = {
    "google-gemma-4": ("<bos>", "<eos>"),
    "gemma": ("<bos>", "<eos>"),
    "llama": ("<|begin_of_text|>", "<|eot_id|>"),
    "Hermes": ("<|begin_of_text|>", "<|im_end|>"),
    "istral": ("<s>", "</s>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gpt-oss": ("<|startoftext|>", "<|return|>"),
    "granite": ("<|end_of_text|>", "<|end_of_text|>"),
    "hi3": ("<s>", "<|endoftext|>"),
    "Phi-3.5": ("<s>", "<|endoftext|>"),
    "c4ai": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "LFM2": ("<|startoftext|>", "<|im_end|>"),
    "": ("<|endoftext|>", "<|im_end|>"),
}


def family_folder(folder: Path, name: str, markers: str) -> Path:
    """Write tokenizer.json and tokenizer_config.json for a template called ``name`` whose text is ``markers``."""
    folder.mkdir(parents=True, exist_ok=True)
    low = name.replace("Llama-3.1-8B-tool", "").replace("R1-Distill-Llama", "").replace("meta-llama", "llama")
    bos, eos = next(ends for part, ends in ENDS.items() if part in low)
    special = sorted({bos, eos, *SPECIAL.findall(markers)})
    backend = make_tokenizer()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.add_tokens([AddedToken(token, special=False) for token in PLAIN if token not in special])
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": bos, "eos_token": eos, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def family_tokenizer(folder: Path, template: Path) -> ModelTokenizer:
    """A tokenizer with ``template`` and all its markers."""
    made = family_folder(folder / template.stem, template.name, template.read_text(encoding="utf-8"))
    return load_tokenizer(made, chat_template=str(template))
