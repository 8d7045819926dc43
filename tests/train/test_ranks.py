"""Several ranks give the run of one; rank 0 decides and writes; a rank that goes ends the run with a sentence."""

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from processes import wait_until
from ring import QUIET, TIMEOUT, environment, hostfile, kill_rank, numbers, ranks_at_work, train_by_hand
from small_runs import course, train, write_recipe

from mlx_finetune.dataset.stream import Stream, deal, pieces_for
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import DataError, MlxftError
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import newest_checkpoint
from mlx_finetune.train.ranks import ALONE, LostRankError, OtherRankError, Ranks

TinyModel = Callable[..., Path]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")


class Ring:
    """All-reduce between threads: what each ``Ranks`` of a test calls in the place of mlx."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_sums = 0
        self._given: dict[int, np.ndarray] = {}
        self._barrier = threading.Barrier(size, timeout=20)

    def all_sum(self, rank: int) -> Callable[[mx.array], mx.array]:
        def summed(array: mx.array) -> mx.array:
            self._given[rank] = np.array(array)
            try:
                self._barrier.wait()
                total = sum(self._given[number] for number in range(self.size))
                self.num_sums += rank == 0
                self._barrier.wait()
            except threading.BrokenBarrierError as error:
                raise RuntimeError("[ring] connection to a peer was lost") from error
            return mx.array(total)

        return summed

    def run(self, part: Callable[[Ranks], Any]) -> list[Any]:
        """What ``part`` gives, or raises, on each rank."""
        found: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            try:
                found[rank] = part(Ranks(rank, self.size, self.all_sum(rank)))
            except Exception as error:
                found[rank] = error
                if not isinstance(error, MlxftError):  # that one was told to the others
                    self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def rows(lengths: list[int]) -> list[Tokens]:
    return [Tokens(np.arange(n, dtype=np.int32), np.ones(n, np.bool_), "rows", i + 1) for i, n in enumerate(lengths)]


def test_every_rank_gets_what_every_rank_gave_to_the_last_bit():
    values = [[0.1 + rank, math.inf, "x" * (200 * rank), None] for rank in range(3)]
    found = Ring(3).run(lambda ranks: (ranks.gather(values[ranks.rank]), ranks.share({"rank": ranks.rank})))
    assert found == [(values, {"rank": 0})] * 3


def test_a_short_message_is_one_sum_and_a_long_one_two():
    ring = Ring(2)
    ring.run(lambda ranks: ranks.gather([15, "early_stopping", None, False]))
    assert ring.num_sums == 1
    ring.run(lambda ranks: ranks.gather("x" * 100))
    assert ring.num_sums == 3


def test_gradients_losses_and_counts_are_summed_in_one_buffer():
    def part(ranks: Ranks):
        gradients = {"a": mx.full((2, 3), 1.0 + ranks.rank), "b": mx.array([4.0, 5.0], mx.bfloat16)}
        if ranks.rank:  # another order of names
            gradients = dict(reversed(gradients.items()))
        summed, sums, counts = ranks.reduce(gradients, mx.array([0.5, 2.0]), [3, 2**24 - 7, ranks.rank])
        return {name: (value.dtype, value.tolist()) for name, value in summed.items()}, sums.tolist(), counts

    ring = Ring(2)
    expected = {"a": (mx.float32, [[3.0] * 3] * 2), "b": (mx.float32, [8.0, 10.0])}
    first, second = ring.run(part)
    assert first == second
    assert first[0] == expected
    assert first[1:] == ([1.0, 4.0], [6, 2**25 - 14, 1])
    assert ring.num_sums == 1


def test_one_rank_gives_back_the_very_objects():
    gradients, loss = {"a": mx.ones(2)}, mx.array(1.0)
    assert ALONE.reduce(gradients, loss, [1]) == (gradients, loss, [1])
    assert ALONE.reduce(gradients, loss, [1])[0] is gradients
    assert ALONE.share_arrays(gradients) is gradients
    assert ALONE.gather(object) == [object]


def test_weights_of_rank_0_reach_the_others_bit_for_bit():
    values = [np.random.default_rng(rank).standard_normal(1001).astype(np.float32) for rank in range(3)]
    found = Ring(3).run(lambda ranks: np.array(ranks.share_arrays({"w": mx.array(values[ranks.rank])})["w"]).tobytes())
    assert found == [values[0].tobytes()] * 3


def test_a_rank_that_cannot_go_on_is_heard_wherever_the_others_wait():
    def part(ranks: Ranks):
        with ranks.together():
            if ranks.rank == 1:
                raise DataError("rows.jsonl is not here", "copy it")
            ranks.share({"long": "x" * 500})

    first, second, third = Ring(3).run(part)
    assert isinstance(second, DataError)
    for error in (first, third):
        assert isinstance(error, OtherRankError)
        assert (error.message, error.hint, error.exit_code) == ("rank 1: rows.jsonl is not here", "copy it", 1)


def test_a_rank_that_is_gone_is_an_error_with_a_way_out():
    def part(ranks: Ranks):
        if ranks.rank == 1:
            raise KeyError("a bug")
        ranks.gather(0)

    first, _ = Ring(2).run(part)
    assert isinstance(first, LostRankError)
    assert "--resume" in first.hint


@pytest.mark.parametrize(("size", "accumulation", "pieces"), [(1, 1, 1), (2, 1, 2), (2, 4, 1), (4, 2, 2), (3, 2, 3)])
def test_whole_microbatches_are_dealt_where_they_come_out_even(size: int, accumulation: int, pieces: int):
    assert pieces_for(size, accumulation) == pieces


def test_parts_are_dealt_by_what_they_cost():
    assert deal([10, 1, 1, 1, 1, 6], 2) == [[0], [1, 2, 3, 4, 5]]
    assert deal([5, 5, 5], 1) == [[0, 1, 2]]
    assert deal([7], 3) == [[0], [], []]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("packed_length", [None, 64])
def test_the_ranks_together_have_the_step_of_one(batch_size: int, accumulation: int, packed_length: int | None):
    data = rows([5, 9, 33, 17, 60, 8, 21, 40, 11, 12, 30])

    def stream(pieces: int) -> Stream:
        return Stream(
            data,
            batch_size=batch_size,
            accumulation=accumulation,
            packed_length=packed_length,
            seed=3,
            pieces=pieces,
        )

    for size in (2, 3, 5):
        alone, shared = stream(1), stream(pieces_for(size, accumulation))
        assert shared.steps_in_epoch(0) == alone.steps_in_epoch(0)
        for step in range(2 * alone.steps_in_epoch(0)):
            hands = [shared.share(step, rank, size) for rank in range(size)]
            dealt = [batch for hand in hands for batch in hand]
            assert sorted(batch.part for batch in dealt) == list(range(len(dealt)))
            expected = sorted(row for batch in alone.microbatches(step) for row in batch.rows)
            assert sorted(row for batch in dealt for row in batch.rows) == expected == shared.rows(step)


def test_two_processes_give_the_run_of_one(tmp_path: Path, tiny_model: TinyModel):
    """Microbatches are dealt out whole here, so that dropout and NEFTune draw the same as well."""
    alone = write_recipe(tmp_path, tiny_model("llama"), name="alone")
    together = write_recipe(tmp_path, tiny_model("llama"), name="together")
    assert train_by_hand(together, 2) == [(0, ""), (0, "")]
    expected, found = course(train(alone)), course(RunDir(tmp_path / "together"))
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    for one, other in zip(found, expected, strict=True):
        assert one[2:] == pytest.approx(other[2:], rel=1e-5) if one[0] != "sample" else one == other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (2, ("training.gradient_accumulation_steps=1", "training.batch_size=4")),
        (2, ("training.gradient_accumulation_steps=3", "data.packing=false")),
        (2, ("training.gradient_accumulation_steps=3", "training.batch_size=1", "data.packing=false")),
        (3, ("training.gradient_accumulation_steps=2", "training.batch_size=1")),  # one has nothing to do
    ],
)
def test_any_number_of_ranks_gives_the_losses_of_one(
    tmp_path: Path, tiny_model: TinyModel, size: int, changes: tuple[str, ...]
):
    quiet = (*changes, "lora.dropout=0", "training.neftune_alpha=0")
    alone = write_recipe(tmp_path, tiny_model("llama"), name="alone")
    together = write_recipe(tmp_path, tiny_model("llama"), name="together")
    options = [part for change in quiet for part in ("--set", change)]
    assert [code for code, _ in train_by_hand(together, size, *options)] == [0] * size
    expected = numbers(train(alone, overrides=quiet))
    assert numbers(RunDir(tmp_path / "together")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_ranks_that_would_train_something_else_are_refused_with_the_difference(tmp_path: Path, tiny_model: TinyModel):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    (first, said), (_, other_said) = train_by_hand(recipe, 2, others=("--set", "training.weight_decay=0.5"))
    assert first == 1
    assert other_said == ""
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "error: rank 1: it would train with training.weight_decay = 0.5, not 0.01" in said + log
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_a_rank_that_cannot_prepare_ends_all_with_its_sentence(tmp_path: Path, tiny_model: TinyModel):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    (first, _), _ = train_by_hand(recipe, 2, others=("--set", "data.path=nowhere.jsonl"))
    assert first == 1
    assert "error: rank 1: " in (tmp_path / "run" / "log.txt").read_text()


def start(recipe: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    """``mlxft train RECIPE --hostfile ...`` with two ranks, running."""
    options = [part for change in QUIET for part in ("--set", change)]
    hosts = hostfile(recipe.parent, 2)
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_finetune", "train", str(recipe), *options, "--hostfile", str(hosts), *arguments],
        env=environment(**more),
        cwd=recipe.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def has_checkpoint(run: RunDir) -> bool:
    return bool(run.checkpoints())


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_the_run_and_it_goes_on_with_another_number_of_ranks(
    tmp_path: Path, tiny_model: TinyModel, rank: int
):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = RunDir(tmp_path / "run")
    training = start(recipe)
    wait_until(lambda: has_checkpoint(run))
    kill_rank(recipe, rank)
    _, said = training.communicate(timeout=TIMEOUT)
    assert training.returncode == 1
    if rank:
        assert "rank 1 on localhost was ended by SIGKILL" in said
        assert "error: another rank has gone: " in said
    else:
        assert "error: rank 0: the training process was killed" in said
    assert f"--hostfile {tmp_path / 'hosts.json'} --resume" in said
    assert ranks_at_work(recipe) == {}
    damaged: list[str] = []
    checkpoint = newest_checkpoint(run, on_damage=damaged.append)
    assert checkpoint is not None
    assert damaged == []

    last = int(checkpoint.path.name.removeprefix("checkpoint-")) + 2
    train(recipe, overrides=QUIET, resume=True, stop_after=last)
    alone = write_recipe(tmp_path, tiny_model("llama"), name="alone")
    expected = numbers(train(alone, overrides=QUIET, stop_after=last))
    assert numbers(run) == pytest.approx(expected, rel=1e-5)


@linux_only
@pytest.mark.slow
def test_a_stop_saves_and_ends_all_ranks(tmp_path: Path, tiny_model: TinyModel):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = RunDir(tmp_path / "run")
    training = start(recipe)
    wait_until(lambda: has_checkpoint(run))
    training.send_signal(signal.SIGTERM)
    _, said = training.communicate(timeout=TIMEOUT)
    assert training.returncode == 143
    assert "stopped after step" in said
    assert ranks_at_work(recipe) == {}
    assert json.loads((run.path / "run.json").read_text())["status"] == "stopped"


@linux_only
@pytest.mark.slow
def test_a_signal_that_reaches_another_rank_stops_all(tmp_path: Path, tiny_model: TinyModel):
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    training = start(recipe)
    wait_until(lambda: has_checkpoint(RunDir(tmp_path / "run")))
    os.kill(ranks_at_work(recipe)[1], signal.SIGTERM)
    _, said = training.communicate(timeout=TIMEOUT)
    assert training.returncode == 143
    assert "stopped after step" in said


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_that_a_rank_is_asked_for_is_written_and_all_go_on(
    tmp_path: Path, tiny_model: TinyModel, rank: int
):
    """Rank 1 tells rank 0, which writes after the next step; the losses stay those of one process."""
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    run = RunDir(tmp_path / "run")
    training = start(recipe)
    wait_until(lambda: has_checkpoint(run))  # of step 5; the next one by itself is that of step 10
    saved = [5]
    while all(step % 5 == 0 for step in saved):
        os.kill(ranks_at_work(recipe)[rank], signal.SIGUSR1)
        time.sleep(0.05)
        saved = [int(path.name.removeprefix("checkpoint-")) for path in run.checkpoints()]
    training.send_signal(signal.SIGTERM)
    training.communicate(timeout=TIMEOUT)
    assert training.returncode == 143
    damaged: list[str] = []
    checkpoint = newest_checkpoint(run, on_damage=damaged.append)
    assert checkpoint is not None
    assert damaged == []
    alone = write_recipe(tmp_path, tiny_model("llama"), name="alone")
    last = int(checkpoint.path.name.removeprefix("checkpoint-"))
    expected = numbers(train(alone, overrides=QUIET, stop_after=last))
    assert numbers(run) == pytest.approx(expected, rel=1e-5)


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_ranks_elsewhere_are_started_through_ssh(tmp_path: Path, tiny_model: TinyModel, works: bool):
    """``ssh`` is a script here that runs on this machine what it is asked to run on the other."""
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    script = 'for last; do :; done; exec /bin/sh -c "$last"' if works else "echo no route to mac2 >&2; exit 255"
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f"#!/bin/sh\n{script}\n")
    ssh.chmod(0o755)
    hosts = tmp_path / "machines.json"
    machines = [{"ssh": "localhost", "ips": ["127.0.0.1"]}, {"ssh": "mac2.local", "ips": ["127.0.0.1"]}]
    hosts.write_text(json.dumps({"hosts": machines, "envs": ["MLXFT_TEST=a b"]}))
    training = start(
        recipe, "--set", "training.max_steps=2", "--hostfile", str(hosts), PATH=f"{ssh.parent}:{os.environ['PATH']}"
    )
    _, said = training.communicate(timeout=TIMEOUT)
    if works:
        assert training.returncode == 0, said
        assert len(numbers(RunDir(tmp_path / "run"))) == 4
    else:
        assert training.returncode == 1
        assert "error: rank 1 on mac2.local ended with code 255: no route to mac2" in said
    assert ranks_at_work(recipe) == {}


@linux_only
@pytest.mark.slow
def test_under_mlx_launch(tmp_path: Path, tiny_model: TinyModel):
    """``mlx.launch`` itself exits 0 whatever its ranks do; what counts is what rank 0 says."""
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    programs = Path(sys.executable).parent
    mlxft = [sys.executable, "-m", "mlx_finetune", "train", str(recipe)]
    launch = [str(programs / "mlx.launch"), "-n", "2", "-p", "33400", "--", *mlxft]
    launched = subprocess.Popen(
        launch,
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = launched.communicate(timeout=TIMEOUT)
    assert launched.returncode == 0
    assert "finished at step 6" in said
    assert ranks_at_work(recipe) == {}


@linux_only
def test_a_launcher_that_waits_for_a_pipe_to_take_input_can_sleep():
    """Its loop over the ranks' stdin turns without a pause as long as one of them takes input (mlx 0.32.4)."""
    said = "print('filled', flush=True); time.sleep(60)"
    program = f"import time; from mlx_finetune.app.running.hosts import fill_stdin; fill_stdin(); {said}"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert select.select([], [child.stdin], [], 0)[1] == [child.stdin]
        assert child.stdout.readline() == b"filled\n"
        assert select.select([], [child.stdin], [], 0)[1] == []
        child.kill()
