import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.describe import keys_of
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.schema import section_names
from mlx_finetune.recipe.values import toml_key, toml_value

GOOD = 'model = "m"\noutput_dir = "o"\n[data]\npath = "d"\n'

Load = Callable[..., LoadedRecipe]
Errors = Callable[..., list[str]]


@pytest.fixture(name="load")
def load_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *overrides: str) -> LoadedRecipe:
        Path("r.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(Path("r.toml"), overrides)

    return load


@pytest.fixture(name="errors")
def errors_fixture(load: Load) -> Errors:
    def errors(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            load(text, *overrides)
        assert caught.value.exit_code == 2
        return [f"{problem.where}: {problem.message} / {problem.hint}" for problem in caught.value.problems]

    return errors


def test_a_recipe_keeps_its_text_path_and_overrides(load: Load):
    loaded = load(GOOD, "seed=3")
    assert (loaded.text, loaded.path, loaded.overrides) == (GOOD, Path("r.toml"), ("seed=3",))
    assert (loaded.recipe.seed, loaded.recipe.model, loaded.notices) == (3, "m", ())


GOLDEN = [
    (
        "[training]\nlearning_rat = 1.0",
        "r.toml:6: [training] has no key `learning_rat` / did you mean `learning_rate`?",
    ),
    (
        "[training]\nmax_steps = 0",
        "r.toml:6: `training.max_steps` = 0 must be a whole number from 1 to 1000000000 / write max_steps = 1",
    ),
    (
        "[training]\nlearning_rate = nan",
        'r.toml:6: `training.learning_rate` = nan must be "auto" or a number above 0 and at most 10 / '
        'leave it out for the default, "auto"',
    ),
    (
        "[training]\nepochs = inf",
        "r.toml:6: `training.epochs` = inf must be a number above 0 and at most 10000 / "
        "remove it, or write an allowed value",
    ),
    (
        f"[lora]\nrank = {10**30}",
        f"r.toml:6: `lora.rank` = {10**30} must be a whole number from 1 to 1024 / write rank = 1024",
    ),
    (
        '[lora]\nrank = "16"',
        'r.toml:6: `lora.rank` = "16" must be a whole number from 1 to 1024 / write rank = 16',
    ),
    (
        '[lora]\nnum_layers = "some"',
        'r.toml:6: `lora.num_layers` = "some" must be "all" or a whole number from 1 to 1000000000 / '
        'leave it out for the default, "all"',
    ),
    (
        '[lora]\ntarget_modules = "q_proj"',
        'r.toml:6: `lora.target_modules` = "q_proj" must be "all-linear" or "attention" or a list of values, '
        'each text in quotes, not empty / write target_modules = ["q_proj"]',
    ),
    (
        '[training]\nlr_scheduler = "cosin"',
        'r.toml:6: `training.lr_scheduler` = "cosin" must be "cosine", "linear", "constant" or "wsd" / '
        'write lr_scheduler = "cosine"',
    ),
    (
        "[training]\nsave_at = [0.5,\n 2.0]",
        "r.toml:7: `training.save_at[1]` = 2.0 must be a number from 0 to 1 / write 1 there",
    ),
    (
        "[training]\nepochs = 1\nmax_steps = 3",
        "r.toml:7: [training] `epochs` = 1.0 and `max_steps` = 3 say the same thing twice / keep one",
    ),
    (
        "[training]\nkeep_best = 1",
        "r.toml:6: `training.keep_best` = 1 must be true or false / write keep_best = true",
    ),
    (
        '[hardware]\nmemory_limit = "24 apples"',
        'r.toml:6: `hardware.memory_limit` = "24 apples" must be "auto", "off", a whole number from 1000000 to '
        '1000000000000000 or text such as "24 GB" / leave it out for the default, "auto"',
    ),
    (
        "[training]\nrank = 3",
        "r.toml:6: [training] has no key `rank` / this key belongs in [lora]",
    ),
    (
        '[lora]\noutput_dir = "x"',
        "r.toml:6: [lora] has no key `output_dir` / this key belongs at the top, before the first section",
    ),
    (
        "[training.lora]\nrank = 3",
        "r.toml:5: [training] has no key `lora` / `lora` is a section of its own: write [lora]",
    ),
    (
        "[training]\n[training]",
        "r.toml:6: `training` is written twice, on lines 5 and 6 / keep one",
    ),
    (
        "[training]\nseed: 3",
        "r.toml:6: is not valid TOML: expected '=' after a key in a key/value pair / TOML writes seed = \"3\"",
    ),
    ("[lora]\nuse_dora = True", "r.toml:6: is not valid TOML: invalid value / write use_dora = true"),
]


@pytest.mark.parametrize(("text", "message"), GOLDEN)
def test_a_mistake_has_its_line_value_rule_and_fix(errors: Errors, text: str, message: str):
    assert errors(GOOD + text) == [message]


def test_a_table_of_an_array_has_its_own_line(errors: Errors):
    text = GOOD.replace('path = "d"\n', "") + '[[data.sources]]\npath = "a"\n[[data.sources]]\nweight = 2.0'
    assert errors(text) == ['r.toml:6: [data.sources[1]] has no `path` / write path = "data/mine" there']


def test_a_list_with_a_stranger_in_it_is_offered_without(errors: Errors):
    (line,) = errors(GOOD.replace("[data]", '[data]\ncorrections = [true, "a"]'))
    assert line.endswith('/ write corrections = ["a"]')


def test_a_null_for_a_key_that_another_replaces_says_so(errors: Errors):
    (line,) = errors(GOOD, "training.epochs=null")
    assert line.endswith("/ leave it out: setting `max_steps` takes its place")


ENDPOINT = '[[serve.endpoints]]\npath = "a"\nschema = "a.json"\n'
_PATH_RULE = "must be text of up to 64 of a-z, 0-9, - and _, the first a letter or a digit"


@pytest.mark.parametrize("path", ["v1/models", "timeline/", "a b", "-a"])
def test_a_bad_endpoint_path_is_one_problem_with_the_real_rule(errors: Errors, path: str):
    text = GOOD + ENDPOINT.replace('"a"', f'"{path}"') * 2
    assert errors(text) == [
        f'r.toml:{line}: `serve.endpoints[{index}].path` = "{path}" {_PATH_RULE} / write for instance path = "timeline"'
        for index, line in enumerate((6, 9))
    ]


def test_a_prompt_without_the_text_and_a_missing_schema_are_said_as_they_are(errors: Errors):
    assert errors(GOOD + '[[serve.endpoints]]\npath = "a"\nprompt = "no text"\n') == [
        'r.toml:5: [serve.endpoints[0]] has no `schema` / write schema = "timeline.schema.json" there',
        'r.toml:7: `serve.endpoints[0].prompt` = "no text" must be text in quotes with {text} in it / '
        'leave it out for the default, "{text}"',
    ]


def test_a_path_that_is_really_there_twice_is_said_beside_a_wrong_one(errors: Errors):
    text = GOOD + ENDPOINT * 2 + ENDPOINT.replace('"a"', '"a b"')
    assert [line.partition(" /")[0] for line in errors(text)] == [
        "r.toml:5: [serve] `endpoints` has the path 'a' twice",
        f'r.toml:12: `serve.endpoints[2].path` = "a b" {_PATH_RULE}',
    ]


def test_all_problems_come_at_once_in_file_order(errors: Errors):
    text = 'seed = -1\nmodel = 5\nlora_r = 8\n[training]\nepochs = 1\nmax_steps = 2\nbatch_size = "x"\n'
    text += "[data]\nval_split = 0.6\ntest_split = 0.5\n"
    found = [message.split(" / ")[0] for message in errors(text, "chat.top_p=2")]
    assert found == [
        "r.toml:1: the recipe has no `output_dir`",
        "r.toml:1: `seed` = -1 must be a whole number of at least 0 and below 2147483648",
        "r.toml:2: `model` = 5 must be text in quotes, not empty",
        "r.toml:3: `lora_r` is Axolotl's, TRL's, Unsloth's, LitGPT's and H2O LLM Studio's name for `lora.rank`",
        "r.toml:6: [training] `epochs` = 1.0 and `max_steps` = 2 say the same thing twice",
        'r.toml:7: `training.batch_size` = "x" must be "auto" or a whole number from 1 to 4096',
        "r.toml:8: [data] no data is named",
        "r.toml:10: [data] `val_split` = 0.6 and `test_split` = 0.5 leave nothing to train on",
        "--set chat.top_p=2: `chat.top_p` = 2 must be a number above 0 and at most 1",
    ]


def test_rules_between_sections_are_reported_beside_wrong_values(errors: Errors):
    text = 'quantize = 4\nadapter = "a"\n' + GOOD + "[training]\nepochs = 0\n"
    assert [message.split(" ")[0] for message in errors(text)] == ["r.toml:1:", "r.toml:2:", "r.toml:8:"]


def test_a_rule_between_sections_stands_on_the_line_of_the_key_it_names(errors: Errors):
    lora = "[lora]\nalpha = 32\n"
    hint = "which has beta, gamma, share_prompt / remove it, or take it away with --set preference.alpha="
    problem = f"`preference.alpha` = 1.0 is not used by task 'simpo', {hint}"
    text = GOOD + lora + "[preference]\nbeta = 0.1\nalpha = 1.0\n"
    assert errors(text, "task=simpo") == [f"r.toml:9: {problem}"]
    assert errors(GOOD + lora, "task=simpo", "preference.alpha=1") == [f"--set preference.alpha=1: {problem}"]
    places = [one.split(" ")[0] for one in errors(f'task = "dpo"\n{GOOD}mask_prompt = false\npacking = true\n')]
    assert places == ["r.toml:6:", "r.toml:7:"]
    (found,) = errors(GOOD + "[preference]\nbeta = 0.1\n")
    assert found.startswith("r.toml:5: [preference] goes with the tasks dpo,")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf" + GOOD.encode(), "r.toml:1: begins with a byte order mark"),
        (GOOD.encode("utf-16"), "r.toml:1: begins with a byte order mark"),
        (GOOD.encode() + b'x = "\xff"', "r.toml:5: is not UTF-8 text"),
        (GOOD.encode() + b"# \x00", "r.toml:5: holds a NUL byte"),
        (GOOD.encode() + "# \u202e".encode(), "r.toml:5: holds U+202E, which reorders the text around it"),
        (b"a = " + b"[" * 100_000, "r.toml: is nested too deeply"),
        (b"a = 1\nseed = " + b"9" * 5000, "r.toml:2: holds a number or date that cannot be"),
        (b"a." * 100_000 + b"b = 1", "r.toml:1: has more than 5000 dots"),
        (b"a" * 1_000_001, "r.toml: has 1.0 MB; a recipe has at most 1 MB"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_one_sentence(errors: Errors, content: bytes, message: str):
    (found,) = errors(content)
    assert found.split(" / ")[0] == message


@pytest.mark.parametrize("task", ["classify", "reward", "verifier", "dpo", "grpo", "seq2seq", "sft"])
def test_another_task_of_a_new_model_is_one_problem_whatever_the_task_says_of_other_keys(errors: Errors, task: str):
    assert errors(f'task = "{task}"\noutput_dir = "o"\n[scratch]\n[data]\npath = "d"\n[eval]\nprompts = ["a"]\n') == [
        f"r.toml:1: `task` = '{task}' does not go with [scratch], whose first task is pretrain / "
        "train it on text first, then name the run's model folder as `model` of another recipe"
    ]


def test_numbers_of_preferences_do_not_go_with_a_new_model(errors: Errors):
    (found,) = errors('output_dir = "o"\n[scratch]\n[data]\npath = "d"\n[preference]\nbeta = 0.3\n')
    assert "[preference] goes with the tasks dpo" in found
    assert "`task` is 'pretrain'" in found


def test_escaped_control_characters_are_refused(errors: Errors):
    found = errors(GOOD.replace('"m"', r'"m\u0000"').replace('"o"', r'"o\u202e"'))
    assert [message.split(" / ")[0] for message in found] == [
        "r.toml:1: `model` holds the control character U+0000",
        "r.toml:2: `output_dir` holds the control character U+202E",
    ]


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path):
    path = tmp_path / "big.toml"
    with path.open("wb") as file:
        file.truncate(100_000_000_000)  # sparse
    started = time.perf_counter()
    with pytest.raises(RecipeError, match=r"100000\.0 MB"):
        load_recipe(path)
    assert time.perf_counter() - started < 1


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.toml")
    messages: list[str] = []
    for name in ("pipe.toml", ".", "missing.toml", "a\0b"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(tmp_path / name)
        messages.append(caught.value.problems[0].message)
    assert messages == [
        "is not a regular file",
        "is a folder, not a recipe",
        "there is no such file",
        "cannot be read: the name cannot be used",
    ]


@pytest.mark.parametrize("name", ["mine", "mine.toml"])
def test_a_recipe_named_without_its_folder_is_pointed_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path(name))
    assert caught.value.problems[0].hint == "did you mean recipes/mine.toml?"


TOKEN = "hf_" + "aBcD" * 9


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace('"m"', f'"{TOKEN}"'),
        GOOD + f"# {TOKEN}",
        GOOD + f'[chat]\nsystem = {TOKEN}"',
        GOOD + f'[lora]\n{TOKEN} = "{TOKEN}"',
        GOOD + '[chat]\nsystem = "h\\u0066_' + "aBcD" * 9 + '"',
    ],
)
def test_an_access_token_is_refused_and_never_shown(errors: Errors, text: str):
    found = errors(text)
    assert any("an access token does not belong in a recipe" in message for message in found)
    assert TOKEN[3:] not in str(found)


