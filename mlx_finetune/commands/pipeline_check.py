"""Everything that would end a pipeline in one of its stages, found before the first: files, words of commands, tasks.

The commands of stages are read by the parsers that read them when their turn has come.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_finetune.errors import DataError, MlxftError, Problem, RecipeError

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.dataset.corpus import Splits
    from mlx_finetune.recipe.data import DataRecipe
    from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage
    from mlx_finetune.recipe.pipeline.schema import EvaluationRecipe


def pipeline_problems(loaded: "LoadedPipeline", here: Path) -> Iterator[Problem]:
    """Every problem that can be seen before anything has run in ``here``, of the stages that could be loaded."""
    from mlx_finetune.recipe.pipeline.files import missing_files

    missing = list(missing_files(loaded, here))
    yield from missing
    yield from _Checking(loaded, here, {one.message for one in missing}).problems()


@dataclass(frozen=True)
class _Checking:
    loaded: "LoadedPipeline"
    here: Path
    missing: set[str]
    found: dict[str, "Splits | DataError"] = field(default_factory=dict[str, "Splits | DataError"])

    def problems(self) -> Iterator[Problem]:
        """Stage after stage, then the evaluations."""
        for stage in filter(_is_told, self.loaded.stages):
            index = next(index for index, asked in enumerate(self.loaded.pipeline.stages) if asked is stage.asked)
            try:
                self._stage(stage)
            except RecipeError as error:
                yield from error.problems
            except click.exceptions.Exit:
                yield self._problem(index, "its command only asks for help", "write what it is to do")
            except click.ClickException as error:
                yield self._problem(index, error.format_message(), f"mlxft {stage.words[0]} --help")
            except MlxftError as error:
                if not any(one.startswith(f"stage {stage.name} reads ") for one in self.missing):
                    yield self._problem(index, error.message, error.hint)
            yield from self._coming_rows(index, stage)
        for index, one in enumerate(self.loaded.pipeline.evaluations):
            yield from self._evaluation(index, one)

    @cached_property
    def _lines(self) -> Any:
        from mlx_finetune.recipe.locate import locate_keys

        return locate_keys(self.loaded.text)

    def _problem(self, index: int, message: str, hint: str) -> Problem:
        line = self._lines.line_of(("stages", index, "command")) or self._lines.line_of(("stages", index)) or 1
        name = self.loaded.pipeline.stages[index].name
        return Problem(f"{self.loaded.path}:{line}", f"stage {name}: {message}", hint)

    def _stage(self, stage: "Stage") -> None:
        if stage.loaded is not None:
            from mlx_finetune.commands.checked import check_first_rows, check_recipe

            problems: list[Problem] = []
            for check in (check_recipe, check_first_rows):
                try:
                    check(stage.loaded, self.here, self._is_made)
                except RecipeError as error:
                    problems += error.problems
            if problems:
                raise RecipeError(problems)
            return
        name, *words = stage.words
        module = importlib.import_module(f"mlx_finetune.commands.{name}")
        with module.command.make_context(f"mlxft {name}", list(words)) as context:
            module.check_options(context.params)
            self._asked(name, context.params)

    def _read(self, data: "DataRecipe", *, base: Path, task: str, is_given: bool) -> "Splits":
        """``load_splits``, once for all stages that read a file in the same way. Raises ``DataError``."""
        from mlx_finetune.dataset.corpus import load_splits

        key = repr((data.path, data.format, data.columns, data.documents, task, is_given))
        if key not in self.found:
            try:
                self.found[key] = load_splits(data, base=base, task=task, is_given=is_given)
            except DataError as error:
                self.found[key] = error
        found = self.found[key]
        if isinstance(found, DataError):
            raise found
        return found

    def _is_made(self, path: Path) -> bool:
        from mlx_finetune.recipe.pipeline.files import is_made

        return is_made(str(path), self.loaded, self.here)

    def _format_of(self, path: str) -> str:
        """That of rows which a stage will sample; "" of what nobody knows yet."""
        from mlx_finetune.app.sampling.rows import ROW_FORMATS
        from mlx_finetune.recipe.pipeline.files import sampled_part

        return ROW_FORMATS.get(sampled_part(path, self.loaded, self.here), "")

    def _coming_rows(self, index: int, stage: "Stage") -> Iterator[Problem]:
        """Rows that a stage before will sample, and that the task of this one does not learn from."""
        if stage.loaded is None:
            return
        from mlx_finetune.dataset.formats import DetectedFormat
        from mlx_finetune.dataset.kinds import is_trainable, refused_format
        from mlx_finetune.recipe.paths import data_paths

        data, task = stage.loaded.recipe.data, stage.loaded.recipe.task
        for _, text in data_paths(data) if data.format == "auto" and not data.columns else ():
            format = self._format_of(text)
            if format and not is_trainable(format, task):
                found = refused_format(DetectedFormat(format, {}, ()), text, task)
                yield self._problem(index, f"{text}: {found.message}", found.hint)

    def _asked(self, command: str, given: Mapping[str, Any]) -> None:
        """Refuse a run that is none, and tasks that do not fit it."""
        from mlx_finetune.errors import UsageError

        run = str(given["name"])
        stage = next((one for one in self.loaded.stages if Path(run) in (one.folder, one.result)), None)
        if stage is not None and stage.loaded is None:
            raise UsageError(f"{stage.name} trains nothing that {command} could load", "name a stage that has a recipe")
        if stage is None and not self._is_made(Path(run)):
            from mlx_finetune.app.open import locate
            from mlx_finetune.rundir import find_run

            if command == "trace":
                find_run(run, base=self.here)
            else:
                locate(run, base=self.here)
        is_plain = command == "eval" and not any(given[key] for key in ("samples", "checkpoints", "sinks"))
        if is_plain and stage is not None:
            from mlx_finetune.commands.eval import changes_of

            self._fits(stage, changes_of(given), given["data"], f"stage {stage.name}")
        if command == "sample" and stage is not None and not self._is_made(Path(given["data"])):
            assert stage.loaded is not None
            from mlx_finetune.app.eval.rows import data_of

            self._read(data_of(given["data"], stage.loaded.recipe.data), base=self.here, task="sft", is_given=True)

    def _evaluation(self, index: int, one: "EvaluationRecipe") -> Iterator[Problem]:
        """Tasks that the rows have nothing for, or that the model of a stage cannot do."""
        from mlx_finetune.recipe.evaluation import task_problem

        if any(map(task_problem, one.tasks)):
            return  # that is said
        changes = {"tasks": one.tasks} | ({"max_rows": one.max_rows} if one.max_rows is not None else {})
        for stage in self.loaded.stages:
            if stage.name not in one.stages:
                continue
            try:
                self._fits(stage, changes, one.data, f"evaluation {one.name}")
            except MlxftError as error:
                line = self._lines.line_of(("evaluations", index, "tasks")) or 1
                message = f"evaluation {one.name} of stage {stage.name}: {error.message}"
                yield Problem(f"{self.loaded.path}:{line}", message, error.hint)

    def _fits(self, stage: "Stage", changes: Mapping[str, object], data: str | None, who: str) -> None:
        from mlx_finetune.recipe.evaluation import EvalRecipe
        from mlx_finetune.recipe.pipeline.rules import filled, placeholders

        given = filled(data, self.loaded.folders) if data is not None else None
        if given is not None and placeholders(given):
            return  # it names no stage: that is said
        if given is not None and self._is_made(Path(given)):
            from mlx_finetune.app.eval.fits import check_coming

            assert stage.loaded is not None
            check_coming(stage.loaded.recipe, EvalRecipe.model_validate(changes), self._format_of(given), given)
            return
        if any(one.startswith(f"{who} reads {given},") for one in self.missing):
            return  # that is said
        assert stage.loaded is not None
        from mlx_finetune.app.eval.fits import check_fits

        check_fits(stage.loaded.recipe, EvalRecipe.model_validate(changes), given, self.here, self._read)


def _is_told(stage: "Stage") -> bool:
    """True where the words of a command can be read: what is no command, and what names no stage, is said."""
    from mlx_finetune.recipe.pipeline.rules import placeholders
    from mlx_finetune.recipe.pipeline.schema import COMMANDS

    return stage.loaded is not None or (stage.words[0] in COMMANDS and not any(map(placeholders, stage.words)))
