"""Endpoints of a recipe: text in, JSON of the schema out; and the schema goes the whole way from a recipe to them."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from servers import SCHEMA, Server
from small_runs import train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.app.open import open_name
from mlx_finetune.app.serve.tasks import read_tasks
from mlx_finetune.errors import DataError, RecipeError
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.start.endpoints import keep_schemas, read_schemas


def test_an_endpoint_answers_with_json_of_its_schema(server: Server) -> None:
    for seed in range(3):
        status, said = server.ask("POST", "/events", {"text": "Goal!", "seed": seed, "temperature": 1.0})
        assert status == 200, said
        jsonschema.validate(said, SCHEMA)


def test_the_text_stands_in_the_prompt_of_the_endpoint(server: Server) -> None:
    fields = {"max_tokens": 64, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
    for text in ("Goal!", "{text} and {0} {{"):
        _, expected = server.chat(messages=[{"role": "user", "content": f"Read this: {text}"}], **fields)
        status, said = server.ask("POST", "/events", {"text": text})
        assert status == 200
        assert said == json.loads(expected["choices"][0]["message"]["content"])


def test_an_answer_that_is_cut_short_is_refused_and_never_repaired(server: Server) -> None:
    status, said = server.ask("POST", "/events", {"text": "Goal!", "max_tokens": 2})
    assert status == 422
    assert said["error"]["code"] == "truncated"


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": 5}, {"text": "a", "schema": {}}, {"text": "<|im_end|>"}])
def test_a_bad_text_is_refused(server: Server, body: dict) -> None:
    assert server.ask("POST", "/events", body)[0] == 400


def test_only_runs_that_have_the_endpoint_answer_it(server: Server) -> None:
    assert server.ask("POST", "/events", {"text": "Goal!", "model": "alpha"})[0] == 200
    status, said = server.ask("POST", "/events", {"text": "Goal!", "model": "beta"})[:2]
    assert (status, "it is of alpha" in str(said)) == (404, True)
    assert "txt: there is no such key" in str(server.ask("POST", "/events", {"text": "x", "txt": "x"}))
    assert "text: this key is required" in str(server.ask("POST", "/events", {}))


def recipe_with(folder: Path, **endpoint: str):
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in endpoint.items())
    path = write_recipe(folder, Path("m"))
    path.write_text(path.read_text() + f"\n[[serve.endpoints]]\n{lines}")
    return load_recipe(path)


def test_a_schema_counts_from_the_recipe_and_is_kept_with_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "events.json").write_text(json.dumps(SCHEMA))
    loaded, run = recipe_with(tmp_path, path="events", schema="events.json"), RunDir(tmp_path / "run")
    keep_schemas(run, read_schemas(loaded, run))
    kept = run.file(rundir.SCHEMAS) / "events.json"
    assert json.loads(kept.read_text()) == SCHEMA
    (tmp_path / "events.json").unlink()  # a run that goes on has its own copy
    assert read_schemas(loaded, run) == {"events": SCHEMA}


def test_a_kept_schema_has_its_keys_in_their_order(tmp_path: Path) -> None:
    """An answer names them in that order, as the rows did that were learned."""
    schema = {"type": "object", "properties": {"ts": {"type": "string"}, "event": {"type": "string"}}}
    (tmp_path / "events.json").write_text(json.dumps(schema))
    loaded, run = recipe_with(tmp_path, path="events", schema="events.json"), RunDir(tmp_path / "run")
    keep_schemas(run, read_schemas(loaded, run))
    (tmp_path / "events.json").unlink()
    assert json.dumps(read_schemas(loaded, run)["events"]) == json.dumps(schema)


def test_training_keeps_the_schema_with_the_run(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    (tmp_path / "events.json").write_text(json.dumps(SCHEMA))
    path = write_recipe(tmp_path, tiny_model("llama"))
    path.write_text(path.read_text() + '\n[[serve.endpoints]]\npath = "events"\nschema = "events.json"\n')
    run = train(path, overrides=("training.max_steps=1",))
    assert [
        task.schema for task in read_tasks(open_name(str(run.path), base=tmp_path, report=lambda _: None)).values()
    ] == [SCHEMA]


def test_a_schema_beside_the_data_is_found_from_where_the_command_is_given(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recipes").mkdir()
    loaded = recipe_with(tmp_path / "recipes", path="events", schema="data/events.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "events.json").write_text(json.dumps(SCHEMA))
    assert read_schemas(loaded, RunDir(tmp_path / "run")) == {"events": SCHEMA}


def test_a_schema_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read_schemas(recipe_with(tmp_path, path="events", schema="none.json"), RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    "endpoint",
    [
        {"path": "v1", "schema": "a.json"},
        {"path": "health", "schema": "a.json"},
        {"path": "../x", "schema": "a.json"},
        {"path": "a/b", "schema": "a.json"},
        {"path": "", "schema": "a.json"},
        {"path": "a", "schema": "a.json", "prompt": "no place for it"},
        {"path": "a"},
        {"schema": "a.json"},
        {"path": "a", "schema": "a.json", "colour": "red"},
    ],
)
def test_a_bad_endpoint_is_a_problem_of_the_recipe(tmp_path: Path, endpoint: dict[str, str]) -> None:
    with pytest.raises(RecipeError):
        recipe_with(tmp_path, **endpoint)
