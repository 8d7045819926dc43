"""The race of benchmarks/versus_mlx_lm.py counts, reads and adds up rightly; no time is measured here."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import race_loss
import race_rows
import race_run
import race_stock
import race_table
import versus_mlx_lm
from mlx_lm.tuner import trainer
from mlx_lm.tuner.datasets import CacheDataset
from race_cells import CELLS, OURS, QUICK_CELLS, RECOMPUTE, STOCK, Cell, arms_of_repeat, our_recipe, stock_config
from race_run import Row, Run
from race_table import Loss, Spread

from mlx_finetune.events import Restarted, StepDone, to_json
from mlx_finetune.recipe.load import load_recipe

TINY = Cell(1, "gsm8k", 2, 192, None, True, 6, 3)
ROWS = [Row(5, 2), Row(9, 4), Row(3, 1), Row(12, 6)]


def a_run(
    arm: str, repeat: int = 0, *, seconds: float = 1.0, peak: int = 3, process: int = 4, cell: Cell = TINY
) -> Run:
    return Run(
        cell=cell.key,
        arm=arm,
        repeat=repeat,
        date="2026-11-26 10:00",
        seconds=[99.0, seconds, seconds],  # the first step builds kernels and counts nowhere
        targets=[7, 10, 10],
        tokens=[20, 30, 30],
        positions=[40, 30, 30],
        examples=6,
        mlx_peak_bytes=peak * 10**9,
        weights_bytes=10**9,
        process_peak_bytes=process * 10**9,
        wall_seconds=5.0,
        has_openblas=True,
        source="abc",
    )


def test_the_settings_are_balanced_and_leave_no_tail() -> None:
    assert len({cell.key for cell in (*CELLS, *QUICK_CELLS)}) == len(CELLS) + len(QUICK_CELLS)
    assert [cell.number for cell in CELLS] == list(range(1, len(CELLS) + 1))
    for cell in (*CELLS, *QUICK_CELLS):
        assert cell.examples % cell.batch_size == 0
    halves = [
        sum(cell.batch_size == 1 for cell in CELLS),
        sum(cell.max_length == 2048 for cell in CELLS),
        sum(cell.num_layers is None for cell in CELLS),
        sum(cell.mask_prompt for cell in CELLS),
    ]
    assert all(4 <= half <= len(CELLS) - 4 for half in halves), halves


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
@pytest.mark.parametrize("recompute", [False, True])
def test_both_sides_are_told_the_same(cell: Cell, recompute: bool, tmp_path: Path) -> None:
    places = (tmp_path / "model", tmp_path / "data", tmp_path / "out")
    path = tmp_path / "recipe.toml"
    path.write_text(our_recipe(cell, *places, seed=3, recompute=recompute))
    ours = load_recipe(path).recipe
    theirs = json.loads(stock_config(cell, *places, seed=3, recompute=recompute))
    lora, training = ours.lora, ours.training
    assert lora is not None
    assert theirs["lora_parameters"]["rank"] == lora.rank
    assert theirs["lora_parameters"]["scale"] == lora.scale
    assert {key.rpartition(".")[2] for key in theirs["lora_parameters"]["keys"]} == set(lora.target_modules)
    assert theirs["num_layers"] == (-1 if lora.num_layers == "all" else lora.num_layers)
    assert (theirs["model"], theirs["seed"], theirs["data"]) == (ours.model, ours.seed, str(places[1]))
    assert (theirs["batch_size"], theirs["max_seq_length"]) == (training.batch_size, ours.data.max_seq_length)
    assert (theirs["mask_prompt"], theirs["grad_checkpoint"]) == (ours.data.mask_prompt, recompute)
    assert training.gradient_checkpointing is recompute
    adam = theirs["optimizer_config"]["adamw"]
    assert adam["betas"] == [training.adam_beta1, training.adam_beta2]
    assert (adam["eps"], adam["weight_decay"]) == (training.adam_epsilon, training.weight_decay)
    assert adam["bias_correction"] is True
    assert theirs["learning_rate"] == training.learning_rate
    assert (training.lr_scheduler, training.warmup_steps, training.max_grad_norm) == ("constant", 0, 0)
    assert theirs["iters"] * theirs["batch_size"] == cell.examples
    assert (training.epochs, training.max_steps) == (1, None)


def test_every_second_repeat_runs_backwards() -> None:
    assert arms_of_repeat(0, ["peer"], recompute=False) == [STOCK, OURS, "peer"]
    assert arms_of_repeat(1, [], recompute=True) == ["ours-recompute", "stock-recompute", OURS, STOCK]


def test_the_stock_is_credited_with_the_targets_of_the_rows_it_used_and_no_padding() -> None:
    run = race_run.stock_steps([2.0, 3.0], [(2, 33), (2, 8)], [[1, 3], [0, 3]], ROWS)
    assert run.targets == [10, 8]
    assert run.positions == [64, 14]
    assert run.tokens == [21, 12]  # the last token of a row that fills its batch is no input: 5 + 7
    assert run.examples == 4
    assert race_table.padding_share(run) == pytest.approx(1 - 33 / 78)


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [([(2, 33)], [[1, 3], [0, 2]]), ([(2, 33), (2, 33)], [[1, 3], [0]])],
    ids=["a step without a batch", "a batch without its rows"],
)
def test_notes_that_do_not_belong_together_are_refused(shapes: list[Any], rows: list[list[int]]) -> None:
    with pytest.raises(SystemExit):
        race_run.stock_steps([2.0, 3.0], shapes, rows, ROWS)


def a_step(step: int, targets: int, tokens: int, padding: float) -> StepDone:
    return StepDone(step, 0.5, 1.0, 2e-4, 1.0, targets, tokens, padding, 0.5 * step, 3.0, 10, 1000 * step)


def write_journal(folder: Path, *events: Any) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "events.jsonl").write_text("".join(to_json(event, 0.0) + "\n" for event in events))


def test_our_run_is_read_from_its_journal(tmp_path: Path) -> None:
    write_journal(tmp_path, a_step(1, 6, 14, 0.125), a_step(2, 7, 12, 0.0))
    run = race_run.read_ours(tmp_path, ROWS)
    assert (run.seconds, run.targets, run.tokens, run.positions) == ([0.5, 1.0], [6, 7], [14, 12], [16, 12])
    assert (run.examples, run.mlx_peak_bytes) == (4, 2000)


def test_our_run_must_have_trained_every_target_once_and_in_one_process(tmp_path: Path) -> None:
    write_journal(tmp_path, a_step(1, 6, 14, 0.125))
    with pytest.raises(SystemExit, match="6 targets were trained, the rows have 13"):
        race_run.read_ours(tmp_path, ROWS)
    (tmp_path / "again").mkdir()
    write_journal(tmp_path / "again", a_step(1, 13, 14, 0.1), Restarted(1, 1, "killed", "it was killed", "", True))
    with pytest.raises(SystemExit, match="started again"):
        race_run.read_ours(tmp_path / "again", ROWS)


def test_the_peak_of_a_process_is_read_in_bytes() -> None:
    assert race_run.parse_peak("Name:\tpython\nVmPeak:\t 9 kB\nVmHWM:\t   2048 kB\nVmRSS:\t 1 kB\n") == 2 * 2**20
    assert race_run.parse_peak("Name:\tpython\nState:\tZ (zombie)\n") == 0


def test_every_python_process_of_a_command_is_counted(tmp_path: Path) -> None:
    script = tmp_path / "starts_others.py"
    script.write_text(
        "import subprocess, sys\n"
        "other = subprocess.Popen(['sleep', '2'])  # a compiler, say: not counted\n"
        "sys.exit(subprocess.call([sys.executable, '-c', 'import time; time.sleep(2)']) + other.wait())\n"
    )
    _, seen = race_run.run_watched([race_run.sys.executable, str(script)], tmp_path / "log", tmp_path / "tmp")
    assert len(seen.peaks) == 2
    assert seen.total_bytes == sum(seen.peaks.values()) > 10**6
    code = "raise SystemExit('no such thing')"
    with pytest.raises(SystemExit, match=r"ended with 1:\n.*no such thing"):
        race_run.run_watched([race_run.sys.executable, "-c", code], tmp_path / "log", tmp_path / "tmp")


def test_equal_time_never_gives_the_slower_side_less() -> None:
    fast, slow = [50.0, 1.0, 1.0, 1.0], [50.0, 2.0, 2.0, 2.0, 2.0]
    saved = {OURS: [2, 4], STOCK: [1, 2, 3, 4, 5]}
    assert race_table.equal_time({OURS: fast, STOCK: slow}, saved) == {OURS: 4, STOCK: 3}
    assert race_table.equal_time({OURS: slow, STOCK: fast}, {OURS: [2, 4, 5], STOCK: [4]}) == {OURS: 4, STOCK: 4}
    assert race_table.equal_time({OURS: slow, STOCK: fast}, {OURS: [2], STOCK: [4]}) == {OURS: 2, STOCK: 4}


def test_the_first_step_counts_in_no_rate() -> None:
    run = a_run(STOCK, seconds=2.0)
    assert race_table.targets_per_second(run) == 5.0
    assert race_table.seconds_per_example(run) == pytest.approx(27 / 5 / 6)
    assert race_table.steady([4.0]) == 4.0


def test_ratios_pair_the_runs_of_one_repeat() -> None:
    runs = [a_run(STOCK, 0, seconds=4), a_run(OURS, 0, seconds=2), a_run(STOCK, 1, seconds=6), a_run(OURS, 1)]
    found = race_table.ratios([*runs, a_run(OURS, 2)], OURS, STOCK, race_table.targets_per_second)
    assert found == pytest.approx([2, 6])
    assert Spread.of(found) == Spread(2, 4, 6)
    assert Spread.of([]) is None


def test_tables_and_last_line() -> None:
    other = Cell(2, "wikisql", 1, 512, 16, False, 6, 3)
    runs = [
        a_run(STOCK, seconds=4, peak=5, process=8),
        a_run(OURS, seconds=2, peak=3, process=4),
        a_run(STOCK, seconds=3, peak=5, process=8, cell=other),
        a_run(OURS, seconds=1, peak=2, process=2, cell=other),
        a_run(STOCK + RECOMPUTE, seconds=8, peak=3),
        a_run(OURS + RECOMPUTE, seconds=5, peak=2),
    ]
    cells = [TINY, other]
    line = race_table.summary(runs, cells)
    first, second, third = line.split(" | ")
    assert first == (
        "ours against stock, 2 cells: target tokens/s 2.50x in the median, 2.00x at least; "
        "MLX peak beyond the weights 0.38x; process memory 0.38x"
    )
    assert second.startswith("ours-recompute against stock-recompute, 1 cells: target tokens/s 1.60x")
    assert third.startswith("ours-recompute against stock, 1 cells: target tokens/s 0.80x")
    assert "0.25x; process memory 0.50x" in third
    speed = race_table.speed_table(runs, cells)
    assert "2.00 (2.00 to 2.00)" in speed[2]
    assert len(speed) == 2 + 4
    assert any("| stock (ours recomputes) |" in line and "0.80 (0.80 to 0.80)" in line for line in speed)
    assert "| stock (ours recomputes) | 5.00, 2.00 | 4.00, 1.00, 0.25 |" in "\n".join(
        race_table.memory_table(runs, cells)
    )
    assert race_table.summary([], cells) == "nothing to compare yet"
    runs[0].details["machine"] = runs[1].details["machine"] = "a machine"
    runs.append(a_run("mlx-tune"))
    runs[-1].date, runs[-1].details["versions"] = "2026-11-27 08:00", {"mlx": "1", "mlx-tune": "0.6.0"}
    assert race_table.conditions(runs) == "2026-11-26 to 2026-11-27; a machine; mlx-tune 0.6.0"
    assert race_table.warnings(runs) == []
    runs[1].source, runs[0].has_openblas = "another", False
    assert len(race_table.warnings(runs)) == 2


def test_the_loss_table_compares_what_was_measured() -> None:
    losses = [Loss(TINY.key, "", 0, "base", 0, 2.5)]
    losses += [Loss(TINY.key, arm, n, "examples", 3, 2 - n * 0.1) for arm in (STOCK, OURS) for n in range(3)]
    losses[-1] = Loss(TINY.key, OURS, 2, "examples", 3, 1.7)
    line = race_table.loss_table(losses, [TINY])[2]
    assert line.endswith("| 2.5000 | 1.9000, 1.9000 | +0.0000 |  |  |")


class Processed(list):
    """Rows that are tokens already, in the shape of mlx-lm's data sets."""

    def process(self, row: object) -> object:
        return row


