"""How a whole run begins again and ends, where that is more than its loop: extensions, forks, limits."""

import json
import signal

import pytest
from small_runs import course, train, write_recipe, write_rows

from mlx_finetune import rundir
from mlx_finetune.errors import RunError
from mlx_finetune.events import Notice
from mlx_finetune.journal import EventWriter, read_events
from mlx_finetune.model.answers.generate import generate_tokens
from mlx_finetune.rundir import RunDir
from mlx_finetune.train import loop
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.admission import RefusedError


@pytest.fixture
def recipe(tiny_model, tmp_path):
    return write_recipe(tmp_path, tiny_model("llama"))


@pytest.fixture
def alarm():
    """A run that never ends fails after a minute instead."""

    def ring(number, frame):
        raise TimeoutError("the run did not end")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def steps_of(run):
    return [entry[1] for entry in course(run) if entry[0] == "step"]


def metrics_of(run):
    return json.loads(run.file(rundir.METRICS).read_text())


def test_a_time_limit_ends_a_run_without_a_validation_set(recipe, alarm):
    run = train(recipe, overrides=("data.val_split=0", "training.max_minutes=1e-9", "eval.prompts=[]"))
    assert (steps_of(run), metrics_of(run)["reason"]) == ([1], "max_minutes")
    assert run.file(rundir.PEFT_WEIGHTS).is_file()


def test_the_evaluation_at_the_end_of_the_minutes_is_not_forgotten_by_an_extension(recipe):
    settings = ("eval.prompts=[]", "training.save_steps=1", "training.eval_steps=6")
    run = train(recipe, overrides=(*settings, "training.max_minutes=1e-9"))
    before = [entry for entry in course(run) if entry[0] == "evaluation"]
    assert [(entry[1], entry[3]) for entry in before] == [(0, False), (1, True)]
    train(recipe, overrides=settings, extend=2, kill_after=2)
    train(recipe, overrides=settings, resume=True)
    assert [entry for entry in course(run) if entry[0] == "evaluation"][:2] == before


#: A rate at which every evaluation is worse than the one before it.
STOPS_EARLY = ("training.early_stopping_patience=1", "training.learning_rate=3.0", "training.eval_steps=1")


