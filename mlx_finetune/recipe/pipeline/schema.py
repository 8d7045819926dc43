"""A pipeline file as frozen pydantic models: stages in order, and what is measured of their results.

The sentence beside each field is the reference manual and the editor's tooltip. Nothing here reads a file or imports
mlx. Rules between stages are in ``rules``, because they are about all stages at once.
"""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from mlx_finetune.recipe.fields import Count, Names, Section, Text, Texts, as_tuple, refuse

#: What a stage or an evaluation may be called: it becomes a folder or the name of a file.
NAME = "^[a-z0-9][a-z0-9_-]{0,39}$"
#: Stands for the folder of the stage itself in its command.
OWN_FOLDER = "folder"
#: Commands of mlxft that a stage can run.
COMMANDS = ("sample", "eval", "generate", "trace")

Name = Annotated[str, Field(pattern=NAME)]


class StageRecipe(Section):
    """[[stages]]: one step, a training by a recipe or a command of mlxft; its files go to OUTPUT_DIR/NAME."""

    name: Name = Field(description="Name of the stage and of its folder in output_dir.", examples=["sft"])
    recipe: Text | None = Field(
        None,
        description="Recipe that is trained: a path, or a name of mlxft recipe list. Its output_dir becomes the folder "
        "of the stage.",
    )
    start_from: Text | None = Field(
        None,
        description="Earlier stage whose result the training starts from: its model, or the adapter of that stage.",
    )
    set: Texts = Field(
        (),
        description='Keys of the recipe that are changed, as after --set: "training.max_steps=50". {NAME} stands for '
        "the folder of the earlier stage NAME.",
    )
    command: Text | None = Field(
        None,
        description=f"In the place of a recipe: a command of mlxft ({', '.join(COMMANDS)}) with its arguments. "
        f"{{NAME}} is the folder of an earlier stage, {{{OWN_FOLDER}}} that of this one.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        problems: list[str] = []
        if self.recipe is None and self.command is None:
            problems.append("says neither `recipe` nor `command`; write the recipe that this stage trains")
        if self.recipe is not None and self.command is not None:
            problems.append("has both a `recipe` and a `command`; make two stages of it")
        if self.command is not None:
            problems += [
                f"`{key}` belongs to a training and not to a `command`; remove it"
                for key in ("start_from", "set")
                if getattr(self, key)
            ]
        return refuse(self, problems)


class EvaluationRecipe(Section):
    """[[evaluations]]: one evaluation by mlxft eval, on the same rows for every stage that it names."""

    name: Name = Field(description="Name of the evaluation, and of its file in each run's eval folder.")
    stages: Names = Field(description="Stages whose results are measured.", examples=[["sft"]])
    data: Text | None = Field(
        None, description="File or folder of rows; left out, the held-out rows of each stage's own recipe."
    )
    tasks: Texts = Field((), description="What is measured, as in [eval] tasks of a recipe; left out, the rows decide.")
    max_rows: Count | None = Field(None, description="Most rows; of more, always the same ones are taken.")
    max_tokens: Count | None = Field(None, description="Longest answer in tokens.")


Stages = Annotated[
    tuple[StageRecipe, ...],
    Field(min_length=1),
    BeforeValidator(as_tuple, json_schema_input_type=Annotated[list[StageRecipe], Field(min_length=1)]),
]
Evaluations = Annotated[
    tuple[EvaluationRecipe, ...], BeforeValidator(as_tuple, json_schema_input_type=list[EvaluationRecipe])
]


class Pipeline(Section):
    """Stages in order, each of which may start from the result of an earlier one, and one report about all of them."""

    output_dir: Text = Field(
        description="Folder of the pipeline: one folder for each stage, and the report.", examples=["adapters/mine"]
    )
    stages: Stages = Field(description="The steps, in the order in which they are taken.")
    evaluations: Evaluations = Field((), description="What is measured of the results, for the table of the report.")
