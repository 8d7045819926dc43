"""Where a run is, as plain values for the page: all but the curves. Texts are sent as they are, never as HTML."""

from dataclasses import asdict

from mlx_finetune.events import Event, RunFailed, RunFinished, RunStopped
from mlx_finetune.monitor.filmstrip import Frame, changed_words, frames
from mlx_finetune.monitor.plain import amount_done
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.monitor.web.hands import Hands
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.rundir import RunDir, checkpoint_step

Json = dict[str, object]

#: Of a long run only the last are sent: enough for a page, which is no archive.
MAX_LISTED = 200
MAX_EVALUATIONS = 2000

_NO_ANSWERS_YET = (
    "No answers yet. Prompts in [eval] of the recipe are answered before training and at every evaluation."
)
_NO_ANSWERS = "This run was trained to score: it writes no answers. mlxft eval measures its scores."


def status_json(run: RunDir, summary: Summary, hands: Hands, *, is_running: bool) -> Json:
    """The state by its parts; each is sent again only when it has changed."""
    started, step = summary.started, summary.step
    return {
        "talk": hands.copied(talk_command(_task(summary), run.name)),
        "state": state_of(summary, is_running=is_running),
        "phase": _phase(summary) if is_running else None,
        "started": asdict(started) if started else None,
        "started_time": summary.started_time or None,
        "first_time": summary.first_time,
        "last_time": summary.last_time or None,
        "took_seconds": summary.took_seconds,
        "step": asdict(step) if step else None,
        "steps_done": summary.steps_done,
        "lead": summary.lead,
        "units": summary.learned.units,
        "smooth": summary.smooth_lead,
        "trend": summary.trend(),
        "eta": _eta(summary) if is_running else None,
        "peak_memory_bytes": summary.peak_memory_bytes(),
        "machine": asdict(summary.resource) if summary.resource else None,
        "paused": summary.paused.reason if summary.paused else None,
        "lost_seconds": [summary.pause_seconds, summary.sleep_seconds],
        "evaluations": [[one.step, one.loss] for one in summary.evaluations[-MAX_EVALUATIONS:]],
        "best": _best(summary),
        "checkpoints": _checkpoints(run, summary),
        "notices": [asdict(one) for one in summary.notices[-MAX_LISTED:]],
        "restarts": [one.sentence for one in summary.restarts[-MAX_LISTED:]],
        "frames": [len(summary.samples), summary.samples[-1].step if summary.samples else None],
        "outcome": _outcome(summary.outcome),
        "go_on": "" if is_running else hands.go_on(run),
    }


def state_of(summary: Summary, *, is_running: bool) -> str:
    """running, preparing or paused at work; else finished, stopped, failed or interrupted."""
    if is_running and summary.paused is not None:
        return "paused"
    if is_running and (summary.is_preparing or summary.started is None):
        return "preparing"
    return summary.status(is_running=is_running)


def _phase(summary: Summary) -> Json | None:
    phase = summary.phase
    if phase is None:
        return None
    share = phase.done / phase.total if phase.done is not None and phase.total else None
    return {"name": phase.name, "detail": phase.detail, "amount": amount_done(phase), "share": share}


def _eta(summary: Summary) -> float | None:
    """When the last step will be done, in seconds since 1970."""
    remaining = summary.remaining_seconds()
    return None if remaining is None or summary.paused is not None else round(summary.last_time + remaining, 1)


def _checkpoints(run: RunDir, summary: Summary) -> list[Json]:
    """Those in the folder: of those in the journal some were removed since, and a crash may have lost a line of it."""
    sizes = {one.folder: one.num_bytes for one in summary.checkpoints}
    kept = run.checkpoints()[-MAX_LISTED:]
    return [{"step": checkpoint_step(path), "folder": path.name, "num_bytes": sizes.get(path.name)} for path in kept]


def _best(summary: Summary) -> list[float] | None:
    best = summary.best_evaluation
    return None if best is None else [best.step, best.loss]


def _outcome(outcome: Event | None) -> Json | None:
    match outcome:
        case RunFinished():
            return {"kind": "finished", **asdict(outcome), "result_loss": outcome.result_loss}
        case RunStopped():
            return {"kind": "stopped", **asdict(outcome)}
        case RunFailed():
            return {"kind": "failed", **asdict(outcome)}
        case _:
            return None


def filmstrip_json(run: RunDir, summary: Summary, hands: Hands) -> Json:
    """The steps of all frames with the validation loss there, and how each checkpoint that is kept is asked."""
    losses = {one.step: one.loss for one in summary.evaluations}
    task, kept = _task(summary), [path.name for path in run.checkpoints()]
    return {
        "frames": [{"step": one.step, "loss": losses.get(one.step)} for one in frames(summary)],
        "checkpoints": {name: hands.copied(talk_command(task, f"{run.name}/{name}")) for name in kept},
        "none": _NO_ANSWERS if task in SCORED_TASKS else _NO_ANSWERS_YET,
    }


def _task(summary: Summary) -> str:
    return summary.started.task if summary.started else ""


def frame_json(summary: Summary, number: int, *, against: str) -> Json | None:
    """Frame ``number`` with its changed words, against the frame before or the ``first``; None where there is none."""
    found = frames(summary)
    if not 0 <= number < len(found):
        return None
    other = found[0] if against == "first" else found[max(0, number - 1)]
    return {"number": number, "step": found[number].step, "answers": _answers(found[number], other)}


def _answers(frame: Frame, other: Frame) -> list[Json]:
    return [
        {"prompt": prompt, "pieces": _pieces(other.answers.get(prompt), answer)}
        for prompt, answer in frame.answers.items()
    ]


def _pieces(before: str | None, after: str) -> list[tuple[str, bool]]:
    if before is None or before == after:
        return [(after, False)]
    return [(piece.text, piece.is_changed) for piece in changed_words(before, after)]
