"""``NAME.rows.jsonl`` while it is measured, ``NAME.json`` and ``NAME.csv`` at its end; none is overwritten.

A name belongs to one identity. Evaluating the same again shows what is there; anything else takes the next free name
(``test``, ``test-2``), or is refused where the user has named it. The plain name is of the weights that are there: what
was measured of others, before a run was trained further, gives it up and takes the next free one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.app.eval.journal import read_lines
from mlx_finetune.errors import RunError

JOURNAL_END, JSON_END, CSV_END = ".rows.jsonl", ".json", ".csv"
ENDS = (JSON_END, CSV_END, JOURNAL_END)
_MAX_NAMES = 1000
_WEIGHTS = ("model_sha256", "adapter_sha256", "base_sha256")
#: Keys of an identity -> how a person calls them, where that is another word.
_WORDS = {
    "data": "settings of [data]",
    "data_sha256": "data",
    "prompt_template_sha256": "prompt template",
    "answer_tokens": "longest answer",
    "shots": "examples in the prompt",
    "at_once": "answers at once",
}


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one evaluation."""

    folder: Path
    name: str

    def file(self, end: str) -> Path:
        """One of them, by its end."""
        return self.folder / f"{self.name}{end}"

    @property
    def exists(self) -> bool:
        """Whether any of them is there."""
        return any(self.file(end).exists() for end in ENDS)

    @property
    def is_done(self) -> bool:
        """Whether this evaluation has been finished before."""
        return self.file(JSON_END).is_file()

    @property
    def is_begun(self) -> bool:
        """Whether something of it has been measured before."""
        return self.file(JOURNAL_END).is_file()


def choose_place(folder: Path, named: str | None, default: str, identity: Mapping[str, object]) -> Place:
    """Where this evaluation is kept. Raises ``RunError`` where ``named`` holds another one."""
    if named is not None:
        place = Place(folder, named)
        if not _is_free(place, identity):
            what = f"holds another evaluation: {_difference(place, identity)}" if place.is_begun else "is taken"
            raise RunError(f"{folder / named} {what}", "choose another --name; nothing is overwritten")
        return place
    places = [Place(folder, default if number == 1 else f"{default}-{number}") for number in range(1, _MAX_NAMES + 1)]
    if same := next((place for place in places if place.is_begun and _is_free(place, identity)), None):
        return same
    if _is_of_other_weights(places[0], identity):
        set_aside(folder, default)
    if free := next((place for place in places if _is_free(place, identity)), None):
        return free
    raise RunError(f"{folder} holds {_MAX_NAMES} evaluations named {default}", "name this one: --name NAME")


def _is_free(place: Place, identity: Mapping[str, object]) -> bool:
    """Nobody's, or this evaluation's own."""
    if not place.is_begun:
        return not place.exists
    return _identity(place) == json.loads(json.dumps(identity))


def _is_of_other_weights(place: Place, identity: Mapping[str, object]) -> bool:
    known = _identity(place) if place.is_begun else {}
    return any(known[key] != identity[key] for key in _WEIGHTS if key in known and key in identity)


def _identity(place: Place) -> Mapping[str, object]:
    found = next(read_lines(place.file(JOURNAL_END)), {}).get("identity")
    return found if isinstance(found, dict) else {}


def _difference(place: Place, identity: Mapping[str, object]) -> str:
    old, new = _identity(place), json.loads(json.dumps(identity))
    keys = [str(key) for key in new if old.get(key) != new[key]]
    words = [_WORDS.get(key, key.removesuffix("_sha256")) for key in keys]
    return f"other {', '.join(words)}" if keys and old else "of another version"


def set_aside(folder: Path, name: str) -> str | None:
    """Give the evaluation ``name`` in ``folder`` the next free name, ``NAME-2``; that name, None where there is none.

    Nothing is lost: the run's report shows it under its new name. Raises ``OSError``.
    """
    old = Place(folder, name)
    if not old.exists:
        return None
    free = next(place for number in count(2) if not (place := Place(folder, f"{name}-{number}")).exists)
    for end in ENDS:
        if old.file(end).exists():
            old.file(end).rename(free.file(end))
    _rename_inside(free.file(JSON_END), free.name)
    return free.name


def _rename_inside(path: Path, name: str) -> None:
    """The report goes by the name in the file; a file that is none of ours is left as it is."""
    value = durable.read_object_if_any(path)
    if "name" in value:
        durable.write_json(path, {**value, "name": name})
