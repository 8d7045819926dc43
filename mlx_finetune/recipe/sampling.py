"""Single keys of [chat], changed from a command line or a chat with the checks of the recipe."""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import ValidationError

from mlx_finetune.errors import UsageError
from mlx_finetune.recipe.schema import ChatRecipe
from mlx_finetune.recipe.values import shown, shown_name


def change_setting(chat: ChatRecipe, name: str, text: str) -> ChatRecipe:
    """``chat`` with ``name`` set to ``text``, read as TOML and checked as in a recipe. Raises ``UsageError``."""
    fields = ChatRecipe.model_fields
    key = setting_key(name)
    if key not in fields:
        near = get_close_matches(key, fields, 1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"[chat] has no key `{shown_name(name.strip())}`", f"{guess}keys: {', '.join(fields)}")
    value = text if key == "system" else _parse(text.strip())
    try:
        return ChatRecipe.model_validate(chat.model_dump() | {key: value})
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise UsageError(
            f"`{key}` = {shown(value)}: {problem[:1].lower()}{problem[1:]}", f"{key}: {fields[key].description}"
        ) from None


def change_settings(chat: ChatRecipe, settings: Sequence[str]) -> ChatRecipe:
    """``chat`` with every ``NAME=VALUE`` applied. Raises ``UsageError``."""
    for setting in settings:
        name, mark, text = setting.partition("=")
        if not mark:
            raise UsageError(f"--set {shown_name(setting)}: a setting is NAME=VALUE", "such as --set temperature=0.2")
        chat = change_setting(chat, name, text)
    return chat


def setting_key(name: str) -> str:
    """The key of [chat] that is meant by ``chat.top-p`` or ``top_p``."""
    return name.strip().removeprefix("chat.").replace("-", "_")


def _parse(text: str) -> object:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
