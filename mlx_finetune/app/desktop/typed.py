"""What a person types or drags into a Terminal window, as paths. No shell is asked: ``$(...)`` is a name."""

import contextlib
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlx_finetune.recipe.paths import exists


def is_unfinished(text: str) -> bool:
    """Does the line end in a backslash that hides its end? A name with a line break in it is dragged in like that."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def typed_paths(text: str, base: Path) -> list[Path]:
    """The paths in a line: one as it stands, if there is such a file, else words as a shell would cut them.

    Terminal escapes a dragged path with backslashes, other programs quote it or write ``file://``. Relative paths count
    from ``base``; whether a path exists is not looked at, except to tell one name with blanks from several.
    """
    whole = text.strip()
    if not whole:
        return []
    if exists(one := _path(whole, base)):
        return [one]
    try:
        words = shlex.split(whole)
    except ValueError:  # a lone quote in a name that was typed
        words = [whole]
    paths = [_path(word, base) for word in words if word]
    missing = [path for path in paths if not exists(path)]
    is_one_name = len(paths) > 1 and len(missing) == len(paths)
    return [one] if is_one_name else paths


def _path(word: str, base: Path) -> Path:
    if word.startswith("file://"):
        word = unquote(urlsplit(word).path)
    path = Path(word)
    with contextlib.suppress(RuntimeError):  # ~nobody
        path = path.expanduser()
    return path if path.is_absolute() else base / path
