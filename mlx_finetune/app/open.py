"""What a user names (run, checkpoint, adapter folder, model) becomes a model with tokenizer and chat settings.

A run brings the settings of its own recipe, so what answers here is what was trained: the same template, the same
quantised base, the same system message. ``chat`` and ``generate`` start here.
"""

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_finetune import durable, rundir
from mlx_finetune.dataset.prompts import continues_text
from mlx_finetune.errors import ModelError, RunError, UsageError
from mlx_finetune.events import Notice, Phase
from mlx_finetune.hardware.limits import compute_dtype, read_machine
from mlx_finetune.model.adapters.base import fetch_recorded, recorded_sha256
from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.adapters.folder import hash_adapter
from mlx_finetune.model.adapters.lora import AdapterSpec, adapter_layers, detach_adapter
from mlx_finetune.model.files.config import read_config
from mlx_finetune.model.heads.score import HeadSpec
from mlx_finetune.model.inside.parts import check_ids
from mlx_finetune.model.load import LoadedModel, ModelInfo, load_model, on_gpu
from mlx_finetune.model.sources import hub
from mlx_finetune.model.sources.catalogue import find_entry, nearest_names
from mlx_finetune.model.sources.fetch import LocalModel, fetch_model, path_of
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.model.trained import attach_trained, tokenizer_folder
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.load import recorded_recipe
from mlx_finetune.recipe.schema import ChatRecipe, Recipe, ServeRecipe
from mlx_finetune.rundir import RunDir, runs_like

Report = Callable[[Phase | Notice], None]


@dataclass(frozen=True, slots=True)
class Located:
    """What a name stands for. ``adapter`` is a folder with adapter weights; ``model`` a model's own name or folder.

    ``facts`` are those of run.json, or of trainer_state.json for a checkpoint that lies elsewhere; empty for others.
    """

    name: str
    adapter: Path | None
    model: str | None
    run: RunDir | None
    facts: Mapping[str, object]
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """Ready to answer. ``spec`` is None without an adapter; ``load_base`` loads what a fully trained model began as.

    ``adapter_sha256`` is that of the adapter's files of weights (``hash_adapter``), None without an adapter; ``serve``
    what its recipe wants served; ``head`` what its score head gives, None without one.
    """

    located: Located
    name: str
    model: nn.Module
    info: ModelInfo
    tokenizer: ModelTokenizer
    data: DataRecipe
    chat: ChatRecipe
    spec: AdapterSpec | None
    adapter_sha256: str | None
    load_base: Callable[[], nn.Module] | None
    serve: ServeRecipe
    head: HeadSpec | None = None

    @property
    def run(self) -> RunDir | None:
        """The run it comes from."""
        return self.located.run

    @property
    def has_base(self) -> bool:
        """True where there is something to compare with."""
        return self.spec is not None or self.load_base is not None


def open_name(name: str, *, base: Path, report: Report) -> Opened:
    """Load what ``name`` stands for; relative names are looked up in ``base`` and ``base/adapters``.

    Raises ``RunError`` or ``ModelError`` with the names there are.
    """
    return next(open_each([name], base=base, report=report))


def open_each(names: Sequence[str], *, base: Path, report: Report) -> Generator[Opened]:
    """Open several names on one base, which is loaded once; each is attached to it until the next one is asked for.

    Raises as ``open_name`` does, and ``ModelError`` for a name whose base is another or was quantised otherwise.
    """
    first: tuple[str, LoadedModel, int | None] | None = None
    for name in names:
        located = locate(name, base=base)
        if located.notice:
            report(Notice("warning", located.notice))
        recipe = read_recipe(located, report)
        local = _fetch(located, report)
        bits = recipe.quantize if recipe is not None and located.adapter is not None else None
        if first is None:
            report(Phase("load", detail=local.name))
            first = name, _load(local, recipe if located.adapter is not None else None, report), bits
        elif (local.sha256, bits) != (first[1].info.sha256, first[2]):
            raise ModelError(
                f"{name} does not share the base of {first[0]}",
                "adapters of one base, quantised alike, can be open together",
            )
        yield _attach(located, recipe, first[1], local, report)


