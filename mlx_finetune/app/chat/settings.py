"""Commands that change how the model answers: /set."""

from mlx_finetune.app.chat.session import Session
from mlx_finetune.app.chat.talking import set_system
from mlx_finetune.errors import UsageError
from mlx_finetune.recipe.sampling import change_setting, setting_key


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
        session.chat = change_setting(session.chat, name, text)
    value = session.seed if name == "seed" else session.chat.model_dump()[setting_key(name)]
    session.screen.talk(f"{name} = {value}")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise UsageError(f"`seed` = {text}: a whole number from 0 to {2**31 - 1}")
    return int(text)
