"""The whole page: one file with its styles and its script in it. A browser that opens it asks nobody for anything.

The content security policy allows that one style and that one script by their hashes, and nothing else.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files as resources

from mlx_finetune.monitor.microscope import STYLE
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Html, tag
from mlx_finetune.monitor.report.parts.answers import answers
from mlx_finetune.monitor.report.parts.best_of import best_of
from mlx_finetune.monitor.report.parts.checkpoints import checkpoints
from mlx_finetune.monitor.report.parts.curves import curves
from mlx_finetune.monitor.report.parts.data import data
from mlx_finetune.monitor.report.parts.evaluations import evaluations
from mlx_finetune.monitor.report.parts.headline import headline
from mlx_finetune.monitor.report.parts.history import history
from mlx_finetune.monitor.report.parts.machine import machine
from mlx_finetune.monitor.report.parts.metrics import metrics
from mlx_finetune.monitor.report.parts.origin import files, reproduce
from mlx_finetune.monitor.report.parts.settings import settings
from mlx_finetune.monitor.report.parts.sinks import sinks
from mlx_finetune.monitor.report.parts.tokens import tokens
from mlx_finetune.monitor.report.parts.trace import trace

#: Anchor, what the list at the top calls it, and what makes it.
_SECTIONS: tuple[tuple[str, str, Callable[[ReportFacts], Html | None]], ...] = (
    ("answers", "answers", answers),
    ("curves", "curves", curves),
    ("metrics", "metrics", metrics),
    ("evaluation", "evaluation", evaluations),
    ("picks", "best of n", best_of),
    ("checkpoints", "checkpoints", checkpoints),
    ("sinks", "past the context", sinks),
    ("trace", "trace", trace),
    ("tokens", "tokens", tokens),
    ("data", "data", data),
    ("recipe", "recipe", settings),
    ("machine", "machine", machine),
    ("history", "incidents", history),
    ("reproduce", "repeat it", reproduce),
    ("files", "files", files),
)


_CONTENTS = "Parts of this report"
_FOOTER = "Made by mlxft from the files of the run. It holds everything it shows; nothing is sent anywhere."


def render(facts: ReportFacts) -> str:
    """The page as text, the same for the same run."""
    made = [(anchor, name, part) for anchor, name, make in _SECTIONS if (part := make(facts)) is not None]
    return document(facts.run.name, headline(facts), made, _FOOTER)


def document(name: str, top: Html, parts: Sequence[tuple[str, str, Html]], footer: str) -> str:
    """A page called ``name``: ``top``, then ``parts`` as (anchor, what the list at the top calls it, part)."""
    style, script = _asset("report.css") + STYLE, _asset("report.js")
    body = tag(
        "body",
        tag("nav", *(tag("a", called, href=f"#{anchor}") for anchor, called, _ in parts), aria_label=_CONTENTS),
        tag("main", top, *(part for _, _, part in parts)),
        tag("footer", footer),
        tag("script", Html(script)),
    )
    head = tag("head", *_head(name, style, script))
    return f"<!doctype html>\n{tag('html', head, body, lang='en').text}\n"


def _head(name: str, style: str, script: str) -> Iterator[Html]:
    allowed = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    yield tag("meta", charset="utf-8")
    yield tag("meta", http_equiv="Content-Security-Policy", content=allowed)
    yield tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    yield tag("meta", name="color-scheme", content="light dark")
    yield tag("meta", name="referrer", content="no-referrer")
    yield tag("title", f"{name} - mlxft report")
    yield tag("style", Html(style))


def _asset(name: str) -> str:
    """A file beside this module; it holds no ``</``, which would end its element."""
    text = (resources("mlx_finetune.monitor.report") / name).read_text("utf-8")
    assert "</" not in text, name
    return text


def _hash(text: str) -> str:
    """The source expression of an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
