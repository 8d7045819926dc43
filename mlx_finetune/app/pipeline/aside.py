"""What is moved out of the way of something new, because nothing that was saved may be lost by a start that fails.

What a stage has made waits in ``.earlier`` of the pipeline's folder until it is made anew, and comes back where the new
one came to nothing.
"""

from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from mlx_finetune import durable
from mlx_finetune.app.running.runs import check_removable
from mlx_finetune.errors import RunError
from mlx_finetune.recipe.pipeline.load import Stage
from mlx_finetune.recipe.pipeline.record import StageRecord
from mlx_finetune.rundir import CORRECTIONS, LOG, RunDir

EARLIER = ".earlier"


def move_away(stage: Stage, known: StageRecord) -> Path:
    """Move what a stage has made to where it waits, with what is ``known`` of it; that folder.

    The answers that a person put right stay in place as well. Raises ``RunError`` where it is being written to, or
    holds what is not ours.
    """
    if stage.loaded is not None:
        check_removable(RunDir(stage.folder))
    before = _waiting(stage)
    place = _place(stage) / str(int(before[-1].name) + 1 if before else 1)
    try:
        durable.make_folder(place.parent)
        durable.write_json(place.with_suffix(".json"), asdict(known))
        stage.folder.rename(place)
        durable.sync_folder(stage.folder.parent)
        if (place / CORRECTIONS).is_file():
            durable.make_folder(stage.folder)
            durable.copy_file(place / CORRECTIONS, stage.folder / CORRECTIONS)
    except OSError as error:
        raise RunError(f"{stage.folder} cannot be moved to {place}: {error.strerror}") from error
    return place


def bring_back(stage: Stage) -> StageRecord | None:
    """Put what was moved away last into the place of a start that made nothing; what was known of it, None without.

    What that start said is added to the log.
    """
    waiting = _waiting(stage)
    if not waiting:
        return None
    place, new = waiting[-1], stage.folder
    known = TypeAdapter(StageRecord).validate_json(place.with_suffix(".json").read_bytes())
    if (new / LOG).is_file():
        with (place / LOG).open("ab") as log:
            log.write((new / LOG).read_bytes())
    if (new / CORRECTIONS).is_file():
        (new / CORRECTIONS).replace(place / CORRECTIONS)
    durable.remove_tree(new)
    place.rename(new)
    place.with_suffix(".json").unlink()
    _tidy(stage)
    return known


def forget(stage: Stage) -> None:
    """Remove what waits: it has been made anew."""
    durable.remove_tree(_place(stage))
    _tidy(stage)


def held_bytes(stage: Stage) -> int:
    """What a stage has on the disk, in its place and waiting."""
    files = (one for folder in (stage.folder, _place(stage)) for one in folder.rglob("*"))
    return sum(one.lstat().st_size for one in files if one.is_file())


def _place(stage: Stage) -> Path:
    return stage.folder.parent / EARLIER / stage.name


def _waiting(stage: Stage) -> list[Path]:
    """The folders that wait, oldest first: several where a replacement was itself replaced before it was complete."""
    place = _place(stage)
    found = [int(one.name) for one in place.iterdir() if one.name.isdigit()] if place.is_dir() else []
    return [place / str(number) for number in sorted(found)]


def _tidy(stage: Stage) -> None:
    for folder in (_place(stage), _place(stage).parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
