"""Keys of [chat] changed one by one are checked as in a recipe."""

import pytest

from mlx_finetune.errors import UsageError
from mlx_finetune.recipe.sampling import change_setting, change_settings
from mlx_finetune.recipe.schema import ChatRecipe

DEFAULTS = ChatRecipe.model_validate({})


def test_values_are_read_as_toml_and_everything_else_stays() -> None:
    changed = change_settings(DEFAULTS, ["temperature=0", "chat.top-p = 0.5", "max_tokens=7", "system=Be brief = good"])
    assert changed == DEFAULTS.model_copy(
        update={"temperature": 0.0, "top_p": 0.5, "max_tokens": 7, "system": "Be brief = good"}
    )


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("temperature", "20", "`temperature` = 20: input should be less than or equal to 10"),
        ("temperature", "warm", '`temperature` = "warm": input should be a valid number'),
        ("temperature", "nan", "`temperature` = nan"),
        ("top_k", "1.5", "`top_k` = 1.5: input should be a valid integer"),
        ("max_tokens", "0", "`max_tokens` = 0: input should be greater than or equal to 1"),
        ("temperatur", "1", "[chat] has no key `temperatur`"),
    ],
)
def test_nonsense_is_one_sentence(name: str, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        change_setting(DEFAULTS, name, text)
    assert caught.value.message.startswith(says)


def test_the_hint_says_what_the_key_means_or_which_is_near() -> None:
    with pytest.raises(UsageError) as caught:
        change_setting(DEFAULTS, "top_p", "2")
    assert caught.value.hint == "top_p: Smallest set of tokens with this mass."
    with pytest.raises(UsageError) as caught:
        change_setting(DEFAULTS, "temperatur", "1")
    assert caught.value.hint.startswith("did you mean temperature? ")
    with pytest.raises(UsageError, match="NAME=VALUE"):
        change_settings(DEFAULTS, ["temperature"])
