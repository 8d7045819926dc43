"""A Jinja sandbox for templates from strangers in which every rendering ends, within seconds and a few hundred MB.

Jinja's own sandbox keeps a template from running code; nothing in it keeps one from running for ever. Here all work is
counted in characters: what is copied, compared or written costs its length, a turn of a loop what its body costs. Lists
know their weight (all that is in them, repeated parts as often as they are named), so that printing or comparing one
costs no surprise. What could make much from little (``replace``, ``join``, ``format``, ...) is reckoned before it is
done. A rendering takes half as long again (median of 34 real templates). The attacks: ``test_chat_template.py``.
"""

import functools
import itertools
import json
import re
import threading
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from typing import Any

import jinja2
import jinja2.utils
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlx_finetune.model.templates.weaver import TURN_WORK, Weaver

MAX_SIZE = 5_000_000
MAX_WORK = 60_000_000
_ITEM, _CALLED_ITEM = 20, 50
_CALL_WORK = 3 * TURN_WORK
_SHORT = 50  # reading or writing so many characters is paid for with the turn
_WIDEST_FIELD = 9_999
_MAX_INDENT = 64
_TEXT_ALONE = {str}
_CONTAINERS = (list, tuple, dict, range, KeysView, ValuesView, ItemsView)

#: Filters a template may use: those of Jinja without layouts, web pages and chance.
_FILTERS = """
    abs attr capitalize center count d default dictsort e escape first float forceescape format groupby indent int items
    join last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string
    sum title trim truncate unique upper
"""
# Look at no more than one item.
_FREE = frozenset({"count", "d", "default", "first", "last", "length", "safe", "string"})
_DEEP = frozenset({"sort", "unique", "min", "max", "groupby", "dictsort", "index", "count"})  # compare what is inside
_CALLING = frozenset({"map", "select", "selectattr", "reject", "rejectattr"})  # a filter or a test of each item
_COMPARING_TESTS = "eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >= in lower upper"
_LOOP_NUMBERS = frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length"})
_REFUSED_METHODS = frozenset({"encode", "expandtabs", "format_map", "maketrans", "translate"})


class TooMuchError(jinja2.TemplateRuntimeError):
    """A bound was reached."""


@dataclass(slots=True)
class _Left:
    """Work left in one rendering, in characters, and the weights of the containers seen in it (kept alive by it)."""

    work: int = 0
    weights: dict[int, tuple[object, int]] = field(default_factory=dict[int, tuple[object, int]])


