"""[data] of a recipe: which rows, how they become tokens, which tokens are targets."""

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from mlx_finetune.recipe.fields import Auto, Names, Section, Text, as_tuple, refuse


class SourceRecipe(Section):
    """[[data.sources]]: one of several training sources."""

    path: Text = Field(description="File, folder, or hub id of this source.")
    weight: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="How often each row is seen in an epoch; 0.5 shows a fresh half each time."
    )


Corrections = bool | Text | Names
Sources = Annotated[tuple[SourceRecipe, ...], BeforeValidator(as_tuple, json_schema_input_type=list[SourceRecipe])]

DataFormat = Literal[
    "auto",
    "text",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt-completion",
    "preference",
    "unpaired-preference",
    "labels",
]
TEXT_IN_TEMPLATE, WHOLE_TEXT = r"\{text\}", "{text}"
Truncation = Literal["drop", "keep-end", "split"]


class DataRecipe(Section):
    """[data]: which rows, how they become tokens, which tokens are targets."""

    path: Text | None = Field(
        None, description="File, folder with train/valid/test files, load_from_disk folder, or hub id."
    )
    train: Text | None = Field(None, description="Training file, when the files are named one by one.")
    valid: Text | None = Field(None, description="Validation file; goes with train.")
    test: Text | None = Field(None, description="Test file; goes with train.")
    sources: Sources = Field((), description="Several training sources, each with a weight.")
    corrections: Corrections = Field(
        False,
        description="Train on answers put right by /fix in chats too: true takes those of the run in output_dir and of "
        "the run that adapter names; otherwise run folders, runs or files (the last correction of a question counts).",
    )
    corrections_weight: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="How often each correction is seen in an epoch."
    )
    format: DataFormat = Field("auto", description="Layout of a row; auto decides over the whole file.")
    documents: Literal["paragraph", "file"] = Field(
        "paragraph",
        description="What a document is in a file of plain text: a paragraph (blank lines stand between them, or each "
        "line is one where there are none), or the whole file, which is the default with [scratch]. Lines of "
        "<|endoftext|> alone always stand between documents.",
    )
    columns: dict[str, str | Names] = Field(
        {},
        description='Our field name to the name in the file, for instance instruction = "question". Where files '
        'differ, a list of names, of which each row has the first that it has: completion = ["summary", "summary1"]. '
        "text alone makes rows plain text for tasks sft and pretrain, whatever else is in them.",
    )
    val_split: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Share of rows for validation when no validation file is given; by content hash, so stable."
    )
    test_split: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="Share of rows set aside as a test set when no valid and no test file is given; by content hash.",
    )
    max_seq_length: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        2048, description="Longest sequence in tokens; longer rows are treated as truncation says."
    )
    max_target_length: Annotated[int, Field(ge=2, le=1_048_576)] = Field(
        256,
        description="Longest answer of an encoder-decoder model (task seq2seq) in tokens, its end mark included; "
        "max_seq_length is then that of its prompt.",
    )
    mask_prompt: bool = Field(True, description="Learn the answers only; false learns every token of a row.")
    packing: Auto | bool = Field(
        "auto", description="Several rows in one sequence, none seeing the others; auto decides by model and lengths."
    )
    chat_template: str = Field(
        "auto", min_length=1, description='"auto" takes the tokenizer\'s own; otherwise a path to a Jinja file.'
    )
    template_arguments: dict[str, bool | int | float | str] = Field(
        {}, description="Extra variables for the chat template, for instance enable_thinking = false."
    )
    prompt_template: str = Field(
        "auto",
        min_length=1,
        description='For models without a chat template: "alpaca", "none" (prompt and answer joined), a text with '
        '{instruction} such as "summarize: {instruction}", or a file with {instruction}, {input} and {output}. "auto" '
        "is alpaca where the rows have instructions; task seq2seq, and pretrain on plain text, take the prompt as it "
        "is.",
    )
    text_template: Annotated[str, Field(pattern=TEXT_IN_TEMPLATE, max_length=10_000)] = Field(
        WHOLE_TEXT, description="What a classifier reads of a row; {text} stands for the row's text."
    )
    truncation: Truncation = Field(
        "drop", description="Rows longer than max_seq_length: dropped, kept from the end, or split; always counted."
    )

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> Self:
        given = [name for name in ("path", "train", "sources") if getattr(self, name)]
        problems: list[str] = []
        if not given:
            problems.append("no data is named; write one of `path`, `train` or `sources`")
        if len(given) > 1:
            what = " and ".join(f"`{name}`" for name in given)
            problems.append(f"{what} both name the training data; keep one")
        if self.path:
            problems += [
                f"`{name}` = {value!r} does not go with `path`; write `train` instead of `path`, or leave `{name}` out"
                for name, value in (("valid", self.valid), ("test", self.test))
                if value
            ]
        if self.val_split + self.test_split >= 1:
            problems.append(
                f"`val_split` = {self.val_split} and `test_split` = {self.test_split} leave nothing to train on; "
                "their sum must be below 1"
            )
        return refuse(self, problems)

    def source_of(self, split: str) -> str:
        """What names the rows of ``split``: train, valid or test. A share of the training rows is of their source."""
        named = {"valid": self.valid, "test": self.test}.get(split)
        return self.path or named or self.train or ", ".join(source.path for source in self.sources)


def with_text_format(values: object) -> object:
    """``values`` of a recipe whose rows are plain text where its columns name the text alone: labels are for others."""
    if not isinstance(values, dict):
        return values
    recipe = cast("dict[str, Any]", values)
    data = recipe.get("data")
    if recipe.get("task", "sft") not in ("sft", "pretrain") or not isinstance(data, dict):
        return recipe
    section = cast("dict[str, Any]", data)
    columns = section.get("columns")
    if not isinstance(columns, dict) or set(cast("dict[str, Any]", columns)) != {"text"}:
        return recipe
    return recipe | {"data": section | {"format": "text"}} if section.get("format", "auto") == "auto" else recipe
