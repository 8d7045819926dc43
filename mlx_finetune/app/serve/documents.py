"""The OpenAPI document of a server: the shapes of ``requests`` and ``wire`` with what is served filled in."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic.json_schema import models_json_schema

from mlx_finetune.app.serve.models import Served
from mlx_finetune.app.serve.requests import ChatRequest, CompletionRequest, TaskRequest
from mlx_finetune.app.serve.wire import ChatCompletion, Completion, ErrorReply, Health, ModelCard, ModelList

Json = dict[str, Any]
_REF = "#/components/schemas/{model}"
_REFUSALS: Mapping[str, str] = {
    "400": "The request cannot be answered as it is.",
    "401": "The token is missing or wrong.",
    "403": "Host or Origin is not one of this server's.",
    "404": "There is no such model.",
    "405": "The address does not take this method.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is not JSON, or compressed.",
    "503": "The line is full; Retry-After says when to come again.",
}


def describe(served: Sequence[Served], version: str) -> Json:
    """The document, as plain JSON values."""
    _, generated = models_json_schema(
        [
            *((shape, "validation") for shape in (ChatRequest, CompletionRequest, TaskRequest)),
            *((shape, "serialization") for shape in (ChatCompletion, Completion, ErrorReply)),
            *((shape, "serialization") for shape in (Health, ModelCard, ModelList)),
        ],
        ref_template=_REF,
    )
    schemas = cast(Json, generated["$defs"])
    _fill_in(schemas, served)
    paths: Json = {
        "/health": {"get": {**_operation("health", "Is the server answering?", Health), "security": []}},
        "/openapi.json": {"get": _operation("openapi", "This document.", None)},
        "/v1/models": {"get": _operation("models", "What `model` may be.", ModelList)},
        "/v1/models/{model}": {
            "get": {
                **_operation("model", "One of them.", ModelCard),
                "parameters": [
                    {
                        "name": "model",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "enum": [one.id for one in served]},
                    }
                ],
            }
        },
        "/v1/chat/completions": {
            "post": _asking("chat", "Answer a conversation.", ChatRequest, ChatCompletion, streams=True)
        },
        "/v1/completions": {
            "post": _asking("completion", "Continue a text.", CompletionRequest, Completion, streams=True)
        },
    }
    for one in served:
        for path, task in one.tasks.items():
            operation = _asking(f"task-{path}", f"JSON of the schema of {path!r}.", TaskRequest, None, streams=False)
            operation["responses"]["200"]["content"] = {"application/json": {"schema": dict(task.schema)}}
            operation["responses"]["422"] = _refusal("The answer was cut short or does not satisfy the schema.")
            paths.setdefault(f"/{path}", {"post": operation})
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlxft serve", "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def _operation(name: str, summary: str, answer: type | None) -> Json:
    schema: Json = {"type": "object"} if answer is None else {"$ref": _REF.format(model=answer.__name__)}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": {"application/json": {"schema": schema}}},
            **{status: _refusal(text) for status, text in _REFUSALS.items()},
        },
    }


def _asking(name: str, summary: str, asked: type, answer: type | None, *, streams: bool) -> Json:
    operation = _operation(name, summary, answer)
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=asked.__name__)}}},
    }
    if streams:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return operation


def _refusal(text: str) -> Json:
    schema = {"$ref": _REF.format(model=ErrorReply.__name__)}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _fill_in(schemas: Json, served: Sequence[Served]) -> None:
    """What only this server knows: names of models, and how many token ids there are."""
    names = [one.id for one in served]
    for shape in (ChatRequest, CompletionRequest, TaskRequest):
        fields = schemas[shape.__name__]["properties"]
        fields["model"] = {"anyOf": [{"type": "string", "enum": names}, {"type": "null"}], "default": None}
    largest = min(one.num_ids for one in served)
    for option in schemas[CompletionRequest.__name__]["properties"]["prompt"]["anyOf"]:
        for inner in (option.get("items", {}), option.get("items", {}).get("items", {})):
            if inner.get("type") == "integer":
                inner.pop("exclusiveMaximum", None)
                inner["maximum"] = largest - 1
