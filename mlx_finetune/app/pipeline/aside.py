"""The files that an evaluation keeps in a run folder, moved out of the way of one that is defined otherwise."""

from itertools import count
from pathlib import Path

from mlx_finetune import durable

_ENDS = (".json", ".csv", ".rows.jsonl")


def set_aside(folder: Path, name: str) -> str | None:
    """Give the evaluation ``name`` in ``folder`` the next free name, ``NAME-2``; that name, None where there is none.

    Nothing is lost: the run's report shows it under its new name. Raises ``OSError``.
    """
    if not any((folder / f"{name}{end}").exists() for end in _ENDS):
        return None
    free = next(
        f"{name}-{number}"
        for number in count(2)
        if not any((folder / f"{name}-{number}{end}").exists() for end in _ENDS)
    )
    for end in _ENDS:
        path = folder / f"{name}{end}"
        if path.exists():
            path.rename(folder / f"{free}{end}")
    _rename_inside(folder / f"{free}.json", free)
    return free


def _rename_inside(path: Path, name: str) -> None:
    """The report goes by the name in the file; a file that is none of ours is left as it is."""
    value = durable.read_object_if_any(path)
    if "name" in value:
        durable.write_json(path, {**value, "name": name})
