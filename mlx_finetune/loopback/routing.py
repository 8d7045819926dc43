"""The addresses of an application: what is at none of them is refused in our words, by the guard before it."""

from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_finetune.loopback.refusals import RefusedError

_SAID = {404: "there is nothing at this address", 405: "this address does not take that method"}


async def route(app: ASGIApp, router: Router, scope: Scope, receive: Receive, send: Send) -> None:
    """Have the endpoint of ``router`` answer for ``app``. Raises ``RefusedError`` where there is none."""
    scope["app"] = app  # or the router would answer 404 and 405 itself, in its own words
    try:
        await router(scope, receive, send)
    except HTTPException as error:
        message = _SAID.get(error.status_code, error.detail)
        raise RefusedError(error.status_code, message, headers=error.headers or {}) from None
