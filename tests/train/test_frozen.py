"""Hidden states of frozen blocks computed once: the same training, the same bits after a kill, nothing left behind."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from small_runs import course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.dataset.row_states import FileStore
from mlx_finetune.dataset.stream import make_batch
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import RecipeError, RunError
from mlx_finetune.events import Phase, StepDone
from mlx_finetune.hardware.planning import kept_states
from mlx_finetune.hardware.planning.kept_states import KeptStates
from mlx_finetune.journal import read_events
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
from mlx_finetune.model.inside.noise import checkpoint_blocks
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.objectives.next_token import next_token
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start import frozen, rows
from mlx_finetune.train.step import Trainer, as_float

SETTINGS = ("lora.num_layers=1", "training.neftune_alpha=0", "training.max_steps=12")
PHASE = "compute frozen blocks"


def weights_hash(run):
    return [
        hashlib.sha256(run.file(name).read_bytes()).hexdigest() for name in (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS)
    ]


def make_rows(lengths):
    rng = np.random.default_rng(0)
    rows = []
    for line, length in enumerate(lengths, start=1):
        mask = rng.random(length) < 0.6
        mask[0], mask[-1] = False, True
        rows.append(Tokens(rng.integers(3, 250, length).astype(np.int32), mask, "rows.jsonl", line))
    return rows


ROWS = make_rows([20, 5, 31, 12])


@pytest.fixture
def make_trainer(tiny_model):
    """A trainer whose last block alone learns."""

    def make(model_type="llama", *, blockwise=False, packed=False, dropout=0.0, compiled=False, recompute=False):
        local = LocalModel("tiny", tiny_model(model_type), "folder", None, "", None)
        model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
        fields = {"rank": 4, "alpha": 8, "dropout": dropout, "num_layers": 1}
        attach_adapter(model, LoraRecipe.model_validate(fields), seed=3)
        parameters = adapter_parameters(model)
        for name, value in parameters.items():  # with B = 0 half of the gradients would be 0
            if name.endswith("lora_b"):
                parameters[name] = 0.1 * mx.random.normal(value.shape, key=mx.random.key(len(name)))
        if recompute:
            checkpoint_blocks(model)
        trainer = Trainer(
            model,
            next_token("sft"),
            AdamW(0.9, 0.999, 1e-8, 0.0, frozenset()),
            parameters,
            seed=3,
            max_grad_norm=0.0,
            is_packed=packed,
            is_compiled=compiled,
            is_blockwise=bool(blockwise),
            keeps_products=blockwise == "kept",
        )
        trainer.load_into_model()
        assert trainer.num_frozen == 1
        return trainer

    return make


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(as_float(mx.abs(one[name] - other[name]).max()) for name in one)


def states_of(trainer, its_rows, folder, *, group_positions=64, opened=None):
    """The states of rows, in memory; in a file where there is somebody who closes it."""
    kept = KeptStates(1, 0, 0, opened is None, group_positions)
    settings = (folder, StopRequest(), lambda _: None, opened or ExitStack())
    found = frozen.compute_states(kept, trainer, rows_of(its_rows), "rows", *settings)
    assert found is not None
    return found


def with_states(states, batch):
    return replace(batch, entering=states.of(batch))


@pytest.mark.parametrize("how", [False, True, "kept"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "gemma"])
def test_loss_and_gradients_are_those_of_the_whole_model(make_trainer, tmp_path, model_type, how):
    trainer = make_trainer(model_type, blockwise=how)
    states = states_of(trainer, ROWS, tmp_path)
    batch = make_batch(ROWS, [[0], [1], [2], [3]], num_sequences=4, length=32)
    known = with_states(states, batch)
    expected, whole = trainer.compute([batch], 0)
    gradients, result = trainer.compute([known], 0)
    scale = max(as_float(mx.abs(value).max()) for value in expected.values())
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (result.num_tokens, result.num_positions) == (whole.num_tokens, whole.num_positions)
    assert largest_difference(expected, gradients) < 1e-5 * scale
    assert trainer.loss(known)[0] == pytest.approx(trainer.loss(batch)[0], rel=1e-5)


@pytest.mark.parametrize("how", [True, "kept"])
def test_a_single_row_in_two_parts_gives_each_its_positions(make_trainer, tmp_path, how):
    trainer, its_rows = make_trainer(blockwise=how), make_rows([101])
    batch = make_batch(its_rows, [[0]], num_sequences=1, length=128)
    known = with_states(states_of(trainer, its_rows, tmp_path, group_positions=128), batch)
    (expected, whole), (gradients, result) = trainer.compute([batch], 0), trainer.compute([known], 0)
    assert trainer._cores._divides
    scale = max(as_float(mx.abs(value).max()) for value in expected.values())
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert largest_difference(expected, gradients) < 1e-5 * scale
    assert trainer.loss(known)[0] == pytest.approx(trainer.loss(batch)[0], rel=1e-5)


@pytest.mark.parametrize("how", [False, "kept"])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_rows_anywhere_in_a_pack_give_the_same_gradients(make_trainer, tmp_path, model_type, how):
    trainer = make_trainer(model_type, blockwise=how, packed=True)
    states = states_of(trainer, ROWS, tmp_path)
    batch = make_batch(ROWS, [[1, 0, 3], [2]], num_sequences=2, length=40, is_packed=True)
    expected, whole = trainer.compute([batch], 0)
    gradients, result = trainer.compute([with_states(states, batch)], 0)
    scale = max(as_float(mx.abs(value).max()) for value in expected.values())
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert largest_difference(expected, gradients) < 1e-5 * scale


@pytest.mark.parametrize("how", [False, "kept"])
def test_dropout_in_the_adapters_is_the_same_noise(make_trainer, tmp_path, how):
    trainer = make_trainer(blockwise=how, dropout=0.3)
    states = states_of(trainer, ROWS, tmp_path)
    batch = make_batch(ROWS, [[0], [2]], num_sequences=2, length=32)
    expected, whole = trainer.compute([batch], 5)
    gradients, result = trainer.compute([with_states(states, batch)], 5)
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert largest_difference(expected, gradients) < 1e-5
    other, _ = trainer.compute([with_states(states, batch)], 6)
    assert largest_difference(gradients, other) > 1e-3


def test_a_compiled_step_takes_them_and_recomputation_does(make_trainer, tmp_path):
    batch = make_batch(ROWS, [[0], [2]], num_sequences=2, length=32)
    for settings in ({"compiled": True}, {"recompute": True}):
        trainer = make_trainer(**settings)
        expected, _ = trainer.compute([batch], 0)
        known = with_states(states_of(trainer, ROWS, tmp_path), batch)
        gradients, _ = trainer.compute([known], 0)
        assert largest_difference(expected, gradients) < 1e-5


def test_nothing_below_the_lowest_adapter_iscompute_states(make_trainer, tmp_path):
    trainer = make_trainer(blockwise="kept")
    states = states_of(trainer, ROWS, tmp_path)
    batch = with_states(states, make_batch(ROWS, [[0]], num_sequences=1, length=32))
    expected, _ = trainer.compute([batch], 0)
    broken = trainer._model.layers[0].mlp
    broken.down_proj.weight = broken.down_proj.weight * float("nan")
    gradients, result = trainer.compute([batch], 0)
    assert np.isfinite(result.loss)
    assert largest_difference(expected, gradients) == 0


def test_memory_and_file_hold_the_same_bits_on_every_start(make_trainer, tmp_path):
    seven = make_rows([20, 5, 31, 12, 9, 40, 3])
    batch = make_batch(seven, [[index] for index in range(7)], num_sequences=7, length=40)
    trainer = make_trainer(blockwise="kept")
    first = states_of(trainer, seven, tmp_path).of(batch)
    with ExitStack() as opened:
        again = states_of(make_trainer(blockwise="kept"), seven, tmp_path, opened=opened).of(batch)
    assert first.any()
    assert np.array_equal(first, again)


def test_bfloat16_keeps_its_bits(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer._model.set_dtype(mx.bfloat16)
    batch = make_batch(ROWS, [[0]], num_sequences=1, length=19)
    (direct,) = trainer.entering([batch])
    assert direct.dtype == np.uint16
    assert np.array_equal(states_of(trainer, ROWS, tmp_path, group_positions=1).of(batch), direct)
    assert np.isfinite(trainer.loss(with_states(states_of(trainer, ROWS, tmp_path), batch))[0])


# Whole runs.


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(kept_states, "MEMORY_SHARE", 0.0)


def phases(run):
    events = [one.event for one in read_events(run.file(rundir.EVENTS))]
    return [event for event in events if isinstance(event, Phase) and event.name == PHASE]


def losses(run):
    return [one.event.loss for one in read_events(run.file(rundir.EVENTS)) if isinstance(one.event, StepDone)]


@pytest.fixture(scope="module")
def straight(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    return train(write_recipe(folder, tiny_model("llama")), overrides=SETTINGS)


def test_a_run_reuses_them_by_itself_and_learns_the_same(straight, tiny_model, tmp_path):
    assert phases(straight)
    assert "reuse_frozen_layers = true  # 1 block learns nothing" in straight.file(rundir.RESOLVED).read_text()
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    plain = train(recipe, overrides=(*SETTINGS, "training.reuse_frozen_layers=false"))
    assert not phases(plain)
    assert losses(straight) == pytest.approx(losses(plain), rel=1e-4)
    assert weights_hash(straight) != weights_hash(plain)  # last bits: it really took another way


@pytest.mark.some(2)
@pytest.mark.parametrize("how", ["stop_after", "kill_after"])
@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_run_ends_with_the_same_bits(straight, tiny_model, tmp_path, how, step):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, overrides=SETTINGS, **{how: step})
    train(recipe, overrides=SETTINGS, resume=True)
    assert course(run) == course(straight)
    assert weights_hash(run) == weights_hash(straight)


def test_on_disk_too_and_the_file_is_never_seen(straight, tiny_model, tmp_path, on_disk, monkeypatch):
    made, write = [], FileStore.write
    monkeypatch.setattr(FileStore, "write", lambda self, *rest: (made.append(self), write(self, *rest)))
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, overrides=SETTINGS, kill_after=5)
    train(recipe, overrides=SETTINGS, resume=True)
    assert made
    assert "kept in a file" in run.file(rundir.RESOLVED).read_text()
    assert weights_hash(run) == weights_hash(straight)
    assert all(
        (rundir.is_run_file(path.name) and path.name[0] != ".") or path.name == ".lock" for path in run.path.iterdir()
    )
    assert all(store._file.closed for store in made)


def test_a_resumed_run_decides_as_it_was_decided(tiny_model, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, overrides=SETTINGS, stop_after=2)
    with monkeypatch.context() as changed:
        changed.setattr(kept_states, "LEAST_PASSES", 1e9)  # today it would not be thought worth it
        train(recipe, overrides=SETTINGS, resume=True)
    assert len({phase.total for phase in phases(run)}) == 2  # both sets, on the second start too
    assert "reuse_frozen_layers = true" in run.file(rundir.RESOLVED).read_text()


def test_a_signal_during_the_pass_ends_the_run_before_a_step(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))

    def ask(event, stop):
        if isinstance(event, Phase) and event.name == PHASE:
            stop.request(15)

    run = train(recipe, overrides=SETTINGS, on_event=ask)
    assert not losses(run)
    assert len(phases(run)) == 1, "nothing is begun after the signal"
    train(recipe, overrides=SETTINGS, resume=True)
    assert len(losses(run)) == 12


def test_a_full_disk_is_one_error_before_anything_is_written(tiny_model, tmp_path, on_disk, monkeypatch):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, overrides=SETTINGS, stop_after=2)
    before = run.file(rundir.EVENTS).read_bytes()
    monkeypatch.setattr(frozen, "free_bytes", lambda _: 10_000)
    with pytest.raises(RunError, match="of disk") as error:
        train(recipe, overrides=SETTINGS, resume=True)
    assert error.value.exit_code == 3
    assert "--set training.reuse_frozen_layers=false" in error.value.hint
    assert run.file(rundir.EVENTS).read_bytes()[: len(before)] == before
    monkeypatch.undo()
    train(recipe, overrides=SETTINGS, resume=True)
    assert len(losses(run)) == 12


def test_without_room_anywhere_auto_leaves_it_and_says_why(tiny_model, tmp_path, on_disk, monkeypatch):
    monkeypatch.setattr(rows, "free_bytes", lambda _: 1)
    run = train(write_recipe(tmp_path, tiny_model("llama")), overrides=SETTINGS)
    assert not phases(run)
    assert "too much for the memory and for the disk" in run.file(rundir.RESOLVED).read_text()


def test_blocks_that_are_no_chain_are_found_when_the_model_is_there(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "is_chain", lambda _: False)
    run = train(write_recipe(tmp_path, tiny_model("llama")), overrides=SETTINGS)
    assert not phases(run)
    assert "reuse_frozen_layers = false  # the blocks of this model" in run.file(rundir.RESOLVED).read_text()
    other = write_recipe(tmp_path, tiny_model("llama"), name="other", packing="true")
    with pytest.raises(RecipeError, match="cannot be taken one after the other"):
        train(other, overrides=(*SETTINGS, "training.reuse_frozen_layers=true"))


def test_asked_for_where_every_block_learns_it_is_refused(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    with pytest.raises(RecipeError, match="every block has an adapter") as refused:
        train(recipe, overrides=("training.neftune_alpha=0", "training.reuse_frozen_layers=true"))
    assert refused.value.hint.endswith(", or give fewer blocks an adapter: lora.num_layers")
    with pytest.raises(RecipeError, match="neftune_alpha"):
        train(recipe, overrides=("lora.num_layers=1", "training.reuse_frozen_layers=true"))


def test_a_run_of_a_version_without_the_key_goes_on_without_it(tiny_model, tmp_path):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = train(recipe, overrides=(*SETTINGS, "training.reuse_frozen_layers=false"), stop_after=3)
    path = run.file(rundir.RUN_INFO)
    info = json.loads(path.read_text())
    del info["resolved"]["training"]["reuse_frozen_layers"], info["identity"]["recipe"]["training.reuse_frozen_layers"]
    path.write_text(json.dumps(info))
    train(recipe, overrides=SETTINGS, resume=True)
    assert not phases(run)
    assert len(losses(run)) == 12