class Counted(nn.Module):
    """The smallest model that mlx-lm's trainer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 4)
        self.layers: list[nn.Module] = []

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.embedding.as_linear(self.embedding(tokens))


def test_the_watcher_sees_what_mlx_lm_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "compile", lambda function, **options: function)  # building kernels takes a minute
    data = [([1, 2, 3, 4, 5], 2), ([6, 7, 8], 1), ([9] * 40, 3), ([2, 3], 0)]
    module = SimpleNamespace(CacheDataset=CacheDataset, train=trainer.train)
    watcher = race_stock.Watcher()
    race_stock.watch(module, "train", watcher)
    dataset = module.CacheDataset(Processed(data))
    np.random.seed(0)
    arguments = trainer.TrainingArgs(
        batch_size=2, iters=4, steps_per_report=1, max_seq_length=64, adapter_file=str(tmp_path / "a.safetensors")
    )
    module.train(model=Counted(), optimizer=optim.SGD(0.0), train_dataset=dataset, val_dataset=None, args=arguments)
    assert sorted(watcher.rows[:2]) == sorted(watcher.rows[2:]) == [[0, 1], [2, 3]]
    shape = {(0, 1): [2, 33], (2, 3): [2, 64]}
    assert [list(one) for one in watcher.shapes] == [shape[rows[0], rows[1]] for rows in watcher.rows]
    assert [report["iteration"] for report in watcher.steps] == [1, 2, 3, 4]
    assert all(report["iterations_per_second"] > 0 for report in watcher.steps)


def test_neutral_loss_is_the_mean_over_all_targets(tmp_path: Path) -> None:
    rows = [{"ids": [1, 2, 3, 4], "targets": [2, 3]}, {"ids": [5, 6, 7], "targets": [1]}]
    race_rows.write_json_lines(tmp_path / "rows.jsonl", rows)
    model = Counted()
    loss, count = race_loss.mean_loss(model, tmp_path / "rows.jsonl")
    table = np.array(model.embedding.weight, np.float64)
    logits = table @ table.T
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert count == 3
    assert loss == pytest.approx(-(log_probs[2, 3] + log_probs[3, 4] + log_probs[5, 6]) / 3, rel=1e-5)


def test_a_torn_last_line_of_the_results_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(a_run(OURS).to_json()) + '\n{"kind": "run", "cel')
    rows = race_rows.read_json_lines(path)
    assert [Run.from_json(row) for row in rows] == [a_run(OURS)]
    assert race_rows.read_json_lines(tmp_path / "absent.jsonl") == []


def test_shots_use_no_row_twice() -> None:
    rows = [{"question": f"q{n}?", "answer": f"a{n}."} for n in range(40)]
    found = race_rows.with_shots(rows, race_rows.random.Random(0))
    text = json.dumps(found)
    assert len(found) > 5
    assert all(text.count(f"q{n}?") <= 1 for n in range(40))


def test_cells_and_peers_are_checked() -> None:
    assert [cell.number for cell in versus_mlx_lm.choose("3, 1", CELLS)] == [3, 1]
    with pytest.raises(SystemExit, match="there is no cell 99"):
        versus_mlx_lm.choose("99", CELLS)
    for text in ("mlx-lm-lora", "nobody=/bin/sh", "mlx-tune=/no/such/python"):
        with pytest.raises(SystemExit, match="write NAME=PYTHON"):
            versus_mlx_lm.parse_peers([text])
    assert versus_mlx_lm.parse_peers([f"mlx-tune={__file__}"]) == {"mlx-tune": __file__}


@pytest.fixture
def tiny_race(tmp_path: Path, tiny_model: Callable[..., Path]) -> versus_mlx_lm.Race:
    model = tmp_path / "work" / "model"
    race_rows.shutil.copytree(tiny_model("llama"), model)
    (model / "weights.json").write_text(json.dumps({"bytes": 1000}))
    for side in ("train", "test"):
        (tmp_path / "data/gsm8k").mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"{side} {n} and {n}?", "answer": "so " * (n + 1) + f"{2 * n}"} for n in range(12)]
        race_rows.write_json_lines(tmp_path / f"data/gsm8k/{side}.jsonl", rows)
    return versus_mlx_lm.Race(
        work=tmp_path / "work",
        data=tmp_path / "data",
        results=tmp_path / "work" / "results.jsonl",
        cells=[TINY],
        repeats=2,
        peers={},
        recompute=False,
        with_losses=True,
        source="tests",
    )


class Stage:
    """Stands in for every process of a race; ``interrupt_at`` is the call of ``measure`` that is cut short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, interrupt_at: int = 0) -> None:
        self.measured: list[tuple[str, int]] = []
        self.scripts: list[str] = []
        self.kernels = {(STOCK, 0): 3}
        self.interrupt_at = interrupt_at
        monkeypatch.setattr(versus_mlx_lm, "measure", self.measure)
        monkeypatch.setattr(versus_mlx_lm.Race, "_start", lambda race, *arguments: self.start(race, *arguments))
        files = (Path("adapter_config.json"), Path("adapters.safetensors"))
        monkeypatch.setattr(versus_mlx_lm, "saved_adapters", lambda arm, folder, steps: dict.fromkeys((1, 2, 3), files))

    def measure(self, cell: Cell, arm: str, repeat: int, work: Path, **options: object) -> Run:
        self.measured.append((arm, repeat))
        if len(self.measured) == self.interrupt_at:
            raise KeyboardInterrupt
        race_run.run_folder(work, cell, arm, repeat).mkdir(parents=True, exist_ok=True)
        run = a_run(arm, repeat, seconds=1 if arm == OURS else 2)
        run.details["kernels_built"] = self.kernels.pop((arm, repeat), 0)
        return run

    def start(self, race: versus_mlx_lm.Race, script: str, *arguments: object) -> None:
        self.scripts.append(script)
        if script == "race_loss.py":
            count = arguments.count("--adapter") + arguments.count("--base")
            (race.work / "losses.json").write_text(json.dumps([2.0 - 0.25 * n for n in range(count)]))


