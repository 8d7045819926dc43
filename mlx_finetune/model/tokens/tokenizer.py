"""A model folder's tokenizer and chat template, through the Rust ``tokenizers`` library alone.

``tokenizer.json`` is the truth: nothing is rebuilt from class names, and no code of a model is ever run. Folders that
hold only ``vocab.json`` and ``merges.txt`` or a sentencepiece ``tokenizer.model`` are converted through transformers
(2 s more on import). Offsets of byte-level tokenizers are not trimmed, so a blank belongs to the token that holds it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as FastTokenizer

from mlx_finetune.dataset.control import is_marker
from mlx_finetune.dataset.tokens import Encoded, Encoding, Message, Span
from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.model.templates.chat_template import ChatTemplate, take_marks
from mlx_finetune.model.tokens.encoding import LazyEncoding
from mlx_finetune.model.tokens.start import START, start_id
from mlx_finetune.model.tokens.tokenizer_check import check_size, check_tokenizer, read_tokenizer, reading_text

MAX_TEMPLATE_BYTES = 1_000_000
_MAX_CONFIG_BYTES = 50_000_000
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
_PROBE = "mlxft probe"
_CONVERTED = "The quick brown fox, 1234 times, jumps over the lazy dog's back."

Config = Mapping[str, object]


def load_tokenizer(folder: Path, *, chat_template: str = "auto") -> "ModelTokenizer":
    """The tokenizer of a local model folder; ``chat_template`` is ``auto`` (the model's own) or a path to a Jinja file.

    Raises ``ModelError`` where there is no tokenizer, it cannot be read, or it has no end-of-text token.
    """
    config = _read_json(folder / "tokenizer_config.json")
    backend, defaults = _load_backend(folder)
    _untrim_offsets(backend)
    _add_missing_tokens(backend, config)
    names = defaults | _special_names(folder, config)
    ids = {name: backend.token_to_id(names.get(name, "")) for name in _TOKEN_NAMES}
    if config.get("add_bos_token") is True:
        _begin_texts(backend, names.get("bos_token", ""))
    ends = _end_ids(folder, ids["eos_token"], backend.get_vocab_size(with_added_tokens=True))
    eos = ids["eos_token"] if ids["eos_token"] is not None else next(iter(ends), None)
    if eos is None:
        raise ModelError(
            f"{folder}: the tokenizer names no end-of-text token", "add eos_token to tokenizer_config.json"
        )
    names["eos_token"] = names.get("eos_token") or backend.id_to_token(eos) or ""
    source, origin, where = _template_source(folder, config, chat_template)
    template = ChatTemplate(source, variables=names, path=where) if source else None
    pad = ids["pad_token"] if ids["pad_token"] is not None else eos
    path = folder / "tokenizer.json"
    digest = hashlib.sha256(path.read_bytes() if path.is_file() else backend.to_str().encode())
    digest.update(repr((source, eos, ids["bos_token"], pad, sorted(ends))).encode())
    settings = json.dumps([digest.hexdigest(), config, sorted(names.items())], sort_keys=True)
    return ModelTokenizer(
        backend,
        template,
        origin,
        eos=eos,
        bos=ids["bos_token"],
        pad=pad,
        unk=ids["unk_token"],
        start=start_id(_read_json(folder / "config.json"), config),
        ends=frozenset({eos, *ends}),
        content_hash=digest.hexdigest(),
        settings_hash=hashlib.sha256(settings.encode("ascii")).hexdigest(),
    )


class ModelTokenizer:
    """Implements ``dataset.tokens.Tokenizer``."""

    def __init__(
        self,
        backend: FastTokenizer,
        template: ChatTemplate | None,
        template_name: str,
        *,
        eos: int,
        bos: int | None,
        pad: int,
        start: int | None = None,
        unk: int | None = None,
        ends: frozenset[int],
        content_hash: str,
        settings_hash: str,
    ) -> None:
        """``settings_hash`` covers what ``content_hash`` does and whatever else decides how a text is read."""
        self.eos_token_id = eos
        self.bos_token_id = bos
        self.pad_token_id = pad
        self.start_token_id, self.unk_token_id = start, unk
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.has_chat_template = template is not None
        self.template_name = template_name
        self.template_source = template.source if template else ""
        added = backend.get_added_tokens_decoder()
        self.control_tokens: Mapping[str, int] = {token.content: id_ for id_, token in added.items()}
        self.special_tokens = frozenset(token.content for token in added.values() if token.special)
        self.content_hash = content_hash
        self.settings_hash = settings_hash
        self._backend = backend
        self._template = template
        self.stop_token_ids = ends
        if template:
            self.stop_token_ids = ends | self._turn_ends()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = False,
        arguments: Mapping[str, object] = {},
    ) -> str:
        """The conversation as text. Raises ``DataError`` with what the template says against it."""
        return self._need_template().render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, arguments=arguments
        )

    def assistant_spans(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None, arguments: Mapping[str, object]
    ) -> tuple[str, list[Span]] | None:
        """The text and the spans inside ``{% generation %}``; None where the template has no such tag."""
        template = self._need_template()
        if not template.has_generation_tags:
            return None
        marked = template.render(messages, tools=tools, add_generation_prompt=False, arguments=arguments, marks=True)
        text, spans = take_marks(marked)
        if text != self.render(messages, tools=tools, arguments=arguments):
            raise DataError("the conversation holds the NUL characters that mark the assistant's words")
        return text, spans

    def encode(self, text: str, *, add_special_tokens: bool = False) -> Encoded:
        """Ids and offsets of ``text``."""
        with reading_text():
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return Encoding(encoding.ids, encoding.offsets)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Encoded]:
        """``encode`` of each text, on all cores where TOKENIZERS_PARALLELISM allows it."""
        with reading_text():
            batch = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [LazyEncoding(encoding) for encoding in batch]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ``ids``, control tokens included unless they are skipped."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def files(self) -> dict[str, str]:
        """File name -> text of what other tools need beside the weights (see DESIGN.md 4)."""
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for name, token_id in (("bos_token", self.bos_token_id), ("eos_token", self.eos_token_id)):
            if token_id is not None:
                config[name] = self._backend.id_to_token(token_id)
        config["pad_token"] = self._backend.id_to_token(self.pad_token_id)
        if self.start_token_id is not None:
            config[START] = self.start_token_id
            if self.unk_token_id is not None:
                config["unk_token"] = self._backend.id_to_token(self.unk_token_id)
        files = {"tokenizer.json": self._backend.to_str()}
        if self.template_source:
            config["chat_template"] = self.template_source
            files["chat_template.jinja"] = self.template_source
        return files | {"tokenizer_config.json": json.dumps(config, indent=1)}

    def largest_id(self) -> int:
        """The largest id of the vocabulary proper; tokens added to it are not counted."""
        return max(self._backend.get_vocab(with_added_tokens=False).values(), default=0)

    def _need_template(self) -> ChatTemplate:
        if self._template is None:
            raise DataError("this tokenizer has no chat template", "set data.chat_template to a Jinja file")
        return self._template

    def _turn_ends(self) -> frozenset[int]:
        """Control tokens that end a conversation after a reply and after a tool call."""
        user: Message = {"role": "user", "content": "a"}
        reply: Message = {"role": "assistant", "content": _PROBE}
        call = {"name": "f", "arguments": {"x": 1}}
        tool_call: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00001", "type": "function", "function": call}],
        }
        tool: Message = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
        found: set[int] = set()
        for messages, tools in (([user, reply], None), ([user, reply], [tool]), ([user, tool_call], [tool])):
            try:
                text = self.render(messages, tools=tools)
            except DataError:
                continue
            if reply in messages:
                _, said, tail = text.rpartition(_PROBE)
                end = self._end_in_first_group(tail) if said else None
            else:
                end = self._one_of(text.rstrip(), str.endswith)
                begun = self.render([user], tools=tools, add_generation_prompt=True)
                end = None if end and begun.rstrip().endswith(end) else end  # some begin a reply whether asked or not
            found |= {self.control_tokens[end]} if end else set()
        return frozenset(found)

    def _end_in_first_group(self, tail: str) -> str | None:
        """Of the control tokens side by side right after the reply: an end of text, else the first."""
        group: list[str] = []
        tail = tail.lstrip()
        while (token := self._one_of(tail, str.startswith)) is not None:
            group.append(token)
            tail = tail[len(token) :]
        ends = (token for token in group if self.control_tokens[token] in self.stop_token_ids)
        return next(ends, group[0] if group else None)

    def _one_of(self, text: str, matches: Callable[[str, str], bool]) -> str | None:
        found = (token for token in self.control_tokens if is_marker(token) and matches(text, token))
        return max(found, key=len, default=None)


def _load_backend(folder: Path) -> tuple[FastTokenizer, dict[str, str]]:
    """The tokenizer, and the names of bos, eos, pad and unk that a converted one brings along."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return read_tokenizer(path), {}
    if (folder / "tokenizer.model").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    ):
        return _convert(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", "fetch the model first: mlxft models get NAME")
    raise ModelError(
        f"{folder}: no tokenizer in this folder",
        "it needs tokenizer.json, or tokenizer.model, or vocab.json and merges.txt; fetch the model again",
    )


def _convert(folder: Path) -> tuple[FastTokenizer, dict[str, str]]:
    """The fast form of an older tokenizer. Only files of the folder are read; code in it is never run."""
    from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer

    has_class = (folder / "tokenizer_config.json").is_file() or (folder / "config.json").is_file()
    is_sentencepiece = (folder / "tokenizer.model").is_file()
    cls = AutoTokenizer if has_class else LlamaTokenizer if is_sentencepiece else GPT2Tokenizer
    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        check_size(folder / name)
    options: dict[str, Any] = {} if has_class else {"add_bos_token": is_sentencepiece}
    try:
        made = cls.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
        names = {name: made.special_tokens_map.get(name) for name in _TOKEN_NAMES}
        backend = cast("FastTokenizer", made.backend_tokenizer)
    except Exception as error:  # whatever a damaged file makes of the converters
        said = " ".join(str(error).split())[:300]
        is_code = "trust_remote_code" in str(error)
        why = "it is code in this folder, which is never run" if is_code else f"{type(error).__name__}: {said}"
        raise ModelError(
            f"{folder}: the tokenizer cannot be converted: {why}", "use a copy of the model that has a tokenizer.json"
        ) from error
    check_tokenizer(backend, folder)
    if is_sentencepiece:
        _check_converted(backend, folder / "tokenizer.model")
    return backend, {name: str(token) for name, token in names.items() if token}


def _check_converted(backend: FastTokenizer, path: Path) -> None:
    """Raise ``ModelError`` where the converted tokenizer reads a text otherwise than the sentencepiece model itself.

    transformers 5.23 takes every model for BPE or unigram by the name of its class alone; with another kind inside,
    all ids are wrong and nothing says so (``test_a_sentencepiece_model_of_another_kind_is_refused``).
    """
    from sentencepiece import SentencePieceProcessor

    ids = SentencePieceProcessor(model_file=str(path)).EncodeAsIds(_CONVERTED)
    if ids != backend.encode(_CONVERTED, add_special_tokens=False).ids:
        raise ModelError(
            f"{path}: converted, the tokenizer gives other tokens than the sentencepiece model",
            "use a copy of the model that has a tokenizer.json",
        )


def _untrim_offsets(backend: FastTokenizer) -> None:
    """Make byte-level offsets cover leading blanks: a trimmed blank would look as if it began in the next token."""
    if backend.post_processor is None:
        return
    state = backend.post_processor.__getstate__()
    plain = state.replace(b'"trim_offsets":true', b'"trim_offsets":false')
    if plain != state:
        processor = backend.post_processor
        processor.__setstate__(plain)
        backend.post_processor = processor


def _begin_texts(backend: FastTokenizer, bos: str) -> None:
    """Let ``encode(add_special_tokens=True)`` begin with ``bos``; some folders ask for it in their config alone."""
    bos_id = backend.token_to_id(bos)
    if bos_id is None or backend.encode("a").ids[:1] == [bos_id]:
        return
    begin = processors.TemplateProcessing(single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, bos_id)])
    before = backend.post_processor
    backend.post_processor = begin if before is None else processors.Sequence([before, begin])


