"""Answers that a JSON Schema admits, and nothing else, through llguidance.

A ``Grammar`` is a schema in the tokens of one tokenizer, made once; a ``Constraint`` follows one answer through it: it
hides the tokens that cannot come next and is told which one came. No white space is admitted between the parts of the
JSON, because a model may say blanks until its budget is spent. Only an answer that ends is valid; one that runs out of
tokens is said to be cut short and never repaired. Keywords that llguidance does not enforce are refused: an answer that
passes here passes a validator.

Making a grammar costs 0.1 to 1 s for the tokenizer (kept as long as that is) and milliseconds for the schema; a mask
for 50,000 tokens, applied, 0.1 to 0.2 ms (``benchmarks/constraints.py``).
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer
from mlx_finetune.scoring.json_text import NotJsonError, parse

if TYPE_CHECKING:  # 0.15 s, for those who have a schema
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

#: White space between parts is not admitted; what cannot be enforced is an error, whatever the schema says about it.
_OPTIONS: "JsonCompileOptions" = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
_PROBE = '{"a": [1, "b c\\u00e9 \\u6771"], "d": "\\n"}'
_HINT = "simplify the schema: what cannot be enforced can still be checked afterwards (mlxft eval)"
_LONGEST_REASON = 300

_vocabularies: "WeakKeyDictionary[ModelTokenizer, LLTokenizer]" = WeakKeyDictionary()


class Grammar:
    """The texts that ``schema`` admits, in the tokens of ``tokenizer``. Any number of answers may share it."""

    def __init__(self, tokenizer: ModelTokenizer, schema: Mapping[str, object] | bool) -> None:
        """Raises ``DataError`` for a schema that cannot be enforced or admits nothing, ``ModelError`` for a tokenizer
        whose tokens are not known as bytes."""
        from llguidance import LLMatcher, LLParserLimits

        if schema is False:
            raise DataError("the schema is `false`, which admits nothing", "write the schema of a JSON object")
        vocabulary = _vocabulary(tokenizer)
        _refuse_tokens(tokenizer, schema)
        rules = {} if schema is True else {key: value for key, value in schema.items() if key != "x-guidance"}
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(rules), overrides=_OPTIONS)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the schema cannot be enforced: {_short(str(error))}", _HINT) from None
        self._matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        can_begin = not self._matcher.is_error() and _bits(self._matcher).any()
        if self._matcher.is_error():
            reason = _short(self._matcher.get_error())
            if "nsatisfiable" in reason:
                raise DataError(f"the schema admits nothing: {reason}", "write the schema of a JSON object")
            raise DataError(f"the schema cannot be enforced: {reason}", _HINT)
        if not can_begin:
            raise DataError("the schema admits nothing that this tokenizer can write")

    def matcher(self) -> "LLMatcher":
        """A matcher at the start of an answer."""
        return self._matcher.deep_copy()


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self._matcher = grammar.matcher()
        self._next: NDArray[np.uint8] | None = None  # what may come next, where it has been asked for
        self._said: list[str] = []

    def mask(self, logits: mx.array) -> mx.array:
        """``logits`` (V,) with -inf at the tokens that cannot come next, and at those the tokenizer does not have.

        Raises ``ModelError`` where no token is left.
        """
        bits = self._bits()
        allowed = np.zeros(logits.shape[-1], np.bool_)
        count = min(len(bits), len(allowed))
        allowed[:count] = bits[:count]
        if not allowed.any():
            raise ModelError("the schema asks for a text that no token of this model can go on with")
        return mx.where(mx.array(cast(Any, allowed)), logits, mx.array(-mx.inf, logits.dtype))

    def advance(self, token_id: int) -> bool:
        """Note that ``token_id``, which is no end mark, came next; True when the answer is complete with it.

        Raises ``ModelError`` for a token that ``mask`` hid, which is drawn from logits that are not numbers alone.
        """
        self._matcher.consume_token(token_id)
        self._next = None
        self._check()
        return self._matcher.is_stopped()

    def forced(self) -> int | None:
        """The token that comes next whatever the logits are; None where there is a choice."""
        (only,) = np.nonzero(self._bits())
        return int(only[0]) if len(only) == 1 else None

    def _bits(self) -> NDArray[np.uint8]:
        if self._next is None:
            self._next = _bits(self._matcher)
            self._check()
        return self._next

    def hear(self, text: str, *, is_last: bool) -> None:
        """Note the text that was said. Raises ``ModelError`` where the whole is JSON that some readers refuse.

        A grammar knows neither the names it has seen nor the size of a number: where a schema leaves names or numbers
        open, a name may come twice in an object, and a number may be larger than a float.
        """
        self._said.append(text)
        if not is_last:
            return
        try:
            parse("".join(self._said))
        except NotJsonError as error:
            raise ModelError(
                f"the answer keeps to its schema, but not every reader takes it: {error}",
                "additionalProperties = false, and minimum and maximum for numbers, keep a model from it",
            ) from None

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _short(self._matcher.get_error())
            raise ModelError(f"the answer cannot be held to its schema any longer: {reason}", "use a simpler schema")


def _bits(matcher: "LLMatcher") -> NDArray[np.uint8]:
    """(V,) of the tokenizer, filled up to a multiple of 32 with zeros: 1 where the token may come next."""
    return np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")


def _vocabulary(tokenizer: ModelTokenizer) -> "LLTokenizer":
    """The tokens of ``tokenizer`` as bytes. Raises ``ModelError`` where llguidance reads them otherwise than we do."""
    from llguidance import LLTokenizer

    if tokenizer in _vocabularies:
        return _vocabularies[tokenizer]
    try:
        made = LLTokenizer(
            tokenizer.files()["tokenizer.json"],
            eos_token=sorted(tokenizer.stop_token_ids),
            slices=LLTokenizer.json_slices(),
        )
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"a schema cannot be used with this tokenizer: {_short(str(error))}") from None
    read = made.decode_bytes(tokenizer.encode(_PROBE).ids).decode("utf-8", "replace")
    if read.strip() != _PROBE:
        raise ModelError("a schema cannot be used with this tokenizer: what its tokens stand for depends on others")
    _vocabularies[tokenizer] = made
    return made


def _refuse_tokens(tokenizer: ModelTokenizer, schema: object) -> None:
    """Raise ``DataError`` where a name or value that an answer may have to hold contains an added token's text.

    llguidance 1.9 would ask for that token and then not take it
    (``test_a_schema_that_names_a_control_token_is_refused``).
    """
    added = set(tokenizer.control_tokens.values())
    for text in _literals(schema):
        found = added.intersection(tokenizer.encode(json.dumps(text, ensure_ascii=False)).ids)
        if found:
            raise DataError(
                f"the schema holds {text[:80]!r}, of which {tokenizer.decode(sorted(found)[:1])!r} is a token of its "
                "own in this tokenizer, never said as text",
                "write it in other words",
            )


def _literals(schema: object) -> Iterator[str]:
    """The names of properties and the texts under ``enum`` and ``const``, wherever they stand."""
    stack: list[tuple[object, bool]] = [(schema, False)]
    while stack:
        value, is_literal = stack.pop()
        if isinstance(value, dict):
            for key, item in cast(dict[str, object], value).items():
                if is_literal:
                    yield key
                if key == "properties" and isinstance(item, dict):
                    yield from cast(dict[str, object], item)
                stack.append((item, is_literal or key in ("enum", "const")))
        elif isinstance(value, list):
            stack += [(item, is_literal) for item in cast(list[object], value)]
        elif is_literal and isinstance(value, str):
            yield value


def _short(reason: str) -> str:
    """One line of what llguidance says."""
    return " ".join(reason.split())[:_LONGEST_REASON]
