"""The token that clients show: made once, kept in a file that only its owner can read, compared by guard.py.

Who can read the file can ask the server, so a file that others can read is refused rather than mended: somebody may
have read it already.
"""

import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.errors import RunError

_TOKEN = re.compile(r"[!-~]{20,200}")


@dataclass(frozen=True, slots=True)
class Token:
    """``is_new`` means that it was just made: only then it is shown."""

    text: str
    path: Path
    is_new: bool


def open_token(path: Path, *, elsewhere: str = "name another file: --token-file FILE") -> Token:
    """The token in ``path``, made there if the file does not exist. Raises ``RunError`` for a file that is not safe.

    ``elsewhere`` says how another file can be named.
    """
    try:
        return Token(_read(path, elsewhere), path, is_new=False)
    except FileNotFoundError:
        pass
    text = f"mlxft-{secrets.token_urlsafe(32)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return Token(_read(path, elsewhere), path, is_new=False)  # another server was faster
    except OSError as error:
        raise RunError(f"the token cannot be kept in {path}: {error.strerror}", elsewhere) from None
    try:
        durable.write_all(descriptor, (text + "\n").encode("ascii"))
        durable.sync_file(descriptor)
    finally:
        os.close(descriptor)
    return Token(text, path, is_new=True)


def _read(path: Path, elsewhere: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"the token file {path} cannot be read: {error.strerror}", elsewhere) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RunError(f"the token file {path} is not a file", elsewhere)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise RunError(
                f"others can read the token in {path} (its mode is {mode:o})",
                f"remove it, and a new one is made: rm {path}",
            )
        content = os.read(descriptor, 1000)
    finally:
        os.close(descriptor)
    text = content.decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(text):
        raise RunError(f"{path} holds no token: 20 to 200 letters, digits and signs on one line", f"rm {path}")
    return text