def _attach(located: Located, recipe: Recipe | None, loaded: LoadedModel, local: LocalModel, report: Report) -> Opened:
    is_adapter = located.adapter is not None
    folder = located.adapter or (Path(located.model) if located.run and located.model else None)
    spec, head = attach_trained(loaded.model, folder, is_adapter=is_adapter)
    tokenizer = load_tokenizer(tokenizer_folder(located.adapter, local.folder))  # a run keeps its template with it
    check_ids(loaded.model, [tokenizer.largest_id()], f"the tokenizer of {located.name}")
    return Opened(
        located=located,
        name=located.name,
        model=loaded.model,
        info=loaded.info,
        tokenizer=tokenizer,
        data=_data(recipe, tokenizer),
        chat=recipe.chat if recipe else ChatRecipe.model_validate({}),
        spec=spec,
        adapter_sha256=None if located.adapter is None else hash_adapter(located.adapter),
        load_base=None if is_adapter or "model" not in located.facts else _base_loader(located, report),
        serve=recipe.serve if recipe else ServeRecipe.model_validate({}),
        head=head,
    )


def _data(recipe: Recipe | None, tokenizer: ModelTokenizer) -> DataRecipe:
    """[data] of the run, by which prompts are made; the defaults without one."""
    if recipe is None:
        return DataRecipe.model_validate({"path": "-"})
    if continues_text(recipe, tokenizer):
        return recipe.data.model_copy(update={"prompt_template": "none"})
    return recipe.data


@contextmanager
def base_model(opened: Opened) -> Generator[nn.Module]:
    """The base model while the block runs: the same weights with the adapter off, or what was fully trained.

    The adapter's layers are taken out and put back, so nothing that was compiled or cached with them is touched. Raises
    ``UsageError`` where ``opened`` is a base model itself.
    """
    if opened.spec is None:
        if opened.load_base is None:
            raise UsageError(f"{opened.name} is a model without an adapter", "name a run to compare it with its base")
        yield opened.load_base()
        return
    layers = adapter_layers(opened.model)
    detach_adapter(opened.model)
    try:
        yield opened.model
    finally:
        opened.model.update_modules(cast("dict[str, object]", tree_unflatten(list(layers.items()))))


@contextmanager
def start_model(opened: Opened, adapter: Path) -> Generator[nn.Module]:
    """The base model with another adapter while the block runs, as in ``base_model``. Raises ``ModelError``."""
    with base_model(opened) as model:
        load_adapter(model, adapter)
        try:
            yield model
        finally:
            detach_adapter(model)


def locate(name: str, *, base: Path) -> Located:
    """What ``name`` stands for, without loading anything. A folder comes first, then a run's name, then a model's."""
    for candidate in (base / path_of(name), base / "adapters" / name):
        if candidate.is_dir():
            return _locate_folder(name, candidate.resolve(), base)
    is_path = name.endswith(".gguf") or name.startswith((".", "/", "~"))
    if is_path or find_entry(name) is not None or (hub.is_hub_id(name) and not name.startswith("adapters/")):
        return Located(name, None, name, None, {})
    runs, known = runs_like(name, base=base)
    near = [*runs, *nearest_names(name)]
    raise RunError(
        f"there is no run, folder or model {name!r}",
        f"did you mean {' or '.join(near)}?" if near else f"{known}; models: mlxft models list",
    )


def _locate_folder(name: str, folder: Path, base: Path) -> Located:
    run = RunDir(folder)
    if run.is_run():
        return _locate_run(name, run)
    parent = RunDir(folder.parent) if RunDir(folder.parent).is_run() else None
    facts = _facts(folder / rundir.TRAINER_STATE) or (_facts(parent.file(rundir.RUN_INFO)) if parent else {})
    if (folder / rundir.ADAPTER_CONFIG).is_file():
        return Located(name, folder, None, parent, facts)
    if (folder / "config.json").is_file():
        return Located(name, None, str(folder), parent, facts)
    rundir.refuse_pipeline(name, base=base)
    raise RunError(
        f"{folder} is neither a run nor an adapter nor a model: it has no {rundir.RUN_INFO}, no "
        f"{rundir.ADAPTER_CONFIG} and no config.json",
        "mlxft runs list shows the runs, mlxft models list the models",
    )


