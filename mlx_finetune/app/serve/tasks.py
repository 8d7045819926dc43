"""The endpoints of a recipe's [serve] section: a text comes in, JSON of the endpoint's schema goes out.

A schema was copied into the run folder when training started, so the endpoint serves what was trained for, wherever the
recipe is now. An answer is constrained to the schema and checked once more; one that is cut short is refused and said
to be so, never repaired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_finetune import rundir
from mlx_finetune.app.open import Opened
from mlx_finetune.errors import DataError, RunError
from mlx_finetune.loopback.refusals import RefusedError
from mlx_finetune.model.answers.batches import Piece
from mlx_finetune.scoring.json_schema import Validator, read_schema
from mlx_finetune.scoring.json_text import NotJsonError, parse

JsonSchema = Mapping[str, object]
Pieces = Sequence[tuple[int, Piece]]
_TEXT = "{text}"


@dataclass(frozen=True, slots=True)
class Task:
    """One endpoint of one run. ``prompt`` holds ``{text}``."""

    path: str
    schema: JsonSchema
    prompt: str

    def question(self, text: str) -> str:
        """The prompt for ``text``, whatever the text holds."""
        return self.prompt.replace(_TEXT, text)

    def checked(self, pieces: Pieces) -> str:
        """The answer as JSON text of the schema. Raises ``RefusedError`` (422) for one that is not."""
        if pieces[-1][1].finish != "stop":
            count = len(pieces)
            raise RefusedError(
                422, f"the answer was cut short after {count} tokens; raise max_tokens", code="truncated"
            )
        text = "".join(piece.text for _, piece in pieces).strip()
        try:
            value = parse(text)
        except NotJsonError:
            raise RefusedError(422, "the answer is not JSON", code="invalid_answer") from None
        if not Validator(self.schema).is_valid(value):
            raise RefusedError(422, "the answer does not satisfy the schema", code="invalid_answer")
        return text


def read_tasks(opened: Opened) -> Mapping[str, Task]:
    """Path -> endpoint, for the run that was opened; none for a model. Raises ``RunError``."""
    return {
        endpoint.path: Task(endpoint.path, _read_schema(opened, endpoint.path), endpoint.prompt)
        for endpoint in opened.serve.endpoints
    }


def _read_schema(opened: Opened, path: str) -> JsonSchema:
    assert opened.run is not None, "only a run has a recipe"
    try:
        return read_schema(opened.run.file(rundir.SCHEMAS) / f"{path}.json")
    except DataError as error:
        raise RunError(
            f"the endpoint {path!r} of {opened.name} cannot be served: {error.message}",
            "copy its schema file there; mlxft train does so when a run starts",
        ) from None
