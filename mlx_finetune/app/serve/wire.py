"""The shapes of what the server says, as in OpenAI's reference; the OpenAPI document is made from them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

FinishReason = Literal["stop", "length"]


class Reply(BaseModel):
    """Frozen; every field is always written, ``null`` where there is nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class ErrorBody(Reply):
    """What went wrong, for a person (``message``) and for a program (``type``, ``code``, ``param``)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Reply):
    """Every answer with a status of 400 and above."""

    error: ErrorBody


class Usage(Reply):
    """Tokens; those of the answer include the end mark."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Reply):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Reply):
    """The token that was taken, and the likeliest ones in its place."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class ChatLogprobs(Reply):
    """Log-probabilities of an answer, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Reply):
    """The same in the older shape of /v1/completions; ``text_offset`` counts characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(Reply):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Reply):
    """One of ``n`` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Reply):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class ChatDelta(Reply):
    """What is new in a chunk; fields without news are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _news(self, write: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {key: value for key, value in write(self).items() if value is not None}


class ChatChunkChoice(Reply):
    """A piece of one of ``n`` answers; the last piece of each has a ``finish_reason``."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Reply):
    """One event of a streamed chat answer; ``usage`` is in the last one, where it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str


class CompletionChoice(Reply):
    """One answer to one prompt; streamed, a piece of it. ``index`` is prompt x n + answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Reply):
    """Answer of /v1/completions, whole or streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str


class ModelCard(Reply):
    """One name that ``model`` may have. ``parent`` is the base of an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mlxft"] = "mlxft"
    parent: str | None = None


class ModelList(Reply):
    """Answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Reply):
    """``ok`` while answers are made, ``ending`` after a signal, ``failed`` when the model's thread is gone."""

    status: Literal["ok", "ending", "failed"]
    running: int
    waiting: int