def _add_missing_tokens(backend: FastTokenizer, config: Config) -> None:
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    known = backend.get_added_tokens_decoder()
    numbered = ((int(key), value) for key, value in listed.items() if re.fullmatch(r"[0-9]{1,9}", str(key)))
    missing: list[AddedToken] = []
    for key, value in sorted(numbered, key=lambda item: item[0]):
        if isinstance(value, dict) and isinstance(value.get("content"), str):
            content = value["content"]
            if key not in known and backend.token_to_id(content) in (key, None):
                is_special = bool(value.get("special"))
                is_normalized = bool(value.get("normalized", not is_special))
                missing.append(AddedToken(content, special=is_special, normalized=is_normalized))
    backend.add_tokens(missing)  # all at once: one by one, the time grows with the square of their number


def _special_names(folder: Path, config: Config) -> dict[str, str]:
    """The text of bos, eos, pad and unk, as far as they are named."""
    fallback = _read_json(folder / "special_tokens_map.json")
    names: dict[str, str] = {}
    for name in _TOKEN_NAMES:
        value = config.get(name) or fallback.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and value:
            names[name] = value
    return names


def _end_ids(folder: Path, eos: int | None, vocab_size: int) -> list[int]:
    """Ids named as end of text: by the tokenizer first, then by generation_config.json and config.json."""
    found = dict.fromkeys([] if eos is None else [eos])
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        found |= dict.fromkeys(id_ for id_ in values if type(id_) is int and 0 <= id_ < vocab_size)
    return list(found)