def test_an_interrupted_race_goes_on_where_it_was(
    tiny_race: versus_mlx_lm.Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(monkeypatch, interrupt_at=5)
    with pytest.raises(KeyboardInterrupt):
        tiny_race.run()
    assert stage.measured == [(STOCK, 0), (STOCK, 0), (OURS, 0), (OURS, 1), (STOCK, 1)]  # kernels: measured again
    tiny_race.runs, tiny_race.losses = [], []
    tiny_race.load()
    stage = Stage(monkeypatch)
    tiny_race.run()
    assert stage.measured == [(STOCK, 1)]
    assert [(run.arm, run.repeat) for run in tiny_race.runs] == [(STOCK, 0), (OURS, 0), (OURS, 1), (STOCK, 1)]
    assert [(e.arm, e.at, e.step, e.loss) for e in tiny_race.losses if e.repeat == 0] == [
        ("", "base", 0, 2.0),
        (STOCK, "examples", 3, 1.75),
        (OURS, "examples", 3, 1.5),
        (STOCK, "time", 2, 1.25),  # two of its steps take as long as all of ours, the first left out
        (OURS, "time", 3, 1.5),
    ]
    assert [(e.arm, e.at) for e in tiny_race.losses if e.repeat == 1] == [
        (STOCK, "examples"),
        (OURS, "examples"),
        (STOCK, "time"),
        (OURS, "time"),
    ]
    assert list((tiny_race.work / "runs").iterdir()) == []


def test_losses_that_were_cut_short_are_measured_without_training_again(
    tiny_race: versus_mlx_lm.Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_race.repeats = 1
    stage = Stage(monkeypatch)
    monkeypatch.setattr(versus_mlx_lm.Race, "_measure_losses", lambda race, cell, repeat: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_race.run()
    monkeypatch.undo()
    stage = Stage(monkeypatch)
    tiny_race.run()
    assert stage.measured == []
    assert stage.scripts == ["race_rows.py", "race_loss.py"]
    assert len(tiny_race.losses) == 5


@pytest.mark.slow
def test_a_whole_race_of_a_tiny_model(tiny_race: versus_mlx_lm.Race, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    tiny_race.run()
    assert [(run.arm, run.repeat) for run in tiny_race.runs] == [(STOCK, 0), (OURS, 0), (OURS, 1), (STOCK, 1)]
    assert {sum(run.targets) for run in tiny_race.runs} == {sum(tiny_race.runs[0].targets)}
    assert {run.examples for run in tiny_race.runs} == {6}
    assert all(run.has_openblas for run in tiny_race.runs)
    assert [(loss.arm, loss.at) for loss in tiny_race.losses if loss.repeat == 0] == [
        ("", "base"),
        (STOCK, "examples"),
        (OURS, "examples"),
        (STOCK, "time"),
        (OURS, "time"),
    ]
    assert tiny_race.table().splitlines()[-1].startswith("ours against stock, 1 cells: target tokens/s ")
    assert list((tiny_race.work / "runs").iterdir()) == []

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(versus_mlx_lm, "measure", refuse)
    monkeypatch.setattr(versus_mlx_lm.Race, "_start", refuse)
    tiny_race.runs, tiny_race.losses = [], []
    tiny_race.load()
    tiny_race.run()
    assert len(tiny_race.runs) == 4
