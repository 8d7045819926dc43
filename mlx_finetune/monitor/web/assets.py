"""The files of the page: read once, served by exact name, so that no path is ever made of what was asked for.

They say nothing about any run and need no token. The policy lets in scripts, styles and answers of this server alone,
no inline script, and no text that becomes HTML (Trusted Types, where the browser knows them).
"""

from collections.abc import Mapping
from pathlib import Path

from starlette.responses import Response

_FOLDER = Path(__file__).parent / "static"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)


def read_assets() -> Mapping[str, Response]:
    """Address -> answer, for everything that belongs to the page; ``/`` is the page itself."""
    found: dict[str, Response] = {}
    for path in sorted(_FOLDER.iterdir()):
        kind = _KINDS.get(path.suffix)
        if kind:
            address = "/" if path.name == "index.html" else f"/{path.name}"
            found[address] = Response(path.read_bytes(), media_type=kind, headers={"content-security-policy": _POLICY})
    return found
