"""Model folders that are broken or hostile, each made from a good one: what is changed, and what must be named.

``MODELS`` maps names to ``Bad``; its ``make`` is handed a folder with the tiny llama and a place for a canary, a file
that appears if anything in the folder is executed.
"""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS, CONFIG, TOKENIZER, TEMPLATE = "model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"
INDEX = "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"
LOOPS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
GIGABYTE = (
    "{% set ns = namespace(t='abcd') %}{% for i in range(40) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"
)

Make = Callable[[Path, Path], object]
Header = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """``names`` must occur in the message. ``routes`` are the ways in which the folder is used."""

    make: Make
    names: str
    routes: tuple[str, ...] = ("answer", "train")


class Canary:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({self.path!r}, 'w').close()",)


def code_for(canary: Path) -> str:
    """Python that leaves the canary when it is imported."""
    return f"open({str(canary)!r}, 'w').close()\n"


def change_json(path: Path, **fields: object) -> None:
    """Set fields of a JSON object; None removes one."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (old | fields).items() if value is not None}))


def edit_header(path: Path, change: Callable[[Header], object]) -> None:
    """Rewrite the header of a safetensors file, leaving its data as they are."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    text = change(header) or json.dumps(header)
    encoded = text if isinstance(text, bytes) else str(text).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Rewrite the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, {"format": "pt"})


def header(change: Callable[[Header], object]) -> Bad:
    """A weight file whose header is changed."""
    return Bad(lambda folder, _: edit_header(folder / WEIGHTS, change), WEIGHTS)


def entry(**fields: object) -> Bad:
    """A weight file in whose header one tensor is changed."""
    return header(lambda found: found[UP].update(fields))


def moved(by: int, *, end: int = 0) -> Bad:
    """One tensor elsewhere in the file, or longer."""

    def change(found: Header) -> None:
        start, stop = found[UP]["data_offsets"]
        found[UP]["data_offsets"] = [start + by, stop + by + end]

    return header(change)


def twice(found: Header) -> str:
    return json.dumps(found)[:-1] + f", {json.dumps(UP)}: {json.dumps(found[UP])}}}"


def bytes_of(change: Callable[[bytes], bytes], name: str = WEIGHTS) -> Bad:
    """A file whose bytes are changed."""
    return Bad(lambda folder, _: (folder / name).write_bytes(change((folder / name).read_bytes())), name)


def text_of(name: str, content: str, names: str = "") -> Bad:
    """A file with this content."""
    return Bad(lambda folder, _: (folder / name).write_text(content), names or name)


def sparse(name: str, size: int, start: bytes = b"") -> Bad:
    """A file of ``size`` bytes that takes no room."""

    def make(folder: Path, _: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return Bad(make, name)


def config(names: str = CONFIG, **fields: object) -> Bad:
    """A config.json with fields changed."""
    return Bad(lambda folder, _: change_json(folder / CONFIG, **fields), names)


def value(number: float, name: str = UP) -> Bad:
    """One number of one weight."""
    return Bad(
        lambda folder, _: edit_tensors(folder / WEIGHTS, lambda found: found[name].__setitem__((0, 0), number)), name
    )


def only_pickle(name: str) -> Bad:
    """The weights as a pickle, and nothing else."""

    def make(folder: Path, canary: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))

    return Bad(make, name)


def renamed_pickle(protocol: int) -> Bad:
    return Bad(lambda folder, canary: (folder / WEIGHTS).write_bytes(pickle.dumps(Canary(canary), protocol)), WEIGHTS)


def renamed_zip(folder: Path, canary: Path) -> None:
    """As torch.save writes it."""
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Canary(canary)))


def indexed(name: str) -> Bad:
    """An index that says where one tensor lies."""

    def make(folder: Path, _: Path) -> None:
        weight_map = dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {UP: name}}))

    return Bad(make, INDEX)


def extra_shard(folder: Path, _: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)}))
    save_file({"x": np.zeros(1, np.float32)}, folder / "model-extra.safetensors")


