"""The shapes of what the server is asked, strict: what is not documented here is refused by name.

Fields of OpenAI's interface that say nothing about the answer (``user``, ``metadata``, ...) are accepted and not looked
at. Fields that would change it and cannot be honoured are accepted only with the value that changes nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

MAX_ANSWERS = 32
MAX_CHOICES = 8
MAX_TOKENS = 1_048_576
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
JsonObject = dict[str, JsonValue]
#: Only the number that changes nothing.
Nothing = Annotated[float, Field(ge=0, le=0)]


class Asked(BaseModel):
    """Frozen, strict, unknown keys refused, no NaN, no infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Asked):
    """A part of a turn's content. Pictures, files and sound are refused: nothing is ever fetched."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class SystemTurn(Asked):
    """In the place of the system message of the run's recipe."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserTurn(Asked):
    """What a person says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class FunctionCall(Asked):
    """``arguments`` is JSON text."""

    name: Text
    arguments: str


class ToolCall(Asked):
    """A call that an earlier answer made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantTurn(Asked):
    """An earlier answer."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ToolTurn(Asked):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


Turn = Annotated[SystemTurn | UserTurn | AssistantTurn | ToolTurn, Field(discriminator="role")]


class FunctionTool(Asked):
    """A function the model may call."""

    name: Text
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Asked):
    """Handed to the chat template."""

    type: Literal["function"]
    function: FunctionTool


class PlainText(Asked):
    """Free text."""

    type: Literal["text"]


class AnyObject(Asked):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Asked):
    """A JSON Schema; ``strict`` or not, an answer that ends satisfies it."""

    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = "answer"
    description: str | None = None
    json_schema: JsonObject = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Asked):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | AnyObject | SchemaFormat, Field(discriminator="type")]


class StreamOptions(Asked):
    """``include_usage`` adds a last event with the token counts."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Drawing(Asked):
    """How answers are drawn. What is left out is taken from [chat] of the run's recipe."""

    model: Text | None = Field(None, description="One of /v1/models; left out, the first.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 takes the likeliest token.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0 is off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=10)] | None = None
    frequency_penalty: Nothing | None = Field(None, description="Not supported; 0 only.")
    presence_penalty: Nothing | None = Field(None, description="Not supported; 0 only.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="Fixes the draws; answer i uses seed + i."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=1024),
        ]
        | None
    ) = Field(None, description="Token id to what is added to its logit.")
    user: str | None = None
    metadata: JsonObject | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(Drawing):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to report at each place; None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _no_number(value: object) -> object:
    """``Literal[False]`` takes 0 too, strict or not: they are equal."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("must be false")
    return value


class CompletionRequest(Drawing):
    """POST /v1/completions: text that is continued as it is, without a chat template."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_ANSWERS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_ANSWERS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Annotated[Literal[False], BeforeValidator(_no_number)] | None = Field(None, description="Not supported.")
    suffix: None = Field(None, description="Not supported.")
    best_of: Annotated[int, Field(ge=1, le=1)] | None = Field(None, description="Not supported; 1 only.")

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to report at each place; None for no log-probabilities at all."""
        return self.logprobs


class TaskRequest(Asked):
    """POST to an endpoint of the recipe's [serve] section."""

    text: Text
    model: Text | None = Field(None, description="One of the runs that have this endpoint; left out, the first.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None


def stops_of(asked: Drawing) -> tuple[str, ...]:
    """The stop strings, however they were written."""
    if asked.stop is None:
        return ()
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop)


def biases_of(asked: Drawing) -> Mapping[int, float]:
    """Token id -> bias."""
    return {int(key): value for key, value in (asked.logit_bias or {}).items()}
