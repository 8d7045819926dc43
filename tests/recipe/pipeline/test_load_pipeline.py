import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.describe import property_schema
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.pipeline.check import json_schema, schema_text
from mlx_finetune.recipe.pipeline.files import missing_files
from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage, load_pipeline

TOP = 'output_dir = "adapters/p"\n'
FULL = '[[stages]]\nname = "full"\nrecipe = "full.toml"\n'
LORA = '[[stages]]\nname = "lora"\nrecipe = "lora.toml"\n'
BODY = 'model = "m"\noutput_dir = "adapters/x"\n[data]\npath = "rows.jsonl"\n'

Load = Callable[..., LoadedPipeline]
Errors = Callable[..., list[str]]


@pytest.fixture(name="load")
def load_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    Path("full.toml").write_text(BODY)
    Path("lora.toml").write_text(BODY + "[lora]\nrank = 4\n")

    def load(text: str, *overrides: str) -> LoadedPipeline:
        Path("p.toml").write_text(text)
        return load_pipeline(Path("p.toml"), overrides, here=Path.cwd())

    return load


@pytest.fixture(name="errors")
def errors_fixture(load: Load) -> Errors:
    def errors(text: str, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            load(text, *overrides)
        assert caught.value.exit_code == 2
        return [f"{problem.where}: {problem.message} / {problem.hint}" for problem in caught.value.problems]

    return errors


def test_a_stage_starts_from_the_model_or_the_adapter_of_an_earlier_one(load: Load) -> None:
    found = load(
        TOP + FULL + LORA + 'start_from = "full"\n[[stages]]\nname = "more"\nrecipe = "lora"\nstart_from = "lora"\n'
    )
    assert [stage.folder for stage in found.stages] == [Path(f"adapters/p/{name}") for name in ("full", "lora", "more")]
    recipes = [stage.loaded.recipe for stage in found.stages if stage.loaded]
    assert [(one.model, one.adapter, one.output_dir) for one in recipes] == [
        ("m", "", "adapters/p/full"),
        ("adapters/p/full", "", "adapters/p/lora"),
        ("adapters/p/full", "adapters/p/lora", "adapters/p/more"),
    ]
    assert [stage.needs for stage in found.stages] == [(), ("full",), ("lora",)]


def test_a_stage_is_a_recipe_that_can_be_trained_alone_with_the_same_overrides(load: Load) -> None:
    stage = load(TOP + FULL + LORA + 'start_from = "full"\nset = ["lora.rank=8"]\n').stages[1]
    assert stage.loaded is not None
    assert load_recipe(stage.loaded.path, stage.loaded.overrides).recipe == stage.loaded.recipe
    assert stage.loaded.recipe.lora is not None
    assert stage.loaded.recipe.lora.rank == 8


def test_names_in_braces_are_folders_of_earlier_stages(load: Load) -> None:
    text = (
        TOP + FULL + '[[stages]]\nname = "draw"\ncommand = "sample {full} --data \'a b.jsonl\' --out {folder}/made"\n'
    )
    text += LORA + 'set = ["data.path={draw}/made/sft", "lora.rank=2"]\n'
    found = load(text)
    assert found.stages[1].words == (
        "sample",
        "adapters/p/full",
        "--data",
        "a b.jsonl",
        "--out",
        "adapters/p/draw/made",
    )
    assert found.stages[1].needs == ("full",)
    assert found.stages[2].needs == ("draw",)
    assert found.stages[2].loaded is not None
    assert found.stages[2].loaded.recipe.data.path == "adapters/p/draw/made/sft"


def test_overrides_change_the_folder_and_the_recipe_of_one_stage(load: Load) -> None:
    found = load(TOP + FULL + LORA, "output_dir=elsewhere", "lora.training.max_steps=3")
    assert found.folder == Path("elsewhere")
    steps = [stage.loaded.recipe.training.max_steps for stage in found.stages if stage.loaded]
    assert steps == [None, 3]
    assert (
        found.command("--force")
        == "mlxft pipeline p.toml --set output_dir=elsewhere --set lora.training.max_steps=3 --force"
    )


def test_recipes_are_found_from_here_beside_the_pipeline_and_by_name(load: Load, tmp_path: Path) -> None:
    load(TOP + FULL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "p.toml").write_text(TOP + FULL.replace("full.toml", "own") + LORA)
    (tmp_path / "other" / "own.toml").write_text(BODY)
    found = load_pipeline(tmp_path / "other" / "p.toml", here=tmp_path)
    assert [stage.loaded.path for stage in found.stages if stage.loaded] == [Path("other/own.toml"), Path("lora.toml")]
    named = load(TOP + FULL.replace("full.toml", "quickstart")).stages[0].loaded
    assert named is not None
    assert named.path == ROOT / "recipes" / "quickstart.toml"


GOLDEN = [
    (TOP, 'p.toml:1: the pipeline has no stages / add [[stages]] and below it name = "sft" and a recipe'),
    (FULL, 'p.toml:1: the pipeline has no `output_dir` / add output_dir = "adapters/mine" before the first stage'),
    (TOP + "stags = 1\n" + FULL, "p.toml:2: the top level has no key `stags` / did you mean `stages`?"),
    (
        TOP + "[stages]\nname = 1\n",
        "p.toml:2: `stages` = { name = 1 } must be sections / "
        "write [[stages]] on a line of its own for each, and its keys below it",
    ),
    (
        TOP + FULL + "recip = 1\n",
        "p.toml:5: [[stages]] full has no key `recip` / did you mean `recipe`?",
    ),
    (
        TOP + FULL + 'model = "m"\n',
        "p.toml:5: [[stages]] full has no key `model` / this belongs into the recipe of the stage; change one key by "
        'set = ["model=smollm2-135m"]',
    ),
    (TOP + '[[stages]]\nrecipe = "full.toml"\n', 'p.toml:2: [[stages]] has no `name` / write name = "sft" there'),
    (
        TOP + FULL.replace('"full"', '"Full one"'),
        'p.toml:3: `name` = "Full one" must be text of up to 40 of a-z, 0-9, - and _, the first a letter or a digit / '
        'write for instance name = "sft"',
    ),
    (
        TOP + '[[stages]]\nname = "a"\n',
        "p.toml:2: [[stages]] a says neither `recipe` nor `command` / write the recipe that this stage trains",
    ),
    (
        TOP + FULL + 'command = "eval x"\n',
        "p.toml:5: [[stages]] full has both a `recipe` and a `command` / make two stages of it",
    ),
    (
        TOP + FULL + 'set = "lora.rank=8"\n',
        'p.toml:5: `set` = "lora.rank=8" must be a list of values, each text in quotes, not empty / '
        'write set = ["lora.rank=8"]',
    ),
    (
        TOP + FULL + FULL,
        "p.toml:6: two stages are called full: [[stages]] 1 and later need names of their own / "
        "give one of them another name",
    ),
    (TOP + LORA + 'start_from = "ful"\n' + FULL, 'p.toml:5: there is no stage "ful" / no stage comes earlier'),
    (
        TOP + LORA + 'start_from = "full"\n' + FULL,
        "p.toml:5: full comes later / a stage takes from earlier ones only: put the stages in the order in which they "
        "run",
    ),
    (TOP + FULL + LORA + 'start_from = "fulll"\n', 'p.toml:8: there is no stage "fulll" / did you mean full?'),
    (
        TOP + FULL + 'set = [\n  "seed=1",\n  "data.path={nope}/x",\n]\n',
        'p.toml:7: there is no stage "nope" / no stage comes earlier',
    ),
    (
        TOP + '[[stages]]\nname = "a"\ncommand = "rm -rf /"\n',
        'p.toml:4: "rm" is no command of mlxft that a stage can run / a stage can run sample, eval, generate, trace',
    ),
    (
        TOP + '[[stages]]\nname = "a"\ncommand = "mlxft eval x"\n',
        "p.toml:4: a command begins with what comes after mlxft / write eval x",
    ),
    (
        TOP + '[[stages]]\nname = "a"\ncommand = "eval \'x"\n',
        "p.toml:4: the command cannot be read: no closing quotation / close the quotes",
    ),
    (
        TOP + FULL.replace("full.toml", "ful.toml"),
        'p.toml:4: there is no recipe "ful.toml" / did you mean full.toml?',
    ),
    (
        TOP + FULL + 'set = ["seed=1", "training.max_stps=3"]\n',
        "p.toml:5: [training] has no key `max_stps` / did you mean `max_steps`?",
    ),
    (
        TOP + LORA + '[[stages]]\nname = "b"\nrecipe = "full.toml"\nstart_from = "lora"\n',
        "p.toml:8: b cannot go on with the adapter of lora: it trains every weight, for which the adapter would have "
        "to be fused first / write a [lora] section in its recipe: rank = 4",
    ),
    (
        TOP + LORA + '[[stages]]\nname = "b"\nrecipe = "lora"\nstart_from = "lora"\nset = ["lora.rank=8"]\n',
        "p.toml:8: b cannot go on with the adapter of lora: lora.rank is 8, and was 4 "
        "/ write in the [lora] of its recipe: rank = 4",
    ),
    (
        TOP + FULL + '[[evaluations]]\nname = "e"\nstages = ["ful"]\n',
        'p.toml:7: there is no stage "ful" / did you mean full?',
    ),
    (
        TOP + FULL + '[[stages]]\nname = "c"\ncommand = "eval x"\n[[evaluations]]\nname = "e"\nstages = ["c"]\n',
        "p.toml:10: c trains nothing, so there is no result to measure / stages that train: full",
    ),
    (
        TOP + FULL + '[[evaluations]]\nname = "e"\nstages = ["full"]\ntasks = ["los"]\n',
        "p.toml:8: [[evaluations]] e `tasks`: there is no task `los` / did you mean loss? tasks are",
    ),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN, ids=range(len(GOLDEN)))
def test_each_problem_has_its_line_and_a_way_out(errors: Errors, text: str, expected: str) -> None:
    found = errors(text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_file_that_a_command_or_an_evaluation_reads_is_missed_before_the_first_stage(load: Load) -> None:
    command = '[[stages]]\nname = "drawn"\ncommand = "sample {full} --data nope.jsonl --out=elsewhere"\n'
    other = '[[stages]]\nname = "other"\ncommand = "sample {full} --data=nothing.jsonl --out {folder}"\n'
    asked = '[[stages]]\nname = "asked"\ncommand = "generate {full} --file=missing.txt --output -x"\n'
    inside = '[[stages]]\nname = "inside"\ncommand = "eval {full} --data=elsewhere/rows.jsonl"\n'
    made = '[[stages]]\nname = "again"\ncommand = "eval {full} --data {drawn}/sft/valid.jsonl"\n'
    evaluation = '[[evaluations]]\nname = "e"\nstages = ["full"]\ndata = "lost.jsonl"\n'
    loaded = load(TOP + FULL + command + other + asked + inside + made + evaluation)
    assert [problem.message for problem in missing_files(loaded, Path.cwd())] == [
        "stage drawn reads nope.jsonl, and there is no such file",
        "stage other reads nothing.jsonl, and there is no such file",
        "stage asked reads missing.txt, and there is no such file",
        "evaluation e reads lost.jsonl, and there is no such file",
    ]
    for name in ("nope.jsonl", "nothing.jsonl", "missing.txt", "lost.jsonl"):
        Path(name).touch()
    assert list(missing_files(loaded, Path.cwd())) == []


def test_problems_of_the_file_and_of_all_its_recipes_come_at_once(errors: Errors) -> None:
    Path("full.toml").write_text(BODY + "[training]\nepoch = 1\n")
    found = errors(
        TOP + FULL + LORA + 'set = ["seed=no"]\n[[stages]]\nname = "third"\nrecipe = "nowhere"\n',
        "lora.training.max_steps=0",
        "nobody.seed=1",
        "seed",
    )
    assert [line.partition(": ")[0] for line in found] == [
        "--set nobody.seed=1",
        "--set seed",
        "full.toml:6",
        "p.toml:8",
        "--set lora.training.max_steps=0",
        "p.toml:11",
    ]


def test_a_recipe_that_two_stages_share_is_complained_about_once(errors: Errors) -> None:
    Path("full.toml").write_text(BODY + "[training]\nepoch = 1\n")
    assert len(errors(TOP + FULL + FULL.replace('"full"', '"again"'))) == 1


def test_a_pipeline_is_no_recipe_and_a_recipe_no_pipeline(load: Load) -> None:
    load(TOP + FULL)
    with pytest.raises(RecipeError, match="is a pipeline, not a recipe"):
        load_recipe(Path("p.toml"))
    with pytest.raises(RecipeError, match="is a recipe, not a pipeline"):
        load_pipeline(Path("full.toml"), here=Path())


def test_an_access_token_is_refused_and_not_repeated(errors: Errors) -> None:
    found = errors(TOP + FULL + f'set = ["model=hf_{"a1" * 17}"]\n')
    assert len(found) == 1
    assert "a1a1" not in found[0]


def test_a_command_has_no_keys_to_change(errors: Errors) -> None:
    text = TOP + '[[stages]]\nname = "c"\ncommand = "eval x"\n'
    assert errors(text, "c.seed=1") == [
        "--set c.seed=1: c runs a command and has no recipe / change its command in p.toml"
    ]


def test_the_schema_for_editors_is_the_one_in_the_repository() -> None:
    assert (ROOT / "recipes" / "pipeline.schema.json").read_text() == schema_text()
    assert json.loads(schema_text()) == json_schema()
    stage = json_schema()["$defs"]["StageRecipe"]
    assert stage["additionalProperties"] is False
    assert all(one["description"] for one in stage["properties"].values())


def test_the_shipped_pipeline_and_each_of_its_recipes_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if "dpo" not in property_schema(("task",))["enum"]:
        pytest.skip("needs the task dpo")
    found = load_pipeline(Path("recipes/pipeline-scratch.toml"), here=ROOT)
    assert [stage.name for stage in found.stages if stage.loaded] == ["pretrain", "sft", "dpo", "verifier"]
    assert all(data_exists(stage) for stage in found.stages)
    for path in (ROOT / "recipes" / "pipeline-scratch").glob("*.toml"):
        assert load_recipe(path).recipe.seed == 7


def data_exists(stage: Stage) -> bool:
    """True where the rows are in the repository, or will be made by an earlier stage."""
    if stage.loaded is None:
        return all((ROOT / word).exists() for word in stage.words if word.startswith("data/"))
    path = stage.loaded.recipe.data.path or ""
    return path.startswith("adapters/pipeline-scratch/") or (ROOT / path).exists()
