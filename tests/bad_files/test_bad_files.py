"""Models and adapters from strangers (RELIABILITY.md section 3, numbers 64 to 103) through the doors users have.

Each ends in one sentence that names what is wrong, and nothing is executed. The files are in ``bad_models.py`` and
``bad_adapters.py``; ``test_processes.py`` has exit codes and memory.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering_runs import write_run
from bad_adapters import ADAPTERS
from bad_adapters import CONFIG as ADAPTER_CONFIG
from bad_doors import answer, check, start
from bad_models import LOOPS, MODELS, Bad, change_json, code_for, edit_tensors

from mlx_finetune import rundir
from mlx_finetune.app.open import open_name
from mlx_finetune.errors import MlxftError, ModelError
from mlx_finetune.events import Notice
from mlx_finetune.model import load as loading
from mlx_finetune.model.adapters import files as adapter_files

#: Number of the attack -> cases of ``MODELS`` or ``ADAPTERS`` and tests of this module; else why it is not tested here.
ATTACKS: dict[int, tuple[str, ...] | str] = {
    64: ("pickle only: bin", "pickle only: pt", "pickle only: pkl", "pickle only"),
    65: ("pickle renamed", "pickle renamed, protocol 0", "zip renamed"),
    66: ("test_code_beside_a_model_is_never_run", "code beside: tokenizer"),
    67: ("code beside: model_file",),
    68: ("test_code_beside_a_model_is_never_run", "code beside: tokenizer"),
    69: ("config: helper module", "config: helper with layers", "config: path as model_type"),
    70: ("header: 2^62",),
    71: ("header: 100 MB + 1",),
    72: ("header: 10^6 tensors", "header: a million lists"),
    73: ("header: negative offset",),
    74: ("header: offset past the end",),
    75: ("header: overlap",),
    76: ("header: hole",),
    77: ("file: trailing bytes",),
    78: ("header: duplicate names",),
    79: ("header: shape overflow", "header: shape overflow hidden by a zero"),
    80: ("header: unknown dtype", "weights: F64", "weights: whole numbers"),
    81: ("header: metadata number", "header: 15 MB of metadata"),
    82: ("header: deep", "index: deep", "config: deep"),
    83: ("weights: NaN", "weights: infinite", "peft: NaN", "mlx: NaN", "test_a_nan_is_found_before_it_is_packed"),
    84: ("file: truncated", "file: truncated in the header", "peft: truncated"),
    85: ("index: elsewhere", "index: absolute"),
    86: ("index: missing shard", "index: extra shard"),
    87: ("link: to a device", "link: to itself", "link: to a text", "test_weights_may_be_links_as_in_the_hubs_cache"),
    88: (
        "test_a_file_that_is_replaced_while_it_is_loaded_is_refused",
        "test_an_adapter_that_is_replaced_while_it_is_loaded_is_refused",
    ),
    89: (
        "peft: other shapes",
        "test_an_adapter_of_ours_for_another_base_of_the_same_shapes_is_refused_with_both_names",
        "test_an_adapter_that_only_names_another_base_is_warned_of",
        "test_a_checkpoint_on_a_base_that_has_changed_says_so_when_it_is_opened",
    ),
    90: ("peft: rank 10^6", "mlx: rank 10^6", "peft: rank 0", "peft: rank negative", "peft: rank of a pattern"),
    91: ("peft: scale NaN", "peft: scale 1e30", "peft: alpha infinite", "mlx: scale NaN", "mlx: scale infinite"),
    92: ("peft: one tensor missing", "peft: one layer missing", "mlx: one tensor missing", "mlx: one layer missing"),
    93: ("peft: extra base weights", "mlx: extra base weights", "peft: extra layer", "mlx: extra layer"),
    94: ("test_names_that_are_no_adapter_are_refused",),
    95: ("test_a_gguf_file_with_lying_lengths_is_refused",),
    96: ("tokenizer: catastrophic regex", "test_a_regex_that_goes_wild_on_a_text_only_is_a_sentence_about_that_text"),
    97: (
        "tokenizer: huge",
        "tokenizer: ids beyond the vocabulary",
        "tokenizer: ids beyond 2^31",
        "tokenizer: an added id beyond the vocabulary",
    ),
    98: ("template: dunder chain", "template: globals"),
    99: ("template: endless loop", "test_a_template_of_the_recipe_is_bounded_too"),
    100: (
        "template: gigabyte string",
        "template: lists of wide letters",
        "test_a_template_of_the_recipe_is_bounded_too",
    ),
    101: "what a template writes cannot be judged: `mlxft data preview` shows it, text and targets, before training",
    102: ("template: raise_exception",),
    103: ("test_a_hostile_end_of_text_can_only_end_an_answer", "generation_config: deep"),
}


def test_every_attack_on_models_and_adapters_has_its_case_or_a_reason() -> None:
    assert sorted(ATTACKS) == list(range(64, 104))
    known = MODELS.keys() | ADAPTERS.keys() | globals().keys()
    named = {name for cases in ATTACKS.values() if isinstance(cases, tuple) for name in cases}
    assert named <= known, named - known


def cases(table: Mapping[str, Bad]) -> list[Any]:
    return [pytest.param(bad, route, id=f"{name}-{route}") for name, bad in table.items() for route in bad.routes]


def test_the_good_ones_pass(folder: Path, adapter: Path, tmp_path: Path) -> None:
    answer(folder, tmp_path)
    answer(adapter, tmp_path)
    start(folder, tmp_path)
    start(folder, tmp_path, f"adapter={adapter}", "lora.dropout=0.0")


@pytest.mark.parametrize(("bad", "route"), cases(MODELS))
def test_a_bad_model_is_one_sentence(bad: Bad, route: str, folder: Path, tmp_path: Path) -> None:
    bad.make(folder, tmp_path / "canary")
    with pytest.raises(MlxftError) as caught:
        answer(folder, tmp_path) if route == "answer" else start(folder, tmp_path)
    check(caught, bad.names, tmp_path)


@pytest.mark.parametrize(("bad", "route"), cases(ADAPTERS))
def test_a_bad_adapter_is_one_sentence(bad: Bad, route: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    bad.make(adapter, tmp_path / "canary")
    with pytest.raises(MlxftError) as caught:
        answer(adapter, tmp_path) if route == "answer" else start(folder, tmp_path, f"adapter={adapter}")
    check(caught, bad.names, tmp_path)


@pytest.mark.parametrize(("source", "names"), [(LOOPS, "endless.jinja"), ("{{ 'ab' * 10000000 }}", "endless.jinja")])
def test_a_template_of_the_recipe_is_bounded_too(source: str, names: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "endless.jinja").write_text(source)
    with pytest.raises(MlxftError) as caught:
        start(folder, tmp_path, "data.chat_template=endless.jinja")
    check(caught, names, tmp_path)


def test_code_beside_a_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "sitecustomize.py",
        "__init__.py",
    ):
        (folder / name).write_text(code_for(tmp_path / "canary"))
    names = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    change_json(folder / "config.json", auto_map=names, trust_remote_code=True)
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.T", None]})
    answer(folder, tmp_path)
    start(folder, tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_nan_is_found_before_it_is_packed(bits: int, folder: Path, tmp_path: Path) -> None:
    MODELS["weights: NaN"].make(folder, tmp_path / "canary")
    with pytest.raises(MlxftError, match=rf"{re.escape(str(folder))}: .*up_proj\.weight holds NaN"):
        start(folder, tmp_path, f"quantize={bits}")


def test_weights_may_be_links_as_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    answer(folder, tmp_path)


def test_a_file_that_is_replaced_while_it_is_loaded_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (folder / "model.safetensors").read_bytes()
    original = loading.read_config

    def read_and_replace(path: Path) -> dict[str, object]:
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").replace(folder / "model.safetensors")
        return original(path)

    monkeypatch.setattr(loading, "read_config", read_and_replace)  # between the check of the file and the loading
    with pytest.raises(ModelError, match=r"model\.safetensors was changed while it was being loaded"):
        answer(folder, tmp_path)


def test_an_adapter_that_is_replaced_while_it_is_loaded_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (adapter / rundir.PEFT_WEIGHTS).read_bytes()
    original = adapter_files.check_safetensors

    def check_and_replace(path: Path) -> object:
        found = original(path)
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").replace(path)
        return found

    monkeypatch.setattr(adapter_files, "check_safetensors", check_and_replace)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors was changed while it was being loaded"):
        answer(adapter, tmp_path)


def test_an_adapter_of_ours_for_another_base_of_the_same_shapes_is_refused_with_both_names(
    tiny_model: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    other = tiny_model("llama", seed=5)
    run = write_run(tmp_path / "adapters" / "first", other)
    with pytest.raises(ModelError) as caught:
        start(folder, tmp_path, "adapter=first")
    check(caught, f"was trained on {other.name} (sha256", tmp_path)
    assert f"not on {folder.name} (sha256" in caught.value.message
    assert f'write model = "{other.name}"' in caught.value.hint
    facts = json.loads(run.file(rundir.RUN_INFO).read_text())
    checkpoint = shutil.copytree(run.path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(rundir.RUN_INFO))
    change_json(checkpoint / rundir.TRAINER_STATE, model="its base", identity={"model_sha256": facts["model_sha256"]})
    with pytest.raises(ModelError, match="was trained on its base"):
        start(folder, tmp_path, f"adapter={checkpoint}")
    (checkpoint / rundir.TRAINER_STATE).unlink()  # the way out that the hint names
    events = start(folder, tmp_path, f"adapter={checkpoint}")
    assert any(isinstance(event, Notice) and event.level == "warning" for event in events)


@pytest.mark.parametrize(
    ("name", "is_said"), [("meta-llama/Llama-3.1-8B", True), ("someone/M", False), ("/models/m", False), ("", False)]
)
def test_an_adapter_that_only_names_another_base_is_warned_of(
    name: str, is_said: bool, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    change_json(adapter / ADAPTER_CONFIG, base_model_name_or_path=name)
    events = start(folder, tmp_path, f"adapter={adapter}")
    said = [event.message for event in events if isinstance(event, Notice) and event.level == "warning"]
    assert said == (
        [f"the adapter in {adapter} says that it was trained on {name}; this run starts from m"] if is_said else []
    )


def test_a_checkpoint_on_a_base_that_has_changed_says_so_when_it_is_opened(folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "adapters" / "first", folder)
    checkpoint = run.path / "checkpoint-2"
    checkpoint.mkdir()
    for name in (ADAPTER_CONFIG, rundir.PEFT_WEIGHTS, rundir.MLX_WEIGHTS):
        (run.path / name).rename(checkpoint / name)
    identity = {"model_sha256": "0" * 64}
    change_json(checkpoint / rundir.TRAINER_STATE, model="m", model_folder=str(folder), identity=identity)
    said: list[Any] = []
    answer(checkpoint, tmp_path, said)
    warnings = [event.message for event in said if isinstance(event, Notice) and event.level == "warning"]
    assert len(warnings) == 1
    assert warnings[0].startswith("m is not the file this was trained on")


@pytest.mark.parametrize(
    "name",
    [
        "../..",
        "/etc",
        "%2e%2e",
        "a\0b",
        "CON",
        "x" * 300,
        "x/" * 3000,
        "~nobody-here/x",
        "\ud800",
        "",
        "/dev/zero",
        "loop",
    ],
)
def test_names_that_are_no_adapter_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MlxftError) as caught:
        answer(name, tmp_path)
    assert "\n" not in caught.value.message
    if name and "\0" not in name:  # TOML has no NUL; an empty name is no adapter
        with pytest.raises(MlxftError):
            start(folder, tmp_path, f"adapter={name!a}")


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF" + b"\x03\0\0\0" + (2**62).to_bytes(8, "little") * 2,
        b"GGUF" + b"\x03\0\0\0" + (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"\xff" * 8 + b"abcd",
        b"GGUF" + b"\x03\0\0\0" + b"\0" * 16,
        b"GGUF",
        b"",
    ],
)
def test_a_gguf_file_with_lying_lengths_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(MlxftError) as caught:
        answer(tmp_path / "m.gguf", tmp_path)
    check(caught, "m.gguf", tmp_path)


def test_a_regex_that_goes_wild_on_a_text_only_is_a_sentence_about_that_text(folder: Path, tmp_path: Path) -> None:
    MODELS["tokenizer: catastrophic regex"].make(folder, tmp_path)
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["pre_tokenizer"]["pattern"]["Regex"] = "(?:(?:ab)+(?:ab)+)+x"  # no probe has this
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    answer(folder, tmp_path)
    with pytest.raises(MlxftError, match=r"the tokenizer cannot read this text: .*retry-limit"):
        answer(folder, tmp_path, text="ab" * 60)


def test_padding_cutting_and_dropout_of_a_tokenizer_are_switched_off(folder: Path, tmp_path: Path) -> None:
    before = open_name(str(folder), base=tmp_path, report=lambda _: None).tokenizer.encode("a short text " * 9).ids
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    fields["padding"] = {"strategy": {"Fixed": 10**6}, "direction": "Right", "pad_to_multiple_of": None}
    fields["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    fields["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    assert (
        open_name(str(folder), base=tmp_path, report=lambda _: None).tokenizer.encode("a short text " * 9).ids == before
    )


@pytest.mark.parametrize("eos", [[-1, 10**30, True, None, "x", [1], {}], list(range(299)) * 1000, 10**30, "x"])
def test_a_hostile_end_of_text_can_only_end_an_answer(eos: object, folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    answer(folder, tmp_path)


def test_an_embedding_larger_than_the_tokenizer_is_fine(folder: Path, tmp_path: Path) -> None:
    fields = json.loads((folder / "tokenizer.json").read_text())
    rows = len(fields["model"]["vocab"])
    weights = {name: np.zeros((1, 64), np.float32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    edit_tensors(
        folder / "model.safetensors",
        lambda found: found.update({name: np.concatenate([found[name], row]) for name, row in weights.items()}),
    )
    change_json(folder / "config.json", vocab_size=rows + 1)
    answer(folder, tmp_path)
    start(folder, tmp_path)
