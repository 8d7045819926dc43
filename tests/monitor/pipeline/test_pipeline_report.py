"""The table across stages and the page: who is ranked and who is not, and that names of others stay text."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pipeline_facts import evaluation, pipeline

from mlx_finetune.errors import RunError
from mlx_finetune.monitor.pipeline.facts import Picks, PipelineFacts, Way, read_pipeline
from mlx_finetune.monitor.pipeline.page import render, write_reports
from mlx_finetune.monitor.pipeline.table import evaluation_tables, figure_text, markdown, table_json, table_lines
from mlx_finetune.monitor.report.evaluated import Figure, Rows
from mlx_finetune.recipe.pipeline.record import PipelineRecord, write_record
from mlx_finetune.rundir import RunDir, list_all_runs, list_runs


def best(facts: PipelineFacts) -> dict[str, tuple[str, ...]]:
    return {column.name: column.best for column in evaluation_tables(facts)[0].columns}


def test_the_best_of_each_column_is_marked_over_the_same_rows_and_tokenizer() -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20))
    assert best(facts) == {"perplexity": ("pretrain",), "bits_per_byte": ("pretrain",), "number": ("sft",)}
    lines = list(table_lines(facts))
    assert lines[4].split("  ")[0] == "rows: 50 rows of rows.jsonl"
    assert lines[6] == "pretrain  3.000 (2.000 to 4.000) *  1.500 *        20.0% (10.0% to 90.0%)"
    assert "| sft | 3.500 (2.000 to 4.000) | 1.750 | **40.0% (10.0% to 90.0%)** |" in markdown(facts)


def test_what_is_counted_per_token_is_not_ranked_across_tokenizers() -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20, tokenizer="other"))
    assert best(facts) == {"perplexity": (), "bits_per_byte": ("pretrain",), "number": ("sft",)}
    assert evaluation_tables(facts)[0].note == (
        "what is counted per token is not ranked: the tokenizers differ; compare bits per byte"
    )


def test_text_that_was_read_in_other_windows_is_not_ranked() -> None:
    longer = replace(evaluation(3.5, 20), texts={"perplexity": {"window": 512, "stride": 256}})
    facts = pipeline(replace(evaluation(3.0, 10), texts={"perplexity": {"window": 192, "stride": 96}}), longer)
    assert best(facts) == {"perplexity": (), "bits_per_byte": (), "number": ("sft",)}
    assert "do not read it in the same windows" in evaluation_tables(facts)[0].note


def test_a_chat_template_makes_no_other_tokenizer(tmp_path: Path) -> None:
    tokens = {"model": {"vocab": {"a": 0}}, "normalizer": None, "pre_tokenizer": None}
    for name, place in (("pretrain", "pretrain/model"), ("sft", "sft")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "tokenizer.json").write_text(json.dumps(tokens | {"decoder": name}))
    write_record(tmp_path, pipeline(evaluation(3.0, 10), evaluation(3.5, 20)).record)
    first, second = read_pipeline(tmp_path).stages
    assert first.vocabulary == second.vocabulary != ""
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20, tokenizer="with a template"))
    stages = tuple(replace(stage, vocabulary=first.vocabulary) for stage in facts.stages)
    assert best(replace(facts, stages=stages))["perplexity"] == ("pretrain",)


def test_nothing_is_ranked_over_different_rows_or_alone_or_where_all_are_alike() -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20, rows="others"))
    assert set(best(facts).values()) == {()}
    assert evaluation_tables(facts)[0].note == "not ranked: the stages were measured on different rows"
    assert set(best(pipeline(evaluation(3.0, 10), evaluation(3.0, 10))).values()) == {()}
    one = pipeline(evaluation(3.0, 10), evaluation(3.5, 20))
    one = replace(one, stages=(one.stages[0],))
    assert set(best(one).values()) == {()}


def test_what_was_made_from_an_earlier_result_is_marked_and_not_ranked_in_every_view() -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20))
    first, second = facts.stages
    picks = Picks("tested", 200, 8, (Way("random", 0.31, 0.25, 0.37),), ())
    record = replace(facts.record, overrides=("sft.seed=1",))
    facts = replace(facts, record=record, stages=(first, replace(second, earlier="pretrain", picks=(picks,))))
    assert set(best(facts).values()) == {()}
    assert evaluation_tables(facts)[0].note == "not ranked: sft is of an earlier pretrain"
    says = [
        "sft: made from an earlier pretrain, which is there no more",
        "to make what follows anew: mlxft pipeline p.toml --set sft.seed=1 --force",
    ]
    lines = list(table_lines(facts))
    assert lines[3:5] == says
    assert sum(line.startswith("sft, of an earlier pretrain") for line in lines) == 2
    for text in (markdown(facts), render(facts)):
        assert all(one in text for one in says)
        assert text.count("sft, of an earlier pretrain") == 2
        assert text.count(", of an earlier pretrain") == 3  # and its status
    assert [one["of_earlier"] for one in table_json(facts)["stages"]] == [None, "pretrain"]  # pyright: ignore


def test_figures_from_before_a_stage_was_trained_further_are_marked_and_not_ranked() -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20))
    facts = replace(facts, stages=(replace(facts.stages[0], went_on=True), facts.stages[1]))
    assert set(best(facts).values()) == {()}
    assert evaluation_tables(facts)[0].note == "not ranked: pretrain is from before it was trained further"
    for text in ("\n".join(table_lines(facts)), markdown(facts), render(facts)):
        assert "pretrain: trained further since the pipeline has run it" in text
        assert text.count("pretrain, from before it was trained further") == 1


def test_figures_over_rows_that_taught_a_stage_are_not_ranked() -> None:
    known = replace(evaluation(3.5, 20), data=Rows("rows.jsonl", "all", 50, num_in_training=40))
    facts = pipeline(evaluation(3.0, 10), known)
    assert set(best(facts).values()) == {()}
    note = "not ranked: more than one in twenty of these rows taught sft"
    assert evaluation_tables(facts)[0].note == note


def test_an_odd_row_that_is_alike_and_rows_of_the_validation_keep_the_ranks() -> None:
    some = replace(evaluation(3.5, 20), data=Rows("rows.jsonl", "all", 50, num_in_training=2, num_in_validation=48))
    facts = pipeline(evaluation(3.0, 10), some)
    assert set(best(facts).values()) != {()}
    assert evaluation_tables(facts)[0].note == ""


def test_figures_of_an_evaluation_that_was_changed_in_between_are_not_ranked() -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20))
    first, second = facts.record.evaluations
    changed = replace(facts.record, evaluations=(first, replace(second, fingerprint={"max_tokens": "48"})))
    facts = replace(facts, record=changed)
    assert set(best(facts).values()) == {()}
    assert evaluation_tables(facts)[0].note == "not ranked: the evaluation was changed between the stages"


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(2.34567, 2.3, 2.4, 9), "2.346 (2.300 to 2.400)"),
        (Figure(12345.6, None, None, 9), "12,346"),
        (Figure(0.5, 0.25, 0.75, 8, 4), "50.0% (25.0% to 75.0%)"),
        (None, ""),
    ],
)
def test_figures_in_words(figure: Figure | None, text: str) -> None:
    assert figure_text(figure) == text


def test_ways_to_pick_an_answer_have_a_table_of_their_own() -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20))
    ways = (Way("random", 0.31, 0.25, 0.37), Way("verifier", 0.55, 0.45, 0.65, 110))
    picks = Picks("tested", 200, 8, ways, ())
    facts = replace(facts, stages=(facts.stages[0], replace(facts.stages[1], picks=(picks,))))
    assert "verifier's pick  55.0% (45.0% to 65.0%)" in list(table_lines(facts))
    assert "| verifier's pick | 55.0% (45.0% to 65.0%) |" in markdown(facts)
    assert table_json(facts)["picks"] == [{"stage": "sft", **asdict(picks)}]
    assert "Picking one of several answers" in render(facts)


def test_names_and_messages_of_others_stay_text() -> None:
    evil = "<script>alert(1)</script>|x"
    facts = pipeline(evaluation(3.0, 10), replace(evaluation(3.5, 20), data=Rows(evil, "all", 50)))
    stages = [replace(facts.stages[0].record, what=evil, message=evil, status="failed"), facts.stages[1].record]
    record = replace(facts.record, file=evil, stages=tuple(stages))
    facts = replace(facts, name=evil, record=record)
    facts = replace(facts, stages=(replace(facts.stages[0], record=stages[0]), facts.stages[1]))
    page = render(facts)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in markdown(facts)
    row = next(line for line in markdown(facts).splitlines() if "| failed |" in line)
    assert row.count("|") == 8


def test_a_pipeline_that_goes_on_with_another_file_has_its_report_in_the_same_place(tmp_path: Path) -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20), folder=tmp_path)
    first = write_reports(facts)
    assert write_reports(replace(facts, record=replace(facts.record, file="other.toml"))) == first


def test_an_edited_table_is_left_as_it_is(tmp_path: Path) -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20), folder=tmp_path)
    assert write_reports(facts) == (tmp_path / "report.html", tmp_path / "report.md")
    assert write_reports(facts) == (tmp_path / "report.html", tmp_path / "report.md")
    (tmp_path / "report.md").write_text("mine")
    assert write_reports(facts) == (tmp_path / "report.html", None)
    assert (tmp_path / "report.md").read_text() == "mine"


def test_a_folder_without_a_pipeline_and_a_damaged_record_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no pipeline has run in"):
        read_pipeline(tmp_path)
    (tmp_path / "pipeline.json").write_text('{"stages": 1}')
    with pytest.raises(RunError, match=r"pipeline\.json cannot be read: it is damaged"):
        read_pipeline(tmp_path)


def test_stages_are_among_all_runs_with_the_name_of_their_pipeline(tmp_path: Path) -> None:
    for name in ("alone", "mine/sft"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "run.json").write_text(json.dumps({"status": "finished"}))
    write_record(tmp_path / "adapters" / "mine", PipelineRecord("2026", "p.toml", "/"))
    assert [run.label for run in list_all_runs(tmp_path / "adapters")] == ["alone", "mine/sft"]
    assert [run.label for run in list_runs(tmp_path / "adapters")] == ["alone"]
    assert RunDir(tmp_path / "adapters" / "mine" / "sft").pipeline == tmp_path / "adapters" / "mine"
    assert RunDir(tmp_path / "adapters" / "alone").pipeline is None