class _Budget(threading.local):
    """What is left in this thread. None is left while a template is compiled: nothing long is computed there."""

    def __init__(self) -> None:
        self.left = _Left()


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with the bounds above. ``start`` and ``stop`` frame a rendering."""

    intercepted_binops = frozenset(("*", "**", "%"))  # the weaver sees to "+"

    def __init__(self, extensions: Sequence[Any] = ()) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self._budget = _Budget()
        self.finalize = self._written
        self.filters = {name: self._bounded(name, self.filters[name]) for name in _FILTERS.split()}
        self.filters["tojson"] = self._bounded("tojson", _to_json)
        self.filters |= {"_tick": self._tick, "_weighed": self.weighed, "_compared": self._compared}
        self.filters |= {"_joined": self._joined, "_added": self._added}
        self.tests = dict(self.tests)
        for name in _COMPARING_TESTS.split():
            self.tests[name] = self._comparing(self.tests[name])
        del self.globals["lipsum"]
        self.globals |= {"namespace": _Namespace, "dict": _make_dict}

    def start(self) -> None:
        """Begin a rendering in this thread, with everything left."""
        self._budget.left = _Left(MAX_WORK)

    def stop(self) -> None:
        """Forget the values of the rendering."""
        self._budget.left = _Left()

    def spend(self, work: int) -> None:
        """Take ``work`` from the budget; raises ``TooMuchError`` when nothing is left."""
        left = self._budget.left
        left.work -= work
        if left.work < 0:
            raise TooMuchError("takes too many turns of its loops, or copies too much text")

    def weighed(self, value: Any) -> Any:
        """``value`` itself, which was just made. Raises ``TooMuchError`` where it is too large."""
        if isinstance(value, str):
            _refuse_size(len(value))
            self.spend(len(value))
        elif isinstance(value, _CONTAINERS):
            self._weight(value)
        return value

    def _weight(self, value: object) -> int:
        """Characters and items in ``value``, counted through containers in containers."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, range):
            return len(value)
        if not isinstance(value, _CONTAINERS):
            return 1
        weights = self._budget.left.weights
        known = weights.get(id(value))
        if known is not None:
            return known[1]
        self.spend(TURN_WORK // 10 + _ITEM * len(value))
        if isinstance(value, dict | ItemsView):
            items = value.items() if isinstance(value, dict) else value
            weight = 1 + sum(self._weight(key) + self._weight(item) for key, item in items)
        else:
            weight = 1 + sum(map(self._weight, value))
        _refuse_size(weight)
        weights[id(value)] = (value, weight)
        return weight

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Weaver().visit(super()._parse(source, name, filename))

    @jinja2.pass_context
    def _written(self, context: object, value: object) -> object:
        """Jinja's ``finalize``: called with everything that is written out, also into macros and set blocks."""
        del context
        if isinstance(value, str):
            if len(value) > _SHORT:
                self.spend(len(value))
        elif isinstance(value, _CONTAINERS):
            self.spend(self._weight(value))
        return value

    def _tick(self, value: object, work: int = TURN_WORK) -> object:
        self.spend(work)
        return value

    def _compared(self, value: object) -> object:
        """``value``, which is about to be compared with another or searched."""
        if isinstance(value, (str, list, tuple, dict)) and len(value) > (_SHORT if isinstance(value, str) else 0):
            self.spend(self._weight(value))
        return value

    def _joined(self, *values: object) -> str:
        """The values as one text: ``a ~ b``."""
        self.spend(sum(map(self._weight, values)))
        texts = [str(value) for value in values]
        _refuse_size(sum(map(len, texts)))
        return "".join(texts)

    def _added(self, *values: Any) -> Any:
        """The values added from left to right, each sum paid for: ``a + b + c``."""
        if {*map(type, values)} == _TEXT_ALONE:  # not their subclasses: Jinja's Markup adds in its own way
            sizes = [*itertools.accumulate(map(len, values))]
            _refuse_size(sizes[-1])
            self.spend(sum(sizes) - sizes[0])
            return "".join(values)
        return functools.reduce(lambda left, right: self.weighed(left + right), values)

    def _comparing(self, test: Callable[..., bool]) -> Callable[..., bool]:
        @functools.wraps(test)
        def comparing(*values: object) -> bool:
            for value in values:
                self._compared(value)
            return test(*values)

        return comparing

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)  # keeps the marks of pass_context, pass_environment, pass_eval_context
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.spend(TURN_WORK)
            _refuse_large_numbers(args, kwargs)
            if name not in _FREE:
                self._reckon(name, args[first], args[first + 1 :], kwargs)
            made = function(*args, **kwargs)
            return self.weighed(list(made) if isinstance(made, Iterator) else made)

        return bounded

    def _reckon(self, name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse a filter or method ``name`` of ``value`` that would make too much; pay for what it reads."""
        if isinstance(value, (str, *_CONTAINERS)):
            self.spend(self._weight(value) if name in _DEEP else len(value) * (_CALLED_ITEM if name in _CALLING else 1))
        text = str(value) if name in ("replace", "indent", "format") else ""
        if name == "replace":
            old, new = (str(_argument(args, kwargs, place, key)) for place, key in enumerate(("old", "new")))
            _refuse_size(len(text) + text.count(old) * len(new))
        elif name == "join":
            separator = _argument(args, kwargs, 0, "d")
            items, separator = (separator, value) if isinstance(value, str) else (value, separator)
            _refuse_size(self._weight(items) * (1 + len(str(separator))))
        elif name == "indent":
            width = _argument(args, kwargs, 0, "width") or 4
            each = len(width) if isinstance(width, str) else int(width)
            _refuse_size(len(text) + (text.count("\n") + 1) * each)
        elif name == "format":
            _refuse_size(self._formatted(text, [*args, *kwargs.values()]))
        elif name == "sum":
            self.spend(len(value) * self._weight(value) // 50)  # of lists: each is copied into the next

    def _formatted(self, text: str, given: Sequence[object]) -> int:
        """At most so many characters come of formatting ``given`` into ``text``."""
        if re.search(r"\d{5}", text):
            raise TooMuchError("formats a value to a width of more than four digits")
        fields = max(text.count("{"), text.count("%"))
        widths = sum(abs(number) for number in given if isinstance(number, int))  # they may be asked for as widths
        return len(text) + fields * (_WIDEST_FIELD + widths + self._weight(given))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also refuses methods of texts that can make much from little, and bytes altogether."""
        is_refused = isinstance(obj, bytes) or (isinstance(obj, str) and attr in _REFUSED_METHODS)
        return not is_refused and super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute`` where that is safe; the numbers of a loop are, and are asked for in every turn."""
        if type(obj) is LoopContext and attribute in _LOOP_NUMBERS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The safe form of ``text.format``, within bounds."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None or value.__name__ != "format":
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._reckon("format", value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return bounded

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``left operator right`` within bounds."""
        if operator == "*" and not (isinstance(left, float) or isinstance(right, float)):
            first, second = (abs(v) if isinstance(v, int) else self._weight(v) for v in (left, right))
            _refuse_size(first * second)
        if operator == "**" and (abs(left) > 10**6 or abs(right) > 64):
            raise TooMuchError("raises a number to a power that is too large")
        if operator == "%" and isinstance(left, str):
            raise TooMuchError("formats text with %")
        return self.weighed(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """``obj(*args, **kwargs)`` within bounds."""
        self.spend(_CALL_WORK)
        _refuse_large_numbers(args, kwargs)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | list | tuple):
            self._reckon(obj.__name__, owner, args, kwargs)
        return self.weighed(super().call(context, obj, *args, **kwargs))


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore; printed, it does not show what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        _refuse_hidden_names(dict(*args[1:], **kwargs))
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden_names({name: value})
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    """The argument at ``place`` or called ``name``; an empty text where it is left out."""
    return args[place] if len(args) > place else kwargs.get(name, "")


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


def _refuse_size(size: float) -> None:
    if size > MAX_SIZE:
        raise TooMuchError(f"builds a value longer than {MAX_SIZE:,} characters")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: no HTML escapes, unlike Jinja's own filter."""
    if (isinstance(indent, int | str) and (len(indent) if isinstance(indent, str) else indent) > _MAX_INDENT) or (
        separators is not None and max(map(len, separators)) > _MAX_INDENT
    ):
        raise TooMuchError("writes JSON with a very wide indent")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
