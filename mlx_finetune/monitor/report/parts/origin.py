"""How to make the same run again, and what lies in its folder."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, foreign, section, table, tag
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.units import format_bytes

_FILES: Mapping[str, str] = {
    rundir.RECIPE: "the recipe as it was written",
    rundir.RESOLVED: "every setting, with the reason of what was chosen",
    rundir.EVENTS: "everything the run reported: this page is made from it",
    rundir.SAMPLES: "the answers to your prompts",
    rundir.METRICS: "losses, times and memory as JSON",
    rundir.LOG: "what the training process wrote itself",
    rundir.RUN_INFO: "what the run is: hashes, versions, status",
    rundir.DATA_CARD: "rows, lengths and what was left out",
    rundir.CARD: "a model card for sharing",
    rundir.MICROSCOPE: "the loss of single tokens",
    rundir.CORRECTIONS: "answers that you put right in chats",
    rundir.ADAPTER_CONFIG: "the adapter's settings, for mlx-lm and PEFT",
    rundir.PEFT_WEIGHTS: "the adapter, for PEFT",
    rundir.MLX_WEIGHTS: "the adapter, for mlx-lm",
    f"{rundir.MODEL_FOLDER}/": "the trained model",
    f"{rundir.EVALUATIONS}/": "evaluations",
    f"{rundir.TRACKERS}/": "what report_to kept",
    f"{rundir.SCHEMAS}/": "the JSON schemas of [serve]",
}
_MOST_FILES = 200


def reproduce(facts: ReportFacts) -> Html | None:
    """Commands, versions and hashes; None where run.json is missing."""
    info = facts.info
    if not info.recipe_path:
        return None
    options = [part for one in info.overrides for part in ("--set", one)]
    command = shlex.join(["mlxft", "train", info.recipe_path, *options])
    return section(
        "reproduce",
        "How to make it again",
        tag("pre", tag("bdi", command)),
        tag(
            "p",
            "The same recipe, data and model under the same versions on the same kind of machine give the same weights",
            "." if all(one.is_bitwise for one in facts.summary.restarts) else ", here up to rounding.",
            " To try the result: ",
            code(talk_command(facts.summary.started.task if facts.summary.started else "", facts.shell_name)),
        ),
        table(("what", "value"), _identity(facts), class_="settings"),
    )


def _identity(facts: ReportFacts) -> Iterator[list[Child]]:
    info, seed = facts.info, facts.info.resolved.get("seed")
    run = rundir.RunDir(Path(facts.run.path))
    if run.pipeline is not None:
        yield ["part of", foreign(f"stage {run.path.name} of the pipeline {run.pipeline.name}", 200)]
    yield ["base model", foreign(f"{info.model} from {info.model_source}" if info.model_source else info.model)]
    if info.revision:
        yield ["its revision", code(info.revision)]
    yield ["its licence", foreign(info.license or "unknown; see the page of the base model")]
    for name, value in (
        ("SHA-256 of the model", info.identity.model_sha256),
        ("SHA-256 of tokenizer and chat template", info.identity.tokenizer_sha256),
        ("SHA-256 of the data", info.identity.data_sha256),
        ("SHA-256 of the adapter it started from", info.identity.adapter_sha256),
    ):
        if value:
            yield [name, code(value, 80)]
    yield ["seed", code(str(seed), 80)]
    if info.created:
        yield ["begun", foreign(info.created, 40)]
    for name, version in info.identity.versions.items():
        yield [foreign(name, 40), code(version, 120)]


def files(facts: ReportFacts) -> Html | None:
    """What lies in the folder and what for; None where there is no folder any more."""
    if not facts.files:
        return None
    rows: list[list[Child]] = [
        [code(name, 200), format_bytes(size) if size is not None else "", _purpose(name)]
        for name, size in facts.files[:_MOST_FILES]
    ]
    more = len(facts.files) - _MOST_FILES
    return section(
        "files",
        "Files of the run",
        tag("p", code(facts.run.path), f", {format_bytes(facts.run.num_bytes)} in all"),
        table(("name", "size", "what it is"), rows, class_="files"),
        tag("p", f"and {more:,} more") if more > 0 else None,
    )


def _purpose(name: str) -> str:
    if name.startswith("checkpoint-"):
        return "everything to go on from there; can be talked with too"
    return _FILES.get(name, "")