def test_a_run_that_stopped_early_is_extended_from_where_it_stopped(recipe):
    settings = (*STOPS_EARLY, "training.max_steps=20", "training.warmup_steps=0", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    stopped = steps_of(run)[-1]
    assert (metrics_of(run)["reason"], stopped < 20) == ("early_stopping", True)
    train(recipe, overrides=settings, extend=1)
    assert steps_of(run)[-1] == stopped + 1
    assert metrics_of(run)["reason"] == "finished"


def test_a_run_that_used_up_its_minutes_is_extended_only_with_more(recipe):
    settings = ("training.max_minutes=1e-9", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    with pytest.raises(RunError, match=r"training\.max_minutes"):
        train(recipe, overrides=settings, extend=1)
    with pytest.raises(RunError, match="used up") as error:
        train(recipe, overrides=(*settings, "training.learning_rate=1e-3"), fork=True)
    enough = error.value.hint.partition("--set ")[2]
    train(recipe, overrides=(*settings, enough), extend=1)
    assert (steps_of(run), metrics_of(run)["reason"]) == ([1, 2], "finished")


def test_patience_is_new_for_what_goes_on_otherwise_also_after_a_kill(recipe):
    settings = (*STOPS_EARLY, "training.max_steps=20", "training.warmup_steps=0", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    stopped = steps_of(run)[-1]
    forked = (*settings, "training.learning_rate=1e-4", "training.save_steps=9")
    train(recipe, overrides=forked, fork=True, kill_after=stopped + 1)
    assert [path.name for path in run.checkpoints()][-1] == f"checkpoint-{stopped}"
    train(recipe, overrides=forked, resume=True)
    assert steps_of(run)[-1] > stopped


def test_a_fork_that_is_measured_otherwise_has_a_best_of_its_own(recipe):
    settings = ("training.max_steps=2", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    (before,) = [entry[2] for entry in course(run)[-1:]]
    rows = write_rows(recipe.parent / "others.jsonl", 40).read_text().splitlines()[30:]
    (recipe.parent / "others.jsonl").write_text("\n".join(rows))
    others = (
        "data.val_split=0",
        f"data.valid={recipe.parent / 'others.jsonl'}",
        f"data.train={recipe.parent / 'rows.jsonl'}",
    )
    forked = (*settings, *others, "data.path=", "training.learning_rate=3.0")
    train(recipe, overrides=forked, fork=True, extend=2, kill_after=3)
    train(recipe, overrides=forked, resume=True)
    first, last = [entry for entry in course(run) if entry[0] == "evaluation"][-2:]
    assert first[2] != before
    assert first[1:] == (2, first[2], True)
    assert (metrics_of(run)["first_eval_loss"], metrics_of(run)["last_eval_loss"]) == (first[2], last[2])


def test_a_fork_that_learns_otherwise_is_measured_as_before(recipe):
    settings = ("training.max_steps=2", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    train(recipe, overrides=(*settings, "training.learning_rate=5.0"), fork=True, extend=2)
    assert metrics_of(run)["result_step"] == 2
    assert [entry[1] for entry in course(run) if entry[0] == "evaluation"] == [0, 2, 4]


def test_best_weights_that_were_not_kept_are_not_the_result_of_a_fork(recipe):
    settings = ("training.eval_steps=1", "training.save_steps=9", "training.warmup_steps=0", "eval.prompts=[]")
    asked = ("training.keep_best=false", "training.learning_rate=3.0")
    run = train(recipe, overrides=(*settings, *asked))
    before = metrics_of(run)
    assert before["best_step"] < 6
    train(recipe, overrides=(*settings, "training.learning_rate=1e-6"), fork=True, extend=1)
    after = metrics_of(run)
    assert after["last_eval_loss"] > before["best_eval_loss"]
    assert after["result_step"] == 7


def test_a_fork_with_nothing_left_to_train_is_refused(recipe):
    settings = ("training.max_steps=2", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    with pytest.raises(RunError, match="step 2 of 2"):
        train(recipe, overrides=(*settings, "training.learning_rate=5e-3"), fork=True)
    train(recipe, overrides=("training.max_steps=3", "eval.prompts=[]"), fork=True)
    assert steps_of(run) == [1, 2, 3]


def test_a_fork_of_an_extended_run_takes_the_length_that_is_asked_for_now(recipe):
    settings = ("training.max_steps=2", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    train(recipe, overrides=settings, extend=1)
    train(recipe, overrides=("training.max_steps=5", "eval.prompts=[]"), fork=True)
    assert steps_of(run) == [1, 2, 3, 4, 5]


def test_a_damaged_newer_checkpoint_never_costs_the_good_ones(recipe):
    settings = ("training.keep_checkpoints=1", "training.save_steps=1", "training.keep_best=false", "eval.prompts=[]")
    run = train(recipe, overrides=("training.keep_checkpoints=9", *settings[1:]), kill_after=5)
    for step in (3, 4):
        (run.checkpoint(step) / rundir.TRAINER_STATE).write_text("{}")
    train(recipe, overrides=settings, resume=True, stop_after=3)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-3"]  # the best and the last
    train(recipe, overrides=settings, resume=True)
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]


def test_a_signal_while_prompts_are_answered_costs_no_answer(recipe, monkeypatch):
    prompts = ('eval.prompts=["One.", "Two."]', "training.max_steps=2")
    straight = train(recipe, overrides=(*prompts, f"output_dir={recipe.parent / 'straight'}"))
    requests, answers = [], []

    class Recorded(StopRequest):
        def __init__(self):
            super().__init__()
            requests.append(self)

    def interrupted(*arguments, **options):
        answers.append(1)
        if len(answers) == 4:  # the second prompt of the second evaluation
            requests[0].request(signal.SIGINT)
        return generate_tokens(*arguments, **options)

    monkeypatch.setattr("small_runs.StopRequest", Recorded)
    monkeypatch.setattr("mlx_finetune.train.samples.generate_tokens", interrupted)
    run = train(recipe, overrides=prompts)
    assert not run.file(rundir.METRICS).exists()
    train(recipe, overrides=prompts, resume=True)
    assert course(run) == course(straight)
    assert run.file(rundir.SAMPLES).read_text() == straight.file(rundir.SAMPLES).read_text()
    histories = [metrics_of(folder)["log_history"] for folder in (run, straight)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("asked", [{"extend": 2}, {"resume": True}])
def test_a_continuation_refused_over_its_data_leaves_the_run_as_it_was(recipe, asked):
    run = train(recipe, stop_after=None if "extend" in asked else 3)
    files = (rundir.EVENTS, rundir.SAMPLES, rundir.RUN_INFO)
    before = [run.file(name).read_bytes() for name in files]
    write_rows(recipe.parent / "rows.jsonl", 30)
    with pytest.raises(RunError, match="the data files have changed"):
        train(recipe, **asked)
    assert [run.file(name).read_bytes() for name in files] == before


@pytest.mark.parametrize(
    ("change", "message"), [("lora.rank=8", "lora_a is"), ("lora=", r"checkpoint-6 has no model\.safetensors")]
)
def test_a_fork_refused_over_its_shape_leaves_the_run_as_it_was(recipe, change, message):
    run = train(recipe)
    files = (rundir.EVENTS, rundir.SAMPLES, rundir.RUN_INFO)
    before = [run.file(name).read_bytes() for name in files]
    with pytest.raises(RefusedError, match=message) as error:
        train(recipe, fork=True, extend=2, overrides=(change,))
    assert "another output_dir" in error.value.hint
    assert [run.file(name).read_bytes() for name in files] == before


def test_a_damaged_run_json_is_taken_from_the_newest_checkpoint(recipe, tmp_path):
    straight = train(recipe, overrides=(f"output_dir={tmp_path / 'straight'}",))
    run = train(recipe, kill_after=5)
    run.file(rundir.RUN_INFO).write_text('{"format_version"')
    train(recipe, resume=True)
    assert "taken from checkpoint-4" in run.file(rundir.EVENTS).read_text()
    assert run.file(rundir.MLX_WEIGHTS).read_bytes() == straight.file(rundir.MLX_WEIGHTS).read_bytes()


def test_checkpoints_of_save_at_stay_when_the_run_is_extended(recipe):
    settings = ("training.save_at=[0.5]", "training.save_steps=1", "training.keep_checkpoints=1", "eval.prompts=[]")
    run = train(recipe, overrides=settings)
    train(recipe, overrides=settings, extend=6)
    assert {"checkpoint-3", "checkpoint-6", "checkpoint-12"} <= {path.name for path in run.checkpoints()}


def test_a_journal_that_was_changed_is_said(recipe):
    run = train(recipe, kill_after=3)
    lines = run.file(rundir.EVENTS).read_text().splitlines(keepends=True)
    run.file(rundir.EVENTS).write_text("".join(lines[1:]))
    train(recipe, resume=True)
    assert "is not what it was at step 2: its history has gaps" in run.file(rundir.EVENTS).read_text()


def test_a_torn_last_line_of_the_journal_spoils_no_other_line(recipe):
    run = train(recipe, stop_after=3)
    whole = len(list(read_events(run.file(rundir.EVENTS))))
    writer = EventWriter(run.file(rundir.EVENTS), clock=lambda: 1.0)
    writer(Notice("info", "one"))
    writer.close()
    with run.file(rundir.EVENTS).open("ab") as file:
        file.write(b'{"kind": "notice", "ti')
    writer = EventWriter(run.file(rundir.EVENTS), clock=lambda: 1.0)
    writer(Notice("info", "two"))
    writer.close()
    added = [record.event for record in read_events(run.file(rundir.EVENTS))][whole:]
    assert added == [Notice("info", "one"), Notice("info", "two")]


def test_the_steps_before_a_long_evaluation_are_saved_first(recipe, tmp_path, monkeypatch):
    """With almost no work allowed at risk, each step is saved, also the one that is about to be evaluated."""
    saved_before = []
    real = loop._evaluate

    def evaluate(given, state):
        saved_before.append((state.step, [path.name for path in run.checkpoints()][-1:]))
        return real(given, state)

    monkeypatch.setattr(loop, "_evaluate", evaluate)
    straight = tmp_path / "straight"
    run = RunDir(straight)
    train(recipe, overrides=(f"output_dir={straight}",))
    assert saved_before[1] == (2, []), "by default nothing is that urgent"
    saved_before.clear()
    run = RunDir(recipe.with_suffix(""))
    hurried = ("training.save_minutes=0.00001", "training.save_steps=99", "training.keep_checkpoints=9")
    train(recipe, overrides=hurried, kill_after=5)
    assert saved_before[1:] == [(2, ["checkpoint-2"]), (4, ["checkpoint-4"])]
    train(recipe, overrides=hurried, resume=True)
    assert run.file(rundir.MLX_WEIGHTS).read_bytes() == RunDir(straight).file(rundir.MLX_WEIGHTS).read_bytes()


def test_a_checkpoint_without_a_manifest_is_named_and_the_one_before_is_taken(recipe, tmp_path):
    straight = train(recipe, overrides=(f"output_dir={tmp_path / 'straight'}",))
    run = train(recipe, kill_after=5)
    (run.checkpoint(4) / rundir.MANIFEST).unlink()
    train(recipe, resume=True)
    assert "checkpoint-4 is damaged (it has no manifest)" in run.file(rundir.EVENTS).read_text()
    assert run.file(rundir.MLX_WEIGHTS).read_bytes() == straight.file(rundir.MLX_WEIGHTS).read_bytes()


@pytest.mark.parametrize("damaged", [rundir.MANIFEST, rundir.OPTIMIZER])
def test_a_run_without_a_whole_checkpoint_is_refused_and_nothing_of_it_is_removed(recipe, damaged):
    run = train(recipe, kill_after=5)
    for folder in run.checkpoints():
        (folder / damaged).write_text("")
        if damaged == rundir.MANIFEST:
            (folder / damaged).unlink()
    before = sorted(path for path in run.path.rglob("*") if path.name != rundir.LOCK)
    for resume in (True, False):
        with pytest.raises(RunError, match="none of the 2 checkpoints"):
            train(recipe, resume=resume, fork=not resume)
    assert sorted(path for path in run.path.rglob("*") if path.name != rundir.LOCK) == before
