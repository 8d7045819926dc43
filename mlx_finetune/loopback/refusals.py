"""What a client gets that asks for something it cannot have: a status and OpenAI's error object, never a traceback."""

import json
import traceback
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from mlx_finetune.errors import MlxftError

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    503: "overloaded_error",
}
_MAX_PROBLEMS = 3
_MAX_LETTERS = 300


class RefusedError(Exception):
    """One refusal. ``param`` is the field it is about, ``retry_after_seconds`` goes with 503.

    ``closes`` ends the connection after the answer, because the rest of the request has not been read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        headers: Mapping[str, str] = {},
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers)
        self.closes = closes
        if retry_after_seconds is not None:
            self.headers["retry-after"] = str(retry_after_seconds)

    def encode(self) -> bytes:
        """The body of the answer; half characters, which a client can send as escapes, are escaped again."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode("ascii")


#: What pydantic says in words of its own, for who sent the request.
_SAID = {"missing": "this key is required", "extra_forbidden": "there is no such key"}


def from_validation(error: ValidationError) -> RefusedError:
    """The first few problems of a request that is not of the documented shape, as one 400."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    said = list(
        dict.fromkeys(f"{_place(problem['loc'])}: {_SAID.get(problem['type'], problem['msg'])}" for problem in problems)
    )
    more = f" (and {len(said) - _MAX_PROBLEMS} more)" if len(said) > _MAX_PROBLEMS else ""
    message = short_line("; ".join(said[:_MAX_PROBLEMS])) + more
    return RefusedError(400, message, code="invalid_value", param=_place(problems[0]["loc"]))


def from_error(error: MlxftError, *, param: str | None = None) -> RefusedError:
    """An error that the content of a request caused: a control marker, a prompt that is too long."""
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    return RefusedError(400, short_line(message), code="invalid_value", param=param)


def _place(location: Sequence[int | str]) -> str:
    """``messages.0.content``; names of alternatives of a union (``str``, ``list[str]``) are left out."""
    parts = [str(part) for part in location if isinstance(part, int) or (part.isidentifier() and part != "str")]
    return short_line(".".join(parts) or "body")


def short_line(text: str, most: int = _MAX_LETTERS) -> str:
    """``text`` on one line, without what a terminal would obey, of at most ``most`` characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= most else line[: most - 3] + "..."


def places(error: BaseException) -> str:
    """Type and places of an exception, for the log; its message may repeat what somebody asked."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    found = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {found}"
