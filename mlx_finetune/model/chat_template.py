"""Chat templates, which come with models and are not trusted: rendered in Jinja's immutable sandbox, with bounds.

Loops and macros count their turns, every text that is put together is measured, and dates are pinned: a template that
loops for ever or grows without end is refused after at most a few seconds, and a rendering never depends on the day.
The price is about 30 us for a ChatML conversation of four turns (2-core x86, 2026).
"""

import datetime
import functools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.utils
from jinja2 import ext, filters, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from mlx_finetune.errors import DataError, ModelError

MAX_OUTPUT_CHARACTERS = 20_000_000
MAX_WORK = 500_000
#: What ``strftime_now`` says: the day Llama 3's templates fall back to. Today's date would make every run different.
PINNED_DATE = datetime.datetime(2024, 7, 26)

# Put around the body of {% generation %} while spans are asked for; NUL never survives in a row that is accepted.
_OPEN, _CLOSE = "\x00\x02", "\x00\x03"


class _TooMuch(jinja2.TemplateRuntimeError):
    """A bound was reached."""


class _Budget(threading.local):
    """Work left in the rendering of this thread, and whether generation tags leave marks."""

    work = 0
    marks = False


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
        return f"{_OPEN}{caller()}{_CLOSE}" if self.environment.budget.marks else caller()


class _Weaver(NodeTransformer):
    """Puts a tick into every loop and macro, and measures texts joined with ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """The loop with a tick at the start of each turn."""
        self.generic_visit(node)
        tick = nodes.ExprStmt(_filtered(nodes.Const(None), "_tick"))
        node.body.insert(0, tick.set_lineno(node.lineno, override=True))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """The macro with a tick at the start of each call."""
        self.generic_visit(node)
        tick = nodes.ExprStmt(_filtered(nodes.Const(None), "_tick_call"))
        node.body.insert(0, tick.set_lineno(node.lineno, override=True))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """The joined text, measured."""
        self.generic_visit(node)
        return _filtered(node, "_measured").set_lineno(node.lineno, override=True)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)  # looked up by the compiler: a template cannot shadow it


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox that also counts loop turns and measures every value that is put together."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols])
        self.budget = _Budget()
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded(function) for name, function in self.filters.items()}
        self.filters |= {"_tick": self._tick, "_tick_call": self._tick_call, "_measured": self.measured}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": PINNED_DATE.strftime,
            "namespace": _Namespace,
            "dict": _make_dict,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Weaver().visit(super()._parse(source, name, filename))

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps the marks of pass_context, pass_environment, pass_eval_context
        def bounded(*args: Any, **kwargs: Any) -> Any:
            _refuse_large_numbers(args, kwargs)
            if function is filters.do_format and args:
                _refuse_wide_format(args[0])
            return self.measured(function(*args, **kwargs))

        return bounded

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The safe form of ``text.format``, refused where the text asks for a great width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _refuse_wide_format(value.__self__)
        return wrapped

    def _tick(self, value: object) -> object:
        self.spend(1)
        return value

    def _tick_call(self, value: object) -> object:
        self.spend(10)  # a macro call takes as long as ten turns of a loop
        return value

    def spend(self, work: int) -> None:
        """Take ``work`` from the budget; raises ``_TooMuch`` when nothing is left."""
        self.budget.work -= work
        if self.budget.work < 0:
            raise _TooMuch("takes too many turns of its loops")

    def measured(self, value: Any) -> Any:
        """``value`` itself, unless it is too long; copying a thousand characters costs as much as a loop turn."""
        if isinstance(value, str | list | tuple | dict):
            size = len(value)
            if size > 1000:
                _refuse_size(size)
                self.spend(size // 1000)
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``left operator right`` within bounds."""
        if operator == "+":
            return self.measured(left + right)
        if operator == "*" and not (isinstance(left, float) or isinstance(right, float)):
            first, second = (len(v) if isinstance(v, str | list | tuple) else abs(v) for v in (left, right))
            _refuse_size(first * second)
        if operator == "**" and (abs(left) > 10**6 or abs(right) > 64):
            raise _TooMuch("raises a number to a power that is too large")
        if operator == "%" and isinstance(left, str):
            raise _TooMuch("formats text with %")
        return self.measured(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """``obj(*args, **kwargs)`` within bounds."""
        _refuse_large_numbers(args, kwargs)
        return self.measured(super().call(context, obj, *args, **kwargs))


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        _refuse_hidden_names(dict(*args[1:], **kwargs))
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden_names({name: value})
        super().__setitem__(name, value)


def _refuse_hidden_names(names: Mapping[str, object]) -> None:
    for name in names:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no place for {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse_large_numbers(args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, int):
            _refuse_size(argument)


def _refuse_wide_format(text: object) -> None:
    if re.search(r"\d{5}", str(text)):
        raise _TooMuch("formats a value to a width of more than four digits")


def _refuse_size(size: float) -> None:
    if size > MAX_OUTPUT_CHARACTERS:
        raise _TooMuch(f"builds a value longer than {MAX_OUTPUT_CHARACTERS:,} characters")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: no HTML escapes, unlike Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class ChatTemplate:
    """One compiled chat template. Raises ``ModelError`` where its text is no template."""

    def __init__(self, source: str, *, variables: Mapping[str, object]) -> None:
        self.source = source
        self._environment = _Sandbox()
        self._names = {**self._environment.globals, "documents": None, **variables}
        try:
            tree = self._environment.parse(source)
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(
                f"the chat template is not valid Jinja: {error}", "choose another with data.chat_template"
            ) from error
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
        """The text; with ``marks``, generation tags leave their marks (see ``take_marks``). Raises ``DataError``."""
        budget = self._environment.budget
        budget.work, budget.marks = MAX_WORK, marks
        names: dict[str, object] = {**self._names, **arguments}
        names |= {
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        context = self._template.new_context(names, shared=True)  # without copying the globals each time
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.root_render_func(context):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise _TooMuch(f"writes more than {MAX_OUTPUT_CHARACTERS:,} characters")
        except _TooMuch as error:
            raise DataError(
                f"the chat template was stopped: it {error}", "choose another with data.chat_template"
            ) from error
        except jinja2.TemplateError as error:
            raise DataError(
                f"the chat template refuses the conversation: {error.message or type(error).__name__}"
            ) from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise DataError(f"the chat template fails on the conversation: {type(error).__name__}: {error}") from error
        return "".join(pieces)


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
