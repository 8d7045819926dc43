"""The body of a request: bounded in bytes, time and depth, and JSON without surprises.

Nothing is decompressed, so there is no body that grows. JSON is read by pydantic's parser: 200 levels deep at most,
UTF-8 only, no NaN, no half characters; numbers that are too large for a float are refused here.
"""

import asyncio
import math
import re
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.types import Receive, Scope

from mlx_finetune.loopback.refusals import RefusedError, from_validation

MAX_BODY_BYTES = 4_000_000
BODY_SECONDS = 20.0
_LARGE_EXPONENT = re.compile(rb"[0-9.][eE]\+?[0-9]{3}")

ModelT = TypeVar("ModelT", bound=BaseModel)


class ClientGoneError(Exception):
    """The client closed its connection; there is nobody to answer."""


def check_headers(headers: dict[bytes, bytes]) -> None:
    """Refuse a body that is not plain JSON of a fair size, from what its headers say. Raises ``RefusedError``."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise RefusedError(415, "the body must be JSON: content-type: application/json", closes=True)
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise RefusedError(415, "the body must not be compressed", closes=True)
    if b"transfer-encoding" in headers and b"content-length" in headers:
        raise RefusedError(400, "the request has both a content-length and a transfer-encoding", closes=True)
    declared = headers.get(b"content-length", b"0")
    if len(declared) > 18 or int(declared) > MAX_BODY_BYTES:
        raise _too_large()


async def read_json(scope: Scope, receive: Receive, shape: type[ModelT]) -> ModelT:
    """The body as ``shape``. Raises ``RefusedError`` for any other, ``ClientGoneError`` where it breaks off."""
    headers = dict(cast("list[tuple[bytes, bytes]]", scope["headers"]))
    check_headers(headers)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _read(receive)
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {BODY_SECONDS:g} seconds", closes=True) from None
    return parse(content, shape)


def parse(content: bytes, shape: type[ModelT]) -> ModelT:
    """``content`` as ``shape``. Raises ``RefusedError``."""
    try:
        value: object = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RefusedError(400, "the body must be a JSON object", code="invalid_json")
    if _LARGE_EXPONENT.search(content) and not _is_finite(value):
        raise RefusedError(400, "the body holds a number that is too large", code="invalid_json")
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise from_validation(error) from None


async def _read(receive: Receive) -> bytes:
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        content += message.get("body", b"")
        if len(content) > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return bytes(content)


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body has more than {MAX_BODY_BYTES} bytes", closes=True)


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, cast("dict[str, object]", value).values()))
    if isinstance(value, list):
        return all(map(_is_finite, cast("list[object]", value)))
    return not isinstance(value, float) or math.isfinite(value)
