"""Commands that change how the model answers: /set, /params and /schema."""

import shlex
from pathlib import Path

from mlx_finetune.app.chat.session import Session
from mlx_finetune.app.chat.talking import set_system
from mlx_finetune.errors import UsageError
from mlx_finetune.model.answers.constrain import Grammar
from mlx_finetune.recipe.sampling import change_setting, setting_key
from mlx_finetune.recipe.schema import ChatRecipe
from mlx_finetune.scoring.json_schema import Validator, read_schema


def set_one(session: Session, rest: str) -> None:
    """/set: show the settings, or change one with the checks of the recipe. Raises ``UsageError``."""
    if not rest:
        for name, value in session.chat.model_dump().items():
            if name != "system":
                session.screen.talk(f"  {name} = {value}")
        session.screen.talk(f"  seed = {session.seed}")
        return
    name, _, text = rest.replace("=", " ", 1).partition(" ")
    if not text.strip():
        example = session.chat.model_dump().get(name, 0)
        raise UsageError(f"/set {name} needs a value", f"for instance /set {name} {example}")
    if name == "system":
        set_system(session, text.strip())
        return
    if name == "seed":
        session.seed, session.num_draws = _seed(text.strip()), 0
    else:
        session.chat = _checked(session, change_setting(session.chat, name, text))
    value = session.seed if name == "seed" else session.chat.model_dump()[setting_key(name)]
    session.screen.talk(f"{name} = {value}")


def set_several(session: Session, rest: str) -> None:
    """/params: show every setting with its meaning, or change several, all or none. Raises ``UsageError``."""
    if not rest:
        for line in _setting_lines(session):
            session.screen.talk(line)
        return
    chat, seed = session.chat, None
    for setting in _split(rest):
        name, mark, text = setting.partition("=")
        if not mark or not text:
            raise UsageError(f"/params {setting}: a setting is NAME=VALUE", "for instance /params temperature=0.2")
        if name == "seed":
            seed = _seed(text)
        elif setting_key(name) == "system":
            raise UsageError("/params does not change the system message", "/system TEXT does")
        else:
            chat = change_setting(chat, name, text)
    session.chat = _checked(session, chat)
    if seed is not None:
        session.seed, session.num_draws = seed, 0
    for setting in _split(rest):
        key = setting_key(setting.partition("=")[0])
        session.screen.talk(f"{key} = {session.seed if key == 'seed' else session.chat.model_dump()[key]}")


def set_schema(session: Session, rest: str) -> None:
    """/schema: hold answers to the schema in a file, let them be free again, or say which holds.

    Raises ``MlxftError`` for a file that is no schema, or one that cannot be enforced; the one before holds then.
    """
    if rest == "off":
        session.grammar = session.schema = session.validator = None
    elif rest:
        names = _split(rest)
        if len(names) != 1:
            raise UsageError("/schema needs one file name", "for instance /schema answer.schema.json")
        hold_to_schema(session, Path(names[0]).expanduser())
    free = "answers are free; /schema FILE holds them to a JSON Schema"
    session.screen.talk(f"answers are held to {session.schema}; /schema off frees them" if session.schema else free)


def hold_to_schema(session: Session, path: Path) -> None:
    """Hold answers to the schema in ``path``. Raises ``MlxftError`` as ``set_schema`` does."""
    schema = read_schema(path)
    grammar = Grammar(session.opened.tokenizer, schema)
    _refuse_penalty(session.chat, path)
    session.grammar, session.schema, session.validator = grammar, path, Validator(schema)


def _setting_lines(session: Session) -> list[str]:
    """Name, value and meaning of each setting; those that are not the recipe's say what that had."""
    values, asked = session.chat.model_dump(), session.opened.chat.model_dump()
    rows = [
        (f"{name} = {value}", f"{ChatRecipe.model_fields[name].description}", value != asked[name], asked[name])
        for name, value in values.items()
        if name != "system"
    ]
    rows.append((f"seed = {session.seed}", "Fixes the draws: the same questions get the same answers.", False, ""))
    rows.append((f"schema = {session.schema or 'off'}", "JSON Schema that answers are held to (/schema).", False, ""))
    width = max(len(shown) for shown, *_ in rows)
    return [
        f"  {shown:<{width}}  {meaning}" + (f" (was {before})" if is_changed else "")
        for shown, meaning, is_changed, before in rows
    ]


def _checked(session: Session, chat: ChatRecipe) -> ChatRecipe:
    """``chat``, unless it does not go with the schema. Raises ``UsageError``."""
    if session.schema is not None:
        _refuse_penalty(chat, session.schema)
    return chat


def _refuse_penalty(chat: ChatRecipe, schema: Path) -> None:
    if chat.repetition_penalty != 1:
        raise UsageError(
            f"the schema {schema} and repetition_penalty = {chat.repetition_penalty:g} do not go together: it falls on "
            "brackets and quotes first",
            "/set repetition_penalty 1, or /schema off",
        )


def _split(rest: str) -> list[str]:
    """Words, those in quotes together."""
    try:
        return shlex.split(rest)
    except ValueError:
        return rest.split()


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise UsageError(f"`seed` = {text}: a whole number from 0 to {2**31 - 1}")
    return int(text)