def _locate_run(name: str, run: RunDir) -> Located:
    """The published result of a run, or its newest checkpoint while there is none."""
    facts = _facts(run.file(rundir.RUN_INFO))
    for folder in (run.path, *reversed(run.checkpoints())):
        notice = "" if folder == run.path else f"{name} has not finished; this is {folder.name}"
        if (folder / rundir.ADAPTER_CONFIG).is_file():
            return Located(name, folder, None, run, facts, notice)
        model = folder / rundir.MODEL_FOLDER if folder == run.path else folder
        if (model / "config.json").is_file():
            return Located(name, None, str(model), run, facts, notice)
    raise RunError(
        f"{run.path} has no adapter yet: nothing was saved before it ended",
        f"see how it ended, and how it goes on: mlxft runs show {run.name}",
    )


def _facts(path: Path) -> Mapping[str, object]:
    """The object in a JSON file; empty where there is none."""
    if not path.exists():
        return {}
    try:
        return durable.read_object(path)
    except RunError as error:
        is_run = path.name == rundir.RUN_INFO
        hint = f"copy {path.name} of its newest checkpoint to its place" if is_run else "make or fetch the folder again"
        raise RunError(error.message, hint) from None


def read_recipe(located: Located, report: Report) -> Recipe | None:
    """The resolved recipe of the run, None where there is no run or another version wrote it (said by a notice)."""
    facts = _facts(located.run.file(rundir.RUN_INFO)) if located.run else {}
    if "resolved" not in facts:
        return None
    try:
        return recorded_recipe(facts, located.name)
    except RunError as error:
        report(Notice("warning", error.message, "defaults are used for sampling, system message and template"))
        return None


def _fetch(located: Located, report: Report) -> LocalModel:
    """The local folder of the model itself, or of the adapter's base."""
    if located.model is None:
        return fetch_base(located, report)
    local = fetch_model(located.model, report=report)
    return replace(local, name=located.name) if located.run else local


def fetch_base(located: Located, report: Report) -> LocalModel:
    """The base named in run.json or in the adapter's own configuration; by its recorded folder if the name fails.

    Raises ``ModelError``.
    """
    facts = located.facts
    name = facts.get("model")
    if not isinstance(name, str):
        assert located.adapter is not None
        path = located.adapter / rundir.ADAPTER_CONFIG
        config = _facts(path)
        name = config.get("base_model_name_or_path", config.get("model"))
        if not isinstance(name, str) or not name:
            raise ModelError(f"{path} does not say which base model the adapter belongs to")
    local = fetch_recorded(facts, name, located.name, report)
    expected = recorded_sha256(facts)
    if expected is not None and expected != local.sha256:
        message = f"{local.name} is not the file this was trained on (sha256 {local.sha256[:12]}, then {expected[:12]})"
        report(Notice("warning", message, "answers may differ from those during training"))
    return local


def _load(local: LocalModel, recipe: Recipe | None, report: Report) -> LoadedModel:
    is_gpu = on_gpu()
    dtype = recipe.hardware.compute_dtype if recipe and is_gpu else "auto"
    if dtype == "auto":
        needs_range = read_config(local.folder).get("model_type") == "t5"
        dtype, _ = compute_dtype(read_machine(on_gpu=is_gpu), is_full=False, needs_range=needs_range)
    loaded = load_model(local, quantize=recipe.quantize if recipe else None, compute_dtype=dtype, on_gpu=is_gpu)
    for notice in loaded.notices:
        report(notice)
    return loaded


def load_base(located: Located, report: Report) -> nn.Module:
    """What a fully trained model began as. Raises ``ModelError`` where it is not at hand."""
    local = fetch_base(located, report)
    report(Phase("load", detail=local.name))
    return _load(local, None, report).model


def _base_loader(located: Located, report: Report) -> Callable[[], nn.Module]:
    @functools.cache
    def load() -> nn.Module:
        return load_base(located, report)

    return load
