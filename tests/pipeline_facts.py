"""A pipeline of two stages with an evaluation each, as its report reads it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_finetune.monitor.pipeline.facts import PipelineFacts, StageFacts
from mlx_finetune.monitor.report.evaluated import Evaluation, Figure, Measured, Rows, Verdict
from mlx_finetune.recipe.pipeline.record import EvaluationRecord, PipelineRecord, StageRecord

STAGES = ("pretrain", "sft")


def evaluation(perplexity: float, number: int, *, tokenizer: str = "t", rows: str = "r") -> Evaluation:
    measures = (
        Measured("perplexity", False, {"base": Figure(9.0, 8.0, 10.0, 50), "tuned": Figure(perplexity, 2.0, 4.0, 50)},
                 name="perplexity"),
        Measured("bits per byte", False, {"tuned": Figure(perplexity / 2, None, None, 50)}, name="bits_per_byte"),
        Measured("right number", True, {"tuned": Figure(number / 50, 0.1, 0.9, 50, number)}, name="number"),
    )  # fmt: skip
    identity = {"tokenizer_sha256": tokenizer, "rows_sha256": rows}
    return Evaluation("rows", "", Rows("rows.jsonl", "all", 50), Verdict("", ""), measures, identity=identity)


def pipeline(first: Evaluation, second: Evaluation, **changes: Any) -> PipelineFacts:
    """Two stages with an evaluation each."""
    records = tuple(StageRecord(name, "train", f"{name}.toml", status="finished", seconds=60.0) for name in STAGES)
    evaluations = tuple(EvaluationRecord(name, "rows", "finished", seconds=5.0) for name in STAGES)
    record = PipelineRecord("2026", "p.toml", "/", stages=records, evaluations=evaluations)
    stages = tuple(
        StageFacts(one, Path(one.name), None, {"rows": found}, (), "", is_at_work=False)
        for one, found in zip(records, (first, second), strict=True)
    )
    return replace(PipelineFacts("mine", Path("adapters/mine"), record, stages, is_running=False), **changes)
