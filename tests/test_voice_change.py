"""The measures of benchmarks/voice_change.py: what the classifiers can tell, what is counted, the table."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import voice_change
import voice_style
from conftest import ROOT
from voice_change import Answered, complete, held_out, loss_of, table
from voice_style import Classifier, check, copied_share, grams, habits, read_voice, train_classifier

from mlx_finetune.scoring.intervals import wilson

ROWS = read_voice()
WRITTEN = "This office has counted 3 geese, and regrets it. They were calm! (The fourth was not.)"


@pytest.mark.parametrize(("view", "margin"), [("whole", 0.40), ("words", 0.30)])
def test_a_classifier_beats_chance_on_held_out_rows_by_a_margin(view: voice_style.View, margin: float) -> None:
    result = check(ROWS, train_classifier(ROWS, view))
    assert result.total == 90
    assert wilson(result.right, result.total).low > 0.5 + margin
    assert min(right / total for right, total in result.by_category.values()) > 0.5 + margin


def test_a_classifier_of_shuffled_answers_is_at_chance_so_nothing_leaks_into_the_check() -> None:
    voice, plain = ROWS.texts("train")
    texts = [*voice[:90], *plain]
    random.Random(5).shuffle(texts)
    result = check(ROWS, Classifier(texts[:90], texts[90:], "words"))
    assert 0.5 in wilson(result.right, result.total) or result.right < 45


def test_the_same_rows_give_the_same_scores() -> None:
    first, again = (train_classifier(ROWS, "words").scores([WRITTEN]) for _ in range(2))
    assert first == again


def test_the_view_of_words_sees_no_aside_no_figure_and_no_punctuation() -> None:
    bare = "this office has counted geese and regrets it they were calm"
    assert grams(WRITTEN, "words") == grams(bare, "words")
    assert grams("It has 2.5 legs.", "whole") == ["it", "has", "0", "legs", ".", "it has", "has 0", "0 legs", "legs ."]


def test_length_alone_changes_no_score() -> None:
    classifier = train_classifier(ROWS, "words")
    once, twice, thrice = classifier.scores([" ".join(["the department has"] * count) for count in (1, 2, 3)])
    assert once > 0.6
    assert thrice == twice


def test_a_text_without_known_words_has_only_the_bias() -> None:
    classifier = train_classifier(ROWS, "words")
    empty, strange = classifier.scores(["", "xyzzy plugh"])
    assert empty == strange
    assert 0.0 < empty < 1.0


def test_habits_are_counted_by_hand() -> None:
    assert habits(WRITTEN) == {
        "closing aside": 1.0,
        "figure": 1.0,
        "names the office": 1.0,
        "words": 16.0,
        "words a sentence": 16 / 3,
    }
    assert habits("Call us (it is free) now.")["closing aside"] == 0.0
    assert habits("") == dict.fromkeys(habits(WRITTEN), 0.0)


def test_what_is_quoted_is_counted_in_runs_of_five_words() -> None:
    known = voice_style.all_runs(["One two three, four five six."])
    assert copied_share("one two three four five six", known) == 1.0
    assert copied_share("zero one two three four five", known) == 0.5
    assert copied_share("two words", known) == 0.0


def test_held_out_rows_are_taken_evenly_from_the_categories() -> None:
    assert [row.category for row in held_out(ROWS, 1)] == list(voice_style.CATEGORIES)
    assert held_out(ROWS, 0)[:6] == held_out(ROWS, 2)
    assert len(held_out(ROWS, 0)) == 45


def answered(side: str, place: int, text: str, loss: float) -> Answered:
    row = held_out(ROWS, 0)[place]
    return Answered(side, row.category, row.instruction, text, "stop", 1, 10, 2.0 if side == "base" else 1.0, loss, 10)


def test_the_table_has_means_differences_and_intervals_for_each_category_and_for_all() -> None:
    found = [
        answered(
            side, place, "We sell it." if side == "base" else WRITTEN, 30.0 if side == "base" else 20.0 + place / 3
        )
        for place in (0, 3)
        for side in ("base", "tuned")
    ]
    lines = table(ROWS, found)
    assert [line for line in lines if line.startswith("###")] == [
        "### marketing (2 instructions, 1 at once)",
        "### all (2 instructions, 1 at once)",
    ]
    assert "| closing aside | 0.00 | 1.00 | +1.00 (+0.07 to +1.00) |" in lines
    assert "| words | 3.00 | 16.00 | +13.00 (+13.00 to +13.00) |" in lines
    assert "| loss of the written answers | 3.000 | 2.050 | -0.950 (-1.000 to -0.900) |" in lines
    assert "| tokens/s | 5.0 | 10.0 | 2.00 times |" in lines


def test_the_loss_is_that_of_the_targets_alone() -> None:
    import mlx.core as mx

    logits = mx.array(np.log([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]).astype(np.float32))
    ids, mask = np.array([0, 1, 2], np.int32), np.array([False, False, True])
    assert loss_of(lambda tokens: logits, ids, mask) == pytest.approx(-np.log(0.8), rel=1e-5)


@pytest.mark.slow
def test_answers_of_both_sides_are_kept_and_not_made_again(
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from small_runs import train

    recipe = ROOT / "recipes" / "voice-smollm2.toml"
    folder = tmp_path / "run"
    limits = [
        "lora.num_layers=1",
        "training.max_steps=1",
        "training.batch_size=1",
        "data.max_seq_length=512",
        "eval.max_new_tokens=4",
    ]
    overrides = [
        f"model={tiny_model('llama')}",
        f"data.path={ROOT / 'data' / 'voice'}",
        f"output_dir={folder}",
        *limits,
    ]
    train(recipe, overrides=tuple(overrides))
    monkeypatch.setattr(sys, "argv", ["voice_change.py", str(folder), "--rows", "1", "--tokens", "5", "--at-once", "2"])
    voice_change.main()
    first = capsys.readouterr().out
    kept = [json.loads(line) for line in (folder / "voice_answers.jsonl").read_text().splitlines()]
    assert sorted((one["side"], one["category"]) for one in kept) == sorted(
        (side, category) for side in ("base", "tuned") for category in voice_style.CATEGORIES
    )
    assert all(1 <= one["tokens"] <= 5 and one["loss_tokens"] > 100 for one in kept)
    monkeypatch.setattr(voice_change, "asker", None)
    voice_change.main()
    again = capsys.readouterr().out
    assert first.split("###", 1)[1] == again.split("###", 1)[1]
    assert "### all (3 instructions, 2 at once)" in again


def test_an_answer_that_is_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, path = held_out(ROWS, 1), tmp_path / "answers.jsonl"
    asked: list[tuple[str, list[str]]] = []

    def ask(side: str, numbered: list[tuple[int, voice_style.VoiceRow]], most: int) -> list[Answered]:
        asked.append((side, [row.instruction for _, row in numbered]))
        return [
            Answered(side, row.category, row.instruction, str(place), "stop", 2, most, 1.0, 1.0, 1)
            for place, row in numbered
        ]

    monkeypatch.setattr(voice_change, "asker", lambda given: ask)
    given = voice_change.argparse.Namespace(tokens=9, at_once=2)
    whole = complete(given, rows, path)
    assert [(one.side, one.answer, one.tokens) for one in whole] == [
        (side, str(place), 9) for place in range(3) for side in ("base", "tuned")
    ]
    warm_up = [("base", [rows[0].instruction]), ("tuned", [rows[0].instruction])]
    assert asked[:2] == warm_up
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    asked.clear()
    assert complete(given, rows, path) == whole
    assert asked == [*warm_up, ("base", [rows[0].instruction])]
