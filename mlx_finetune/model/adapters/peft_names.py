"""PEFT's names for modules, and what an ``adapter_config.json`` of PEFT says about each of them.

Paths here are mlx-lm's ("ours") or Hugging Face's ("theirs"). They are the same for llama-like models; GPT-2, GPT-NeoX
and models inside a multimodal wrapper differ in a prefix. Patterns follow PEFT 0.21, except that of several matching
keys in ``rank_pattern`` or ``alpha_pattern`` the longest wins, not the first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from re import Pattern

from mlx_finetune.errors import ModelError
from mlx_finetune.model.tokens.patterns import MAX_BITS, compile_pattern

PREFIX = "base_model.model."
_PREFIXES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gpt2": (("model.h.", "transformer.h."),),
    "gpt_neox": (("model.h.", "gpt_neox.layers."),),
}
# Multimodal checkpoints keep the language model one level deeper; transformers 5 swapped the two words.
_WRAPPED = (("language_model.model.", "model.language_model."),)
_REFUSED_FIELDS: Mapping[str, str] = {
    "lora_bias": "it trains biases of B",
    "layer_replication": "it repeats layers of the base",
    "modules_to_save": "it replaces whole modules of the base",
    "target_parameters": "it adapts bare parameters, such as fused experts",
    "trainable_token_indices": "it changes token embeddings",
    "use_qalora": "it pools its inputs in groups",
    "use_bdlora": "its matrices are block-diagonal",
    "alora_invocation_tokens": "it is switched on by tokens",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it changes the base",
    "velora_config": "it changes the forward pass",
    "monteclora_config": "it changes the forward pass",
}
# Initialisations that leave something else than the original weights in the base.
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
MAX_SCALE = 65_536.0
MAX_RANK = 4_096
_MAX_PATTERNS = 10_000


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of PEFT's LoRA configuration that decides what an adapter computes; ``has_score``: beside it a head."""

    rank: int
    alpha: float
    dropout: float
    use_dora: bool
    use_rslora: bool
    target_modules: Pattern[str] | frozenset[str] | None
    exclude_modules: Pattern[str] | frozenset[str]
    layers_to_transform: frozenset[int]
    layers_pattern: tuple[Pattern[str], ...]
    rank_pattern: Mapping[Pattern[str], object]
    alpha_pattern: Mapping[Pattern[str], object]
    has_score: bool = False

    def rank_of(self, path: str) -> int:
        """Rank of the module at their ``path``."""
        value = _pattern_value(self.rank_pattern, path, self.rank)
        if not isinstance(value, int) or not 1 <= value <= MAX_RANK:
            raise ModelError(f"the adapter's rank for {path} is {value!r}, not a number from 1 to {MAX_RANK}")
        return value

    def scale_of(self, path: str) -> float:
        """Factor on B A of the module at their ``path``: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        alpha = _pattern_value(self.alpha_pattern, path, self.alpha)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise ModelError(f"the adapter's alpha for {path} is {alpha!r}, not a number")
        rank = self.rank_of(path)
        return check_scale(alpha / (rank**0.5 if self.use_rslora else rank))

    def adapts(self, path: str) -> bool:
        """True where the module at their ``path`` belongs to this adapter, if it is a linear layer."""
        if self.target_modules is None or _is_named(path, self.exclude_modules):
            return False
        if isinstance(self.target_modules, Pattern):
            return self.target_modules.pattern == "all-linear" or _is_named(path, self.target_modules)
        if path in self.target_modules:
            return True
        return _is_named(path, self.target_modules) and self._has_layer(path)

    def _has_layer(self, path: str) -> bool:
        if not self.layers_to_transform:
            return True
        found = (pattern.match(path) for pattern in self.layers_pattern)
        match = next((match for match in found if match), None)
        return match is not None and int(match.group(1)) in self.layers_to_transform


def to_theirs(path: str, model_type: str) -> str:
    """Our module path as Hugging Face calls it."""
    for ours, theirs in (*_PREFIXES.get(model_type, ()), *_WRAPPED):
        if path.startswith(ours):
            return theirs + path.removeprefix(ours)
    return path


def to_ours(path: str, model_type: str) -> str:
    """Their module path as mlx-lm calls it; adapters made on a model without its head lack the outer name."""
    for ours, theirs in (*_PREFIXES.get(model_type, ()), *_WRAPPED):
        for start in (theirs, theirs.partition(".")[2]):
            if path.startswith(start) and not path.startswith(ours):
                return ours + path.removeprefix(start)
    return path


def block_list_name(path: str, model_type: str) -> str:
    """Their name of the list that holds our block ``path``, such as ``model.layers.0``: ``layers`` or ``h``."""
    return to_theirs(f"{path}.", model_type).rstrip(".").split(".")[-2]


def parse_peft_config(fields: Mapping[str, object]) -> PeftConfig:
    """PEFT's configuration. Raises ``ModelError`` naming whatever this program cannot reproduce."""
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"this is a {kind} adapter; only LoRA adapters (with or without DoRA) can be read")
    if fields.get("bias", "none") != "none":
        raise ModelError(f"the adapter trains biases of the base (bias = {fields['bias']!r}), which is not supported")
    for name, why in _REFUSED_FIELDS.items():
        if fields.get(name) and (name, fields[name]) != ("modules_to_save", ["score"]):
            raise ModelError(f"the adapter uses {name}, which is not supported: {why}")
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        raise ModelError(
            f"the adapter was started with {start}, which changes the base's weights; it does not fit the original",
            "save it from PEFT as a plain LoRA: save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    rank, alpha, dropout = fields.get("r", 8), fields.get("lora_alpha", 8), fields.get("lora_dropout", 0.0)
    return PeftConfig(
        rank=check_rank(rank),
        alpha=check_number(alpha, "lora_alpha"),
        dropout=min(max(check_number(dropout, "lora_dropout"), 0.0), 0.99),
        use_dora=fields.get("use_dora") is True,
        use_rslora=fields.get("use_rslora") is True,
        target_modules=_names(fields.get("target_modules"), "target_modules"),
        exclude_modules=_names(fields.get("exclude_modules"), "exclude_modules") or frozenset(),
        layers_to_transform=_numbers(fields.get("layers_to_transform")),
        layers_pattern=_layer_patterns(fields.get("layers_pattern")),
        rank_pattern=_patterns(fields.get("rank_pattern"), "rank_pattern"),
        alpha_pattern=_patterns(fields.get("alpha_pattern"), "alpha_pattern"),
        has_score=fields.get("modules_to_save") == ["score"],
    )


def check_rank(value: object) -> int:
    """``value`` as a rank. Raises ``ModelError`` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise ModelError(f"the adapter's rank is {value!r}, not a number from 1 to {MAX_RANK}")
    return value


def check_number(value: object, name: str) -> float:
    """``value`` as a finite number. Raises ``ModelError`` naming ``name``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ModelError(f"the adapter's {name} is {value!r}, not a finite number")
    return float(value)


def check_scale(value: object) -> float:
    """``value`` as a factor on A B. Raises ``ModelError`` where it is not between 0 and 65,536."""
    scale = check_number(value, "scale")
    if not 0 < scale <= MAX_SCALE:
        raise ModelError(f"the adapter's scale is {scale:g}, not a number between 0 and {MAX_SCALE:g}")
    return scale


def _pattern_value(patterns: Mapping[Pattern[str], object], path: str, default: object) -> object:
    matching = [pattern for pattern in patterns if pattern.fullmatch(path)]
    return patterns[max(matching, key=lambda pattern: len(pattern.pattern))] if matching else default


def _is_named(path: str, names: Pattern[str] | frozenset[str]) -> bool:
    """True where a pattern matches the whole path, or one of the names is an end of it."""
    if isinstance(names, Pattern):
        return names.fullmatch(path) is not None
    parts = path.split(".")
    return any(".".join(parts[start:]) in names for start in range(len(parts)))


def _names(value: object, field: str) -> Pattern[str] | frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return compile_pattern(value)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return frozenset(value)
    raise ModelError(f"the adapter's {field} is neither a pattern nor a list of names")


def _layer_patterns(value: object) -> tuple[Pattern[str], ...]:
    """Patterns whose first group is the number of a block; by default the number after any name."""
    values: list[object] = value if isinstance(value, list) else [] if value is None else [value]
    names = [name for name in values if isinstance(name, str)] or [r"[^.]*"]
    if values and len(names) != len(values):
        raise ModelError("the adapter's layers_pattern is neither a pattern nor a list of names")
    bits = MAX_BITS - 12 - math.log2(len(names))  # all of them together, each between two repeats of ours
    return tuple(compile_pattern(name, r"(?:^|.*?\.)", r"\.(\d+)\.", max_bits=bits) for name in names)


def _numbers(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    numbers = frozenset(number for number in values if isinstance(number, int))
    if not all(isinstance(number, int) for number in values):
        raise ModelError("the adapter's layers_to_transform is not a list of numbers")
    return numbers


def _patterns(value: object, field: str) -> Mapping[Pattern[str], object]:
    """Every key as the pattern of a path or of its end."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ModelError(f"the adapter's {field} is not an object of patterns")
    if len(value) > _MAX_PATTERNS:
        raise ModelError(f"the adapter's {field} has {len(value)} patterns; at most {_MAX_PATTERNS} are read")
    bits = MAX_BITS - 6 - math.log2(max(1, len(value)))  # all of them together, each behind a repeat of ours
    return {compile_pattern(key, r"(.*\.)?(", ")$", max_bits=bits): item for key, item in value.items()}
