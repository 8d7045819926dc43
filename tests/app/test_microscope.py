"""``mlxft microscope``: what is measured for which rows, what is kept, and what a user is told."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from answering_runs import write_adapter, write_full_run
from click.testing import CliRunner, Result
from eval_runs import change_facts, subject_of, write_place, write_rows

from mlx_finetune import rundir
from mlx_finetune.commands.microscope import command
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.dataset.token_losses import Microscope, hash_result, read_microscope
from mlx_finetune.errors import DataError, RunError, UsageError
from mlx_finetune.model.likelihoods import LikelihoodModel, Scored
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_place(tmp_path / "place", tiny_model("llama"))
    monkeypatch.chdir(folder)
    return folder


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False, standalone_mode=False)


def kept(place: Path, name: str = "keeper") -> Microscope:
    found = read_microscope(RunDir(place / "adapters" / name))
    assert found is not None
    return found


def lines_of(microscope: Microscope) -> list[str]:
    return [row.where for row in microscope.rows]


def test_losses_are_those_of_both_models_with_the_tokens_and_the_mask_of_training(place: Path):
    result = call("keeper")
    microscope = kept(place)
    assert len(microscope.rows) == 4
    subject = subject_of(place)
    rows = {f"{row.source}:{row.line}": row for row in _validation(place)}
    examples = [rows[row.where] for row in microscope.rows]
    split = tokenize(examples, subject.opened.tokenizer, subject.data, task="sft", base=place)
    for shown, row in zip(microscope.rows, split.rows, strict=True):
        assert "".join(token.text for token in shown.tokens) == subject.opened.tokenizer.decode(row.ids.tolist())
        assert [token.is_target for token in shown.tokens] == row.loss_mask.tolist()
    scored = [Scored(row.ids, np.flatnonzero(row.loss_mask)) for row in split.rows]
    for side in subject.sides(0):
        with subject.model(side) as model:
            losses = np.concatenate(LikelihoodModel(model, chunk_rows).losses(scored))
        tokens = [token for row in microscope.rows for token in row.tokens if token.is_target]
        found = [token.base if side.is_base else token.tuned for token in tokens]
        np.testing.assert_allclose(np.array(found, np.float32), losses, atol=1e-4)
    assert "+[learned]" in result.stdout
    assert f"kept in {place / 'adapters/keeper/microscope.json'}" in result.stderr
    assert result.stderr.splitlines()[-1] == "next: mlxft eval keeper"


def _validation(place: Path) -> Sequence[Example]:
    return load_splits(subject_of(place).data, base=place).valid


def test_what_was_measured_is_shown_again_without_loading_a_model(place: Path, monkeypatch: pytest.MonkeyPatch):
    first = call("keeper").stdout
    monkeypatch.setattr("mlx_finetune.app.microscope.measure", _fail)
    again = call("keeper")
    assert again.stdout == first
    assert "kept in" not in again.stderr


def _fail(*_: object, **__: object) -> None:
    raise AssertionError("measured again")


def test_rows_are_chosen_by_line_and_stay_chosen(place: Path, monkeypatch: pytest.MonkeyPatch):
    lines = sorted(row.line for row in _validation(place))[:3]
    call("keeper", "--rows", f"{lines[2]}, {lines[0]}")
    assert lines_of(kept(place)) == [f"rows.jsonl:{lines[2]}", f"rows.jsonl:{lines[0]}"]
    with monkeypatch.context() as patch:
        patch.setattr("mlx_finetune.app.microscope.measure", _fail)
        call("keeper")
        call("keeper", "--rows", f"{lines[2]},{lines[0]}")
    call("keeper", "--rows", "auto")
    assert len(kept(place).rows) == 4


def test_another_adapter_is_measured_again_and_that_is_said(place: Path, tiny_model: TinyModel):
    call("keeper")
    before = kept(place)
    write_adapter(place / "adapters/keeper", tiny_model("llama"), seed=5)
    result = call("keeper")
    after = kept(place)
    assert "of other weights than the run has now: measured again" in result.stderr
    assert lines_of(after) == lines_of(before)
    assert after.measured.adapter_sha256 == hash_result(RunDir(place / "adapters/keeper"))
    assert after.measured.adapter_sha256 != before.measured.adapter_sha256
    assert [token.tuned for row in after.rows for token in row.tokens] != [
        token.tuned for row in before.rows for token in row.tokens
    ]
    assert [token.base for row in after.rows for token in row.tokens] == [
        token.base for row in before.rows for token in row.tokens
    ]


def test_a_fully_trained_model_is_compared_with_its_original_weights(
    place: Path, tiny_model: TinyModel, tmp_path: Path
):
    run = write_full_run(place / "adapters/full", tiny_model("llama"), tiny_model("llama", seed=3))
    change_facts(place, {}, run.path)
    call("keeper")
    call("full")
    full, adapter = kept(place, "full"), kept(place)
    assert [token.base for row in full.rows for token in row.tokens] == [
        token.base for row in adapter.rows for token in row.tokens
    ]
    assert any(token.base != token.tuned for row in full.rows for token in row.tokens if token.is_target)
    assert full.measured.model_sha256 == adapter.measured.model_sha256
    assert full.measured.adapter_sha256 == hash_result(run)


def test_rows_of_another_file(place: Path):
    write_rows(place / "other.jsonl", 5)
    call("keeper", "--data", "other.jsonl", "--rows", "2")
    assert lines_of(kept(place)) == ["other.jsonl:2"]
    assert (kept(place).measured.data, kept(place).measured.chosen) == ("other.jsonl", "2")
    with pytest.raises(UsageError, match=r"line 9 is not among the rows of other\.jsonl"):
        call("keeper", "--data", "other.jsonl", "--rows", "9")
    with pytest.raises(UsageError, match=r"there is no nothing\.jsonl for --data"):
        call("keeper", "--data", "nothing.jsonl")


def test_long_rows_are_as_training_cut_them(place: Path):
    change_facts(
        place, {"data": {"max_seq_length": 20, "truncation": "split", "mask_prompt": False}}, place / "adapters/keeper"
    )
    call("keeper", "--data", "rows.jsonl", "--rows", "3")
    pieces = kept(place).rows
    assert len(pieces) > 1
    assert {row.where for row in pieces} == {"rows.jsonl:3"}
    assert max(len(row.tokens) for row in pieces) <= 20
    assert [row.notes for row in pieces] == [
        (f"sequence {number} of {len(pieces)} of this row",) for number in range(1, len(pieces) + 1)
    ]


def test_a_character_of_several_tokens_and_hostile_texts(place: Path):
    turns = [
        {"role": "user", "content": "</script>\x1b[31m"},
        {"role": "assistant", "content": "\U0001f600\u202e\n\tend"},
    ]
    (place / "odd.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    result = call("keeper", "--data", "odd.jsonl")
    (row,) = kept(place).rows
    texts = [token.text for token in row.tokens]
    assert "\U0001f600" in texts
    assert texts[texts.index("\U0001f600") + 1] == ""
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert "\\u202e" in result.stdout.replace("]", "").replace("+[", "").replace("?[", "").replace("-[", "")


def test_json_has_every_token_with_its_verdict(place: Path):
    fields = json.loads(call("keeper", "--json").stdout)
    assert {"rows", "shares", "gains", "losses", "base_loss", "tuned_loss", "adapter_sha256"} <= set(fields)
    assert sum(fields["shares"].values()) == pytest.approx(1)
    assert set(fields["rows"][0]["tokens"][0]) == {"text", "is_target", "base", "tuned", "verdict"}


def test_an_adapter_elsewhere_is_shown_and_not_kept(place: Path, tiny_model: TinyModel):
    (place / "adapters/keeper").rename(place / "adapters/older")
    run = place / "adapters/older"
    checkpoint = run / "checkpoint-5"
    write_adapter(checkpoint, tiny_model("llama"), seed=7)
    result = call(str(checkpoint))
    assert "+[learned]" in result.stdout
    assert "kept in" not in result.stderr
    assert not (run / rundir.MICROSCOPE).exists()


def test_a_folder_that_cannot_be_written_to_is_a_warning(place: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "microscope.json")

    monkeypatch.setattr("mlx_finetune.app.microscope.write_microscope", refuse)
    result = call("keeper")
    assert "warning: microscope.json cannot be kept" in result.stderr
    assert "+[learned]" in result.stdout


@pytest.mark.parametrize("rows", ["", "x", "0", "3,", "-1", "3-5", "1" * 20])
def test_what_names_no_lines_is_refused_before_anything_is_loaded(place: Path, rows: str, monkeypatch):
    monkeypatch.setattr("mlx_finetune.app.microscope.measure", _fail)
    with pytest.raises(UsageError, match="names no lines"):
        call("keeper", "--rows", rows)


def test_a_line_of_a_training_row_is_named_with_lines_that_can_be_chosen(place: Path):
    lines = {row.line for row in _validation(place)}
    other = next(line for line in range(1, 61) if line not in lines)
    with pytest.raises(UsageError, match=f"line {other} is not among the validation rows") as caught:
        call("keeper", "--rows", str(other))
    assert str(min(lines)) in caught.value.hint


def test_a_model_alone_and_a_run_without_validation_rows(place: Path, tiny_model: TinyModel):
    with pytest.raises(UsageError, match="nothing to compare it with"):
        call(str(tiny_model("llama")))
    change_facts(place, {"data": {"val_split": 0.0}}, place / "adapters/keeper")
    with pytest.raises(DataError, match="no validation rows") as caught:
        call("keeper")
    assert "--data FILE" in caught.value.hint


def test_a_damaged_file_is_measured_again(place: Path):
    call("keeper")
    (place / "adapters/keeper/microscope.json").write_text("{")
    call("keeper")
    assert len(kept(place).rows) == 4


def test_a_run_that_is_not_there_is_named(place: Path):
    with pytest.raises(RunError, match="there is no run, folder or model 'keepr'"):
        call("keepr")


def test_help_needs_neither_mlx_nor_rich():
    code = (
        "import sys; from mlx_finetune.commands import microscope; "
        "print([name for name in ('mlx', 'rich', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]", done.stderr