def test_an_access_token_in_an_override_is_refused_and_never_shown(errors: Errors):
    found = errors(GOOD, f"model={TOKEN}", f"{TOKEN}=1")
    assert any("an access token" in message for message in found)
    assert TOKEN[3:] not in str(found)


def test_a_variable_is_not_expanded_and_that_is_said(load: Load, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    loaded = load(GOOD.replace('"m"', '"${HF_TOKEN}"'))
    assert loaded.recipe.model == "${HF_TOKEN}"
    assert loaded.notices == (
        '`model` = "${HF_TOKEN}": ${...} is not expanded in a recipe and stands as it is written',
    )


def test_windows_line_ends_are_read(load: Load):
    assert load(GOOD.replace("\n", "\r\n")).recipe.model == "m"


KEYS = [*section_names(), *(key for name in ((), *((n,) for n in section_names())) for key in keys_of(name))]
NAMES = st.sampled_from([*KEYS, "lora_r", "scale", "report_to", "bogus", "datasets", "lora_parameters"]) | st.text(
    max_size=4
)
SCALARS = st.one_of(
    st.integers(),
    st.just(10**30),
    st.floats(allow_subnormal=False),
    st.booleans(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["auto", "dpo", "all", "x" * 200, "1", "true", "24 GB"]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        name: st.dictionaries(st.sampled_from(keys_of((name,))), VALUES, max_size=4) | VALUES
        for name in section_names()
    },
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(NAMES, VALUES, max_size=6), sections=SECTIONS, override=st.text(max_size=20))
def test_any_toml_gives_a_recipe_or_a_recipe_error(
    tmp_path: Path, values: dict[str, object], sections: dict[str, object], override: str
):
    text = "".join(f"{toml_key(key)} = {toml_value(value)}\n" for key, value in (values | sections).items())
    path = tmp_path / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_recipe(path, [f"training.{override}", f"lora={override}"])
    except RecipeError as error:
        for problem in error.problems:
            assert problem.where.startswith((str(path), "--set"))
            assert problem.message.isprintable()
            assert problem.hint
            assert "Input should" not in problem.message + problem.hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(alphabet='a=[]{}".\n#1e-', max_size=40).map(str.encode))
def test_any_bytes_give_a_recipe_error(tmp_path: Path, content: bytes):
    path = tmp_path / "bytes.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_a_value_that_the_user_never_wrote_is_in_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'model = "m"\ntask = "classify"\noutput_dir = "o"\n[data]\npath = "a.csv"\ntext_template = "abc"\n[lora]\n'
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [problem.message.count("abc") for problem in caught.value.problems] == [1]


@pytest.mark.parametrize("written", ["first", "frist.toml", "firts"])
def test_a_recipe_that_is_not_there_may_be_one_of_nearly_that_name(written: str, tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text("")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / written)
    assert caught.value.problems[0].hint == f"did you mean {tmp_path / 'first.toml'}?"
