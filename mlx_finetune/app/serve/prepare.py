"""A checked request to what the decoder takes: prompt tokens, sampling settings, a grammar.

Runs beside the model's thread and touches nothing of MLX. What a request leaves out comes from [chat] of the run.
Prompts go through the code that training rendered its rows with, so control markers in a client's text are refused
there and never become control ids.
"""

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from mlx_finetune.app.generate import sampling_of
from mlx_finetune.app.serve.models import Served
from mlx_finetune.app.serve.requests import (
    MAX_ANSWERS,
    AnyObject,
    AssistantTurn,
    ChatRequest,
    CompletionRequest,
    Content,
    Drawing,
    SchemaFormat,
    TaskRequest,
    Turn,
    biases_of,
    stops_of,
)
from mlx_finetune.app.serve.tasks import Task
from mlx_finetune.dataset.control import ControlMarkers
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.dataset.turns import TurnError, read_turns
from mlx_finetune.errors import MlxftError
from mlx_finetune.loopback.refusals import RefusedError, from_error
from mlx_finetune.model.answers.batches import Request
from mlx_finetune.model.answers.constrain import Grammar
from mlx_finetune.model.answers.sampling import Sampling

_KEPT_GRAMMARS = 32
_MAX_SCHEMA_CHARACTERS = 100_000
_OBJECT: Mapping[str, object] = {"type": "object"}


class Preparer:
    """Keeps the grammars of the last schemas; may be used by several threads."""

    def __init__(self) -> None:
        self._grammars: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def chat(self, served: Served, asked: ChatRequest) -> list[Request]:
        """One request for each of the ``n`` answers. Raises ``RefusedError``."""
        ids = self._chat_ids(served, asked)
        grammar = self._grammar_of(served, asked)
        return self._requests(served, asked, [ids], asked.max_completion_tokens, asked.num_logprobs, grammar)

    def completion(self, served: Served, asked: CompletionRequest) -> list[Request]:
        """``n`` requests for each prompt, prompt by prompt. Raises ``RefusedError``."""
        prompts = _prompts_of(asked)
        if len(prompts) * (asked.n or 1) > MAX_ANSWERS:
            raise RefusedError(400, f"more than {MAX_ANSWERS} answers in one request", param="prompt")
        every = [_text_ids(served, one) if isinstance(one, str) else list(one) for one in prompts]
        return self._requests(served, asked, every, None, asked.num_logprobs, None)

    def task(self, served: Served, task: Task, asked: TaskRequest) -> list[Request]:
        """The one request of an endpoint. Raises ``RefusedError``."""
        ids = _render(served, _with_system(served, [{"role": "user", "content": task.question(asked.text)}]), None)
        settings = {"temperature": asked.temperature, "seed": asked.seed, "max_tokens": asked.max_tokens}
        drawing = Drawing(**settings)  # pyright: ignore[reportArgumentType]
        grammar = self._grammar(served, task.schema, "the endpoint's schema")
        return self._requests(served, drawing, [ids], None, None, grammar)

    def _chat_ids(self, served: Served, asked: ChatRequest) -> list[int]:
        try:
            turns = read_turns([_fields(turn) for turn in asked.messages], "messages")
        except TurnError as error:
            raise RefusedError(400, error.message, param="messages") from None
        tools = None
        if asked.tools and asked.tool_choice != "none":
            tools = [tool.model_dump(exclude_none=True) for tool in asked.tools]
        turns = _with_system(served, turns)
        ids = _render(served, turns, tools)
        if tools and ids == _render(served, turns, None):
            message = f"the chat template of {served.id} ignores tools: the model would not see them; leave them out"
            raise RefusedError(400, message, param="tools")
        return ids

    def _requests(
        self,
        served: Served,
        asked: Drawing,
        prompts: Sequence[Sequence[int]],
        longest: int | None,
        num_logprobs: int | None,
        grammar: Grammar | None,
    ) -> list[Request]:
        """Every prompt ``n`` times, each answer with a seed of its own."""
        sampling = _sampling(served, asked, longest, is_constrained=grammar is not None)
        biases = _checked_biases(served, asked)
        requests: list[Request] = []
        for ids in prompts:
            room = _room(served, ids)
            for _ in range(asked.n or 1):
                drawn = replace(
                    sampling,
                    seed=(sampling.seed + len(requests)) % 2**31,
                    max_tokens=min(sampling.max_tokens, room),
                )
                requests.append(
                    Request(
                        prompt_ids=ids,
                        sampling=drawn,
                        stop=stops_of(asked),
                        grammar=grammar,
                        num_logprobs=0 if num_logprobs is None else max(num_logprobs, 1),
                        logit_bias=biases,
                    )
                )
        return requests

    def _grammar_of(self, served: Served, asked: ChatRequest) -> Grammar | None:
        wanted = asked.response_format
        if isinstance(wanted, AnyObject):
            return self._grammar(served, _OBJECT, "response_format")
        if isinstance(wanted, SchemaFormat):
            return self._grammar(served, wanted.json_schema.json_schema, "response_format")
        return None

    def _grammar(self, served: Served, schema: Mapping[str, object], param: str) -> Grammar:
        """The grammar of ``schema``, made once. Raises ``RefusedError`` where it cannot be enforced."""
        text = json.dumps(schema)
        if len(text) > _MAX_SCHEMA_CHARACTERS:
            raise RefusedError(400, f"the schema has more than {_MAX_SCHEMA_CHARACTERS} characters", param=param)
        key = served.tokenizer.content_hash, text
        with self._lock:  # held while it is made: the same schema is asked for by many at once
            if key not in self._grammars:
                try:
                    self._grammars[key] = Grammar(served.tokenizer, schema)
                except MlxftError as error:
                    raise from_error(error, param=param) from None
            self._grammars.move_to_end(key)
            while len(self._grammars) > _KEPT_GRAMMARS:
                self._grammars.popitem(last=False)
            return self._grammars[key]


