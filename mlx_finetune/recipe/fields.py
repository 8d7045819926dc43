"""What every section of a recipe is made of: strict frozen models, narrow types, rules between keys as sentences."""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mlx_finetune.units import parse_bytes

Auto = Literal["auto"]
Off = Literal["off"]

_SectionT = TypeVar("_SectionT")


def as_tuple(value: object) -> object:
    """A list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _as_bytes(value: object) -> object:
    return parse_bytes(value) if isinstance(value, str) and value not in ("auto", "off") else value


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Text])]
Names = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(as_tuple, json_schema_input_type=Annotated[list[Text], Field(min_length=1)]),
]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, ...], BeforeValidator(as_tuple, json_schema_input_type=list[Share])]
Bytes = Annotated[int, Field(ge=10**6, le=10**15)]
SizeText = Annotated[str, Field(examples=["24 GB"])]
SizeLimit = Annotated[
    Auto | Off | Bytes, BeforeValidator(_as_bytes, json_schema_input_type=Auto | Off | Bytes | SizeText)
]
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]


def refuse(section: _SectionT, problems: Sequence[str]) -> _SectionT:
    """``section``, or one ``ValueError`` with a line ``problem; way out`` for each problem (split by ``explain``)."""
    if problems:
        raise ValueError("\n".join(problems))
    return section


class Section(BaseModel):
    """Frozen, strict, unknown keys refused, no NaN, no infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