def link_to(target: str) -> Bad:
    def make(folder: Path, _: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to(target)

    return Bad(make, "model")


def code_beside(folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(code_for(canary))
    change_json(folder / CONFIG, model_file="evil.py")


def code_of_a_tokenizer(folder: Path, canary: Path) -> None:
    """No tokenizer.json, so that another library has to convert; the class it is told of is in the folder."""
    (folder / TOKENIZER).unlink()
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    (folder / "evil.py").write_text(code_for(canary))
    names = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    change_json(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=names)
    change_json(folder / CONFIG, auto_map=names | {"AutoConfig": "evil.Config"}, model_type="llama")


def no_end(folder: Path, _: Path) -> None:
    change_json(folder / "tokenizer_config.json", eos_token=None)
    change_json(folder / CONFIG, eos_token_id=10**9)


def tokenizer(change: Callable[[dict[str, Any]], object], names: str = TOKENIZER) -> Bad:
    """A tokenizer.json that is changed."""

    def make(folder: Path, _: Path) -> None:
        fields = json.loads((folder / TOKENIZER).read_text())
        change(fields)
        (folder / TOKENIZER).write_text(json.dumps(fields))

    return Bad(make, names)


def split_by(pattern: str) -> Bad:
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return tokenizer(lambda found: found.update(pre_tokenizer=part))


def replacing(text: str, count: int) -> Bad:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": text}
    return tokenizer(lambda found: found.update(normalizer={"type": "Sequence", "normalizers": [one] * count}))


def template(source: str) -> Bad:
    return text_of(TEMPLATE, source, "chat template")


MODELS: Mapping[str, Bad] = {
    "pickle only: bin": only_pickle("pytorch_model.bin"),
    "pickle only: pt": only_pickle("model.pt"),
    "pickle only: pkl": only_pickle("weights.pkl"),
    "pickle renamed": renamed_pickle(4),
    "pickle renamed, protocol 0": renamed_pickle(0),
    "zip renamed": Bad(renamed_zip, WEIGHTS),
    "code beside: model_file": Bad(code_beside, "evil.py"),
    "code beside: tokenizer": Bad(code_of_a_tokenizer, "which is never run"),
    "config: helper module": config("'cache'", model_type="cache"),
    "config: helper with layers": config("'switch_layers'", model_type="switch_layers"),
    "config: path as model_type": config("'../llama'", model_type="../llama"),
    "config: hidden 0": config(hidden_size=0),
    "config: heads 0": config(num_attention_heads=0),
    "config: heads that do not divide": config(num_attention_heads=7),
    "config: 10^9 layers": config(num_hidden_layers=10**9),
    "config: 10^9 layers inside": config(text_config={"num_hidden_layers": 10**9}),
    "config: huge vocabulary": config("config.json", vocab_size=10**6),
    "config: no vocabulary": config(vocab_size=None),
    "config: NaN": config("config.json", rms_norm_eps=float("nan")),
    "config: rope of a text": config(rope_theta="x"),
    "config: rope of 0": config("config.json", rope_theta=0),
    "config: quantization of a text": config(quantization_config={"quant_method": "gptq"}, names="gptq"),
    "config: no table": text_of(CONFIG, "[]"),
    "config: deep": text_of(CONFIG, "[" * 100_000),
    "config: 11 MB": sparse(CONFIG, 11_000_000),
    "header: 2^62": bytes_of(lambda content: struct.pack("<Q", 2**62) + content[8:]),
    "header: 100 MB + 1": sparse(WEIGHTS, 200_000_000, struct.pack("<Q", 100_000_001)),
    "header: 10^6 tensors": header(
        lambda _: "{" + ",".join(f'"{n}":{{"dtype":"U8"}}' for n in range(10**6 // 2)) + "}"
    ),
    "header: a million lists": header(lambda _: '{"a":[' + "[]," * 2_000_000 + "[]]}"),
    "header: 15 MB of metadata": Bad(
        lambda folder, _: edit_header(
            folder / WEIGHTS,
            lambda _: '{"__metadata__":{' + ",".join(f'"{n}":""' for n in range(1_250_000)) + ',"x":1}}',
        ),
        WEIGHTS,
        ("train",),  # takes 2 s
    ),
    "header: negative offset": moved(-(10**6)),
    "header: offset past the end": moved(10**9),
    "header: overlap": moved(-4),
    "header: hole": moved(4),
    "header: longer than its tensor": moved(0, end=4),
    "header: duplicate names": header(twice),
    "header: shape overflow": entry(shape=[2**62, 4]),
    "header: shape overflow hidden by a zero": entry(shape=[2**62, 2**62, 0]),
    "header: unknown dtype": entry(dtype="F17"),
    "header: metadata number": header(lambda found: found.update({"__metadata__": {"x": 1}})),
    "header: deep": header(lambda _: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "file: truncated": bytes_of(lambda content: content[:-100]),
    "file: truncated in the header": bytes_of(lambda content: content[:100]),
    "file: empty": bytes_of(lambda _: b""),
    "file: trailing bytes": bytes_of(lambda content: content + b"PK\x03\x04"),
    "weights: F64": Bad(
        lambda folder, _: edit_tensors(
            folder / WEIGHTS, lambda found: found.update({UP: found[UP].astype(np.float64)})
        ),
        "F64",
    ),
    "weights: whole numbers": Bad(
        lambda folder, _: edit_tensors(folder / WEIGHTS, lambda found: found.update({UP: found[UP].astype(np.int32)})),
        UP,
    ),
    "weights: NaN": value(np.nan),
    "weights: infinite": value(np.inf),
    "weights: NaN in the embedding": value(np.nan, "model.embed_tokens.weight"),
    "weights: one missing": Bad(
        lambda folder, _: edit_tensors(folder / WEIGHTS, lambda found: found.pop(UP)), "do not belong together"
    ),
    "weights: one more": Bad(
        lambda folder, _: edit_tensors(folder / WEIGHTS, lambda found: found.update({"model.extra": found[UP]})),
        "model.extra",
    ),
    "index: elsewhere": indexed("../../x.safetensors"),
    "index: absolute": indexed("/etc/x.safetensors"),
    "index: missing shard": Bad(indexed("model-2.safetensors").make, "model-2.safetensors is missing"),
    "index: extra shard": Bad(extra_shard, "model-extra.safetensors"),
    "index: deep": text_of(INDEX, "[" * 100_000),
    "link: to a device": link_to("/dev/zero"),
    "link: to itself": link_to(WEIGHTS),
    "link: to a text": link_to("/etc/hostname"),
    "tokenizer: garbage": text_of(TOKENIZER, "\0\x01garbage"),
    "tokenizer: no model": text_of(TOKENIZER, "{}"),
    "tokenizer: deep": text_of(TOKENIZER, '{"model":' * 100_000),
    "tokenizer: huge": sparse(TOKENIZER, 200_000_000),
    "tokenizer: catastrophic regex": split_by(r"(?:e+e+)+x"),
    "tokenizer: regex that is none": split_by("((("),
    "tokenizer: a panic while it is read": tokenizer(
        lambda found: found.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    ),
    "tokenizer: a letter becomes a million": replacing("a" * 1_000_000, 1),
    "tokenizer: a letter becomes 2^60": replacing("aa", 60),
    "tokenizer: ids beyond the vocabulary": tokenizer(
        lambda found: found["model"]["vocab"].update({"H": 300}), "token id 300"
    ),
    "tokenizer: ids beyond 2^31": tokenizer(lambda found: found["model"]["vocab"].update({"H": 2**32 - 1})),
    "tokenizer: an added id beyond the vocabulary": tokenizer(
        lambda found: found["added_tokens"].append(found["added_tokens"][0] | {"id": 299, "content": "assistant"}),
        "token id 299",
    ),
    "tokenizer_config: half a surrogate pair": text_of("tokenizer_config.json", '{"bos_token": "\\ud800"}'),
    "tokenizer_config: no end of text": Bad(no_end, "end-of-text"),
    "generation_config: deep": text_of("generation_config.json", "[" * 100_000),
    "template: dunder chain": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template: globals": template("{{ cycler.__init__.__globals__.os.system('touch canary') }}"),
    "template: endless loop": template(LOOPS),
    "template: gigabyte string": template(GIGABYTE),
    "template: gigabyte by replace": template("{{ ('a' * 100000)|replace('a', 'b' * 100000) }}"),
    "template: lists of wide letters": template(
        "{% set t = '\U0001f600\U0001f601' * 2400000 %}{% set a = t|list %}{% set b = t|list %}{{ (a + b + a)|length }}"
    ),
    "template: raise_exception": template("{{ raise_exception('no\nway \x1b[2J') }}"),
    "template: no Jinja": template("{% for %}"),
    "template: a megabyte": template("x" * 1_000_001),
    "template: in tokenizer_config": Bad(
        lambda folder, _: change_json(folder / "tokenizer_config.json", chat_template=LOOPS), "tokenizer_config.json"
    ),
    "template: 1 MB in tokenizer_config": Bad(
        lambda folder, _: change_json(folder / "tokenizer_config.json", chat_template="x" * 1_000_000),
        "tokenizer_config.json",
    ),
}
