from conftest import ROOT

from mlx_finetune.recipe.describe import keys_of
from mlx_finetune.recipe.reference import reference_text
from mlx_finetune.recipe.schema import section_names


def test_the_written_reference_is_what_the_schema_gives_now() -> None:
    # mlxft recipe schema --markdown > docs/recipe.md writes it anew
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == reference_text()


def test_every_key_has_one_row_in_its_section() -> None:
    blocks = {block.partition("\n")[0]: block for block in reference_text().split("\n## ")}
    sections = {"At the top": (), "[[data.sources]]": ("data", "sources", 0)}
    for heading, path in (sections | {f"[{name}]": (name,) for name in section_names()}).items():
        keys = [line.split("`")[1] for line in blocks[heading].splitlines() if line.startswith("| `")]
        assert keys == [key for key in keys_of(path) if path or key not in section_names()]


def test_a_row_says_what_is_allowed_what_holds_without_it_and_what_it_is() -> None:
    lines = reference_text().splitlines()
    assert (
        "| `model` | text in quotes, not empty | required | Catalogue name, hub id, local folder, or .gguf file; "
        "left out in a recipe with [scratch]. |" in lines
    )
    assert (
        "| `max_steps` | a whole number from 1 to 1000000000 | left out | Optimizer steps; give this or epochs. |"
        in lines
    )
    temperature = "| `temperature` | a number from 0 to 10 | `0.7` | 0 always takes the likeliest token. |"
    assert temperature in lines
