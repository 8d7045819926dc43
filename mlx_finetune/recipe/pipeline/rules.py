"""Rules between the stages of a pipeline: names are unique, and whoever is named comes earlier."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from mlx_finetune.recipe.evaluation import task_problem
from mlx_finetune.recipe.explain import Finding
from mlx_finetune.recipe.overrides import KeyPath
from mlx_finetune.recipe.pipeline.schema import COMMANDS, OWN_FOLDER, EvaluationRecipe, StageRecipe
from mlx_finetune.recipe.values import shown, shown_name

_PLACEHOLDER = re.compile(r"\{([a-z0-9][a-z0-9_-]*)\}")
#: Words in braces that belong to templates of a recipe.
_TEMPLATE_WORDS = frozenset({"text", "instruction", "input", "output"})


def placeholders(text: str) -> Sequence[str]:
    """Names in braces, in order, without those of templates."""
    return [name for name in _PLACEHOLDER.findall(text) if name not in _TEMPLATE_WORDS]


def filled(text: str, folders: Mapping[str, str]) -> str:
    """``text`` with every ``{NAME}`` that is in ``folders`` replaced."""
    return _PLACEHOLDER.sub(lambda found: folders.get(found[1], found[0]), text)


def stage_findings(stages: Sequence[tuple[int, StageRecipe]], names: Sequence[str]) -> Iterator[Finding]:
    """What is wrong between stages; ``names`` are those of all, in order. One that has no good name is called ""."""
    for index, stage in stages:
        path: KeyPath = ("stages", index)
        if stage.name and stage.name in names[:index]:
            message = f"two stages are called {stage.name}: [[stages]] 1 and later need names of their own"
            yield Finding((*path, "name"), message, "give one of them another name")
        if stage.name == OWN_FOLDER:
            message = f"a stage cannot be called {OWN_FOLDER}: {{{OWN_FOLDER}}} is the folder of a command's own stage"
            yield Finding((*path, "name"), message, "give it another name")
        if stage.start_from is not None:
            yield from _named((*path, "start_from"), stage.start_from, index, names)
        for number, override in enumerate(stage.set):
            for name in placeholders(override):
                yield from _named((*path, "set", number), name, index, names)
        if stage.command is not None:
            yield from _command((*path, "command"), stage.command, index, names)


def evaluation_findings(
    evaluations: Sequence[tuple[int, EvaluationRecipe]], trained: Sequence[str], names: Sequence[str]
) -> Iterator[Finding]:
    """The same for evaluations; ``trained`` are the names of the stages that train."""
    seen: set[str] = set()
    for index, one in evaluations:
        path: KeyPath = ("evaluations", index)
        if one.name and one.name in seen:
            yield Finding((*path, "name"), f"two evaluations are called {one.name}", "give one of them another name")
        seen.add(one.name)
        for number, name in enumerate(one.stages):
            where = (*path, "stages", number)
            if name in names and name not in trained:
                message = f"{name} trains nothing, so there is no result to measure"
                yield Finding(where, message, f"stages that train: {', '.join(trained)}")
            elif name not in names:
                yield Finding(where, f"there is no stage {shown(name)}", _near(name, trained))
        for problem in filter(None, map(task_problem, one.tasks)):
            message, _, hint = problem.rpartition("; ")
            yield Finding((*path, "tasks"), f"[[evaluations]] {one.name} `tasks`: {message}", hint)
        for name in placeholders(one.data or ""):
            if name not in names:
                yield Finding((*path, "data"), f"there is no stage {shown(name)}", _near(name, names))


def _named(path: KeyPath, name: str, index: int, names: Sequence[str]) -> Iterator[Finding]:
    """``name`` must be an earlier stage."""
    if name in names[:index]:
        return
    if name in names:
        which = "is this stage itself" if names.index(name) == index else "comes later"
        hint = "a stage takes from earlier ones only: put the stages in the order in which they run"
        yield Finding(path, f"{name} {which}", hint)
    else:
        yield Finding(path, f"there is no stage {shown(name)}", _near(name, names[:index]))


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"stages that can be named here: {', '.join(map(shown_name, names))}" if names else "no stage comes earlier"


def _command(path: KeyPath, command: str, index: int, names: Sequence[str]) -> Iterator[Finding]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        yield Finding(path, f"the command cannot be read: {str(error).lower()}", "close the quotes")
        return
    if words[:1] == ["mlxft"]:
        yield Finding(path, "a command begins with what comes after mlxft", f"write {shlex.join(words[1:])}")
        return
    if not words or words[0] not in COMMANDS:
        first = shown(words[0]) if words else "nothing"
        near = get_close_matches(words[0], COMMANDS, 1) if words else []
        hint = f"did you mean {near[0]}?" if near else f"a stage can run {', '.join(COMMANDS)}"
        yield Finding(path, f"{first} is no command of mlxft that a stage can run", hint)
    for name in placeholders(command):
        if name != OWN_FOLDER:
            yield from _named(path, name, index, names)