def _prompts_of(asked: CompletionRequest) -> list[str | list[int]]:
    prompt = asked.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    return cast("list[str | list[int]]", prompt)


def _fields(turn: Turn) -> dict[str, object]:
    """A turn as the data layer reads it: text parts joined, and no content of an assistant as an empty one."""
    fields: dict[str, object] = {"role": turn.role, "content": _text(turn.content)}
    if turn.name is not None:
        fields["name"] = turn.name
    if isinstance(turn, AssistantTurn):
        if turn.tool_calls:
            fields["tool_calls"] = [call.model_dump() for call in turn.tool_calls]
        if turn.reasoning_content is not None:
            fields["reasoning_content"] = turn.reasoning_content
    elif turn.role == "tool" and turn.tool_call_id is not None:
        fields["tool_call_id"] = turn.tool_call_id
    return fields


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _with_system(served: Served, turns: Sequence[Message]) -> list[Message]:
    if served.chat.system and turns[0]["role"] != "system":
        return [{"role": "system", "content": served.chat.system}, *turns]
    return list(turns)


def _render(served: Served, turns: Sequence[Message], tools: Sequence[Message] | None) -> list[int]:
    try:
        ids = render_prompt(turns, served.tokenizer, served.data, tools=tools)
    except MlxftError as error:
        raise from_error(error, param="messages") from None
    if not ids:
        raise RefusedError(400, "the prompt is empty", param="messages")
    return ids


def _text_ids(served: Served, text: str) -> list[int]:
    """Text as a document begins: with the token that texts begin with, where there is one."""
    tokenizer = served.tokenizer
    markers = ControlMarkers(tokenizer)
    found = markers.find(text)
    if found:
        raise RefusedError(400, f"the prompt holds the control marker {found!r}", param="prompt")
    first = tokenizer.encode("a", add_special_tokens=True).ids[0]
    head = [first] if first == tokenizer.bos_token_id else []
    ids = head + tokenizer.encode(text).ids
    if not ids:
        raise RefusedError(400, "the prompt is empty", param="prompt")
    return ids


def _sampling(served: Served, asked: Drawing, longest: int | None, *, is_constrained: bool) -> Sampling:
    given = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "max_tokens": longest or asked.max_tokens,
    }
    if is_constrained and asked.repetition_penalty is None:
        given["repetition_penalty"] = 1.0  # of [chat] it would fall on brackets and quotes first
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    chosen = {key: value for key, value in given.items() if value is not None}
    return sampling_of(served.chat.model_copy(update=chosen), seed)


def _checked_biases(served: Served, asked: Drawing) -> Mapping[int, float]:
    biases = biases_of(asked)
    beyond = max(biases, default=0)
    if beyond >= served.num_ids:
        raise RefusedError(
            400,
            f"logit_bias has the token id {beyond}; there are ids from 0 to {served.num_ids - 1}",
            param="logit_bias",
        )
    return biases


def _room(served: Served, ids: Sequence[int]) -> int:
    """How many tokens an answer can have. Raises ``RefusedError`` for a prompt that leaves none."""
    if max(ids) >= served.num_ids:
        raise RefusedError(400, f"the prompt has a token id above {served.num_ids - 1}", param="prompt")
    if served.context is None:
        return 2**30
    room = served.context - len(ids) + 1
    if room < 1:
        raise RefusedError(
            400,
            f"the prompt has {len(ids)} tokens, and this model has room for {served.context}",
            code="context_length_exceeded",
            param="messages",
        )
    return room
