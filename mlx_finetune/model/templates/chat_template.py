"""Chat templates, which come with models and are not trusted: rendered in the sandbox of ``bounds``.

A template that loops for ever or grows without end is refused after at most a few seconds. Dates are pinned: a
rendering never depends on the day. The price is about 40 us for a ChatML conversation of four turns (2-core x86, 2026).
"""

import datetime
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jinja2
from jinja2 import ext, nodes
from jinja2.parser import Parser

from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.model.templates.bounds import MAX_SIZE, BoundedSandbox, TooMuchError

MAX_TEMPLATE_CHARACTERS = 200_000
#: A conversation up to this size is not to blame where a bound is reached.
LARGE_CONVERSATION = 500_000
#: What ``strftime_now`` says: the day Llama 3's templates fall back to. Today's date would make every run different.
PINNED_DATE = datetime.datetime(2024, 7, 26)

# Put around the body of {% generation %} while spans are asked for; NUL never survives in a row that is accepted.
_OPEN, _CLOSE = "\x00\x02", "\x00\x03"
_CHOOSE = "choose another with data.chat_template"


class _Generation(ext.Extension):
    """``{% generation %}`` blocks: what the assistant said, between marks where spans are asked for."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        """A block becomes a call of ``mark`` around its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        """The body of a block."""
        assert isinstance(self.environment, _Sandbox)
        return f"{_OPEN}{caller()}{_CLOSE}" if self.environment.marking.is_on else caller()


class _Marking(threading.local):
    """Whether generation tags leave marks in the rendering of this thread."""

    is_on = False


class _Sandbox(BoundedSandbox):
    """The bounded sandbox with what chat templates expect: generation tags, loop controls, two functions."""

    def __init__(self) -> None:
        super().__init__([_Generation, ext.loopcontrols])
        self.marking = _Marking()
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}


def _strftime_now(form: str) -> str:
    if len(form) > 1_000:
        raise TooMuchError("asks for a date of more than 1,000 characters")
    return PINNED_DATE.strftime(form)


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class ChatTemplate:
    """One compiled chat template. Raises ``ModelError`` where its text is no template; ``path`` is where it stands."""

    def __init__(self, source: str, *, variables: Mapping[str, object], path: Path | None = None) -> None:
        self.source = source
        self._called = f"the chat template in {path}" if path else "the chat template"
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ModelError(f"{self._called} has {len(source):,} characters, more than any real one has", _CHOOSE)
        self._environment = _Sandbox()
        self._names = {**self._environment.globals, "documents": None, **variables}
        try:
            tree = self._environment.parse(source)
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise ModelError(f"{self._called} is not valid Jinja: {_one_line(error)}", _CHOOSE) from error
        self.has_generation_tags = any(
            isinstance(node.call.node, nodes.ExtensionAttribute) and node.call.node.name == "mark"
            for node in tree.find_all(nodes.CallBlock)
        )

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None,
        add_generation_prompt: bool,
        arguments: Mapping[str, object],
        marks: bool = False,
    ) -> str:
        """The text; with ``marks``, generation tags leave their marks (see ``take_marks``).

        Raises ``DataError`` where the template and the conversation do not go together, and ``ModelError`` where the
        template reaches a bound without a large conversation to blame: it would do so in every row.
        """
        names: dict[str, object] = {**self._names, **arguments}
        names |= {
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        self._environment.start()
        self._environment.marking.is_on = marks
        try:
            return self._written(names)
        except TooMuchError as error:
            is_large = sum(len(str(message)) for message in messages) > LARGE_CONVERSATION
            kind = DataError if is_large else ModelError
            raise kind(f"{self._called} was stopped: it {error}", _CHOOSE) from error
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses the conversation: {_one_line(error)}") from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            what = f"{type(error).__name__}: {_one_line(error)}"
            raise DataError(f"the chat template fails on the conversation: {what}") from error
        finally:
            self._environment.stop()

    def _written(self, names: dict[str, object]) -> str:
        context = self._template.new_context(names, shared=True)  # without copying the globals each time
        pieces: list[str] = []
        size = 0
        for piece in self._template.root_render_func(context):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_SIZE:
                raise TooMuchError(f"writes more than {MAX_SIZE:,} characters")
        return "".join(pieces)


def _one_line(error: Exception) -> str:
    """What an error says, as one printable line of at most 300 characters: templates may choose the words."""
    said = str(error)[:2_000] or type(error).__name__
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
    return line if len(line) <= 300 else f"{line[:300]}..."


def take_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Text without the marks of generation tags, and the spans that lay between them."""
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    for number, part in enumerate(text.split(_OPEN)):
        inside, mark, outside = part.partition(_CLOSE)
        if number and mark:
            spans.append((length, length + len(inside)))
        pieces += [inside, outside]
        length += len(inside) + len(outside)
    return "".join(pieces), spans
