"""Runs the trials of a sweep one after the other, each as a training of its own, and goes on where one was left.

A trial is what ``mlxft train`` would do with a few keys set; it lies in a run folder of its own, which can be resumed,
watched and chatted with. One that diverges is a result; one that is refused ends the sweep with its error.
"""

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.app.running.launch import TrainRequest, View
from mlx_finetune.app.running.supervise import Supervised, supervise
from mlx_finetune.app.sweep.design import MOST_TRIALS, Base, Done, Trial, next_trial
from mlx_finetune.app.sweep.journal import Sweep, write_sweep
from mlx_finetune.errors import RunError
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir, run_info

Train = Callable[[TrainRequest, RunDir, Recipe, View], Supervised]


class SweepStoppedError(RunError):
    """A signal ended a trial; ``exit_code`` is that of the training."""

    def __init__(self, exit_code: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def trial_overrides(recipe: Recipe, base: Base, trial: Trial, folder: Path) -> list[str]:
    """The keys that make the recipe this trial. Warm-up shrinks with the run; no answers, one checkpoint."""
    training, lora = recipe.training, recipe.lora
    found = [
        f"output_dir={folder}",
        f"training.learning_rate={trial.learning_rate:.6g}",
        f"training.max_steps={trial.steps}",
        "training.save_at=[]",
        "training.keep_checkpoints=1",
        "training.report_to=[]",
        "eval.prompts=[]",
    ]
    if training.warmup_steps is not None:
        found.append(f"training.warmup_steps={round(training.warmup_steps * trial.steps / base.total_steps)}")
    if lora is not None and trial.rank is not None and trial.rank != lora.rank:
        found += [f"lora.rank={trial.rank}", f"lora.alpha={lora.alpha * trial.rank / lora.rank:g}"]
    return found


def run_sweep(
    sweep: Sweep,
    loaded: LoadedRecipe,
    *,
    make_view: Callable[[], View],
    say: Callable[[str], None],
    train: Train = supervise,
) -> Sweep:
    """Take every trial that is left; ``sweep.json`` says what they are of, and has each of them once it is done.

    Raises ``SweepStoppedError`` after a signal, ``RunError`` where a trial cannot be run or another process is at work
    in the folder.
    """
    from mlx_finetune import durable

    durable.make_folder(sweep.folder)
    lock = rundir.take_lock(sweep.folder / rundir.LOCK)
    if lock is None:
        raise RunError(f"another sweep is at work in {sweep.folder}", "wait for it")
    try:
        write_sweep(sweep)  # what the first trial is of
        while (trial := next_trial(sweep.base, sweep.done)) is not None:
            say(f"trial {trial.number} of at most {MOST_TRIALS}, {trial.rung}: {describe(trial)}")
            done = _take(sweep, loaded, trial, make_view, train)
            say(f"  validation loss {done.loss:.4f}" if done.loss is not None else f"  {done.failure}")
            sweep = replace(sweep, done=(*sweep.done, done))
            write_sweep(sweep)
    finally:
        os.close(lock)
    return sweep


def describe(trial: Trial) -> str:
    """The settings of a trial in words."""
    rank = "" if trial.rank is None else f", rank {trial.rank}"
    return f"learning rate {trial.learning_rate:.2g}{rank}, {trial.steps} steps"


def _take(sweep: Sweep, loaded: LoadedRecipe, trial: Trial, make_view: Callable[[], View], train: Train) -> Done:
    run = RunDir(sweep.trial_folder(trial))
    overrides = (*loaded.overrides, *trial_overrides(loaded.recipe, sweep.base, trial, run.path))
    recipe = load_recipe(loaded.path, overrides).recipe
    status = run_info(run).get("status")
    if status != "finished":
        request = TrainRequest(loaded.path, overrides, resume=status is not None)
        with closing(make_view()) as view:
            supervised = train(request, run, recipe, view)
        ending = supervised.ending
        if ending.kind == "stopped":
            what = f"trial {trial.number} was stopped; it and the sweep go on from here"
            raise SweepStoppedError(supervised.exit_code, what, "the same command goes on")
        if ending.kind == "failed" and ending.cause == "failed":
            return Done(trial, None, failure=ending.message.splitlines()[0])
        if ending.kind != "finished":
            error = RunError(f"trial {trial.number}: {ending.message}", ending.hint or f"see {run.file(rundir.LOG)}")
            error.exit_code = supervised.exit_code
            raise error
    return _result(trial, run)


def _result(trial: Trial, run: RunDir) -> Done:
    """The loss of the weights that the run ended with."""
    try:
        metrics = json.loads(run.file(rundir.METRICS).read_bytes())
        loss = metrics["best_eval_loss"] if metrics["best_step"] else metrics["last_eval_loss"]
        return Done(trial, loss, float(metrics["train_seconds"]), "" if loss is not None else "no validation loss")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.file(rundir.METRICS)} cannot be read: {error}", f"remove {run.path}") from None