def _template_source(folder: Path, config: Config, chat_template: str) -> tuple[str, str, Path]:
    """The template's text, where it comes from in words, and its file; the text is empty for a base model."""
    if chat_template != "auto":
        path = Path(chat_template).expanduser()
        if not path.is_file():
            raise ModelError(
                f"chat_template = {chat_template!r}: there is no such file", 'write "auto" or a Jinja file'
            )
        return _read_template(path), chat_template, path
    for name in ("chat_template.jinja", "chat_template.json"):
        path = folder / name
        if path.is_file():
            text = _read_template(path) if name.endswith(".jinja") else _default_template(_read_json(path))
            return text, f"the model's own ({name})", path
    name = "tokenizer_config.json"
    return _default_template(config), f"the model's own ({name})", folder / name


def _default_template(config: Config) -> str:
    value = config.get("chat_template")
    if isinstance(value, list):  # several named templates: [{"name": "default", "template": ...}, ...]
        named = [item.get("template") for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = named[-1] if named else None
    return value if isinstance(value, str) else ""


def _read_template(path: Path) -> str:
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise ModelError(
            f"{path}: a chat template of {path.stat().st_size} bytes", "choose another with data.chat_template"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: the chat template is not UTF-8", "save it as UTF-8") from error


def _read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file; empty where the file is missing. Raises ``ModelError`` where it is damaged."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes are too many for this file", "fetch the model again")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair would fail later, anywhere
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}", "fetch the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object", "fetch the model again")
    return cast("dict[str, object]", value)
