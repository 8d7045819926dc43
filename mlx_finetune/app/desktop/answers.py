"""``mlxft launch test``: the prompts of a run and those of a person, answered by the base and by the run, side by side.

The model is loaded once. Every answer takes the likeliest words, so that a second look shows the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mlx_finetune.app.generate import Answerer, Prompt, answer_prompt, question
from mlx_finetune.app.open import Opened, base_model
from mlx_finetune.app.text import printable, side_by_side
from mlx_finetune.errors import MlxftError

OWN = ("What can you help me with?", "Explain in two sentences why the sky is blue.")
MAX_PROMPTS = 5


def prompts_of(settings: object) -> Sequence[str]:
    """The prompts of [eval] in a run's settings, a few at most; general ones where it has none."""
    section = settings.get("eval") if isinstance(settings, dict) else None  # pyright: ignore[reportUnknownVariableType]
    found = section.get("prompts") if isinstance(section, dict) else None  # pyright: ignore[reportUnknownVariableType]
    prompts = [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
    return prompts[:MAX_PROMPTS] or OWN


class SideBySide:
    """Answers prompts with the base and with the run ``name``. ``say`` shows a line, ``width`` is the terminal's."""

    def __init__(self, opened: Opened, name: str, say: Callable[[str], None], width: int) -> None:
        self._opened = opened
        self._name = name
        self._chat = opened.chat.model_copy(update={"temperature": 0.0})
        self._say = say
        self._width = width

    def show(self, text: str) -> None:
        """Ask both and show their answers. A prompt that cannot be asked is said to be one."""
        self._say(f"\n> {printable(text)}")
        try:
            tuned = self._answer(text, self._opened)
            if not self._opened.has_base:
                self._say(printable(tuned))
                return
            with base_model(self._opened) as base:
                before = self._answer(text, replace(self._opened, model=base))
        except MlxftError as error:
            self._say(f"error: {error.message}")
            return
        for line in self._lines(before, tuned):
            self._say(line)

    def _answer(self, text: str, opened: Opened) -> str:
        prompt = Prompt(question(text, self._chat), {"prompt": text}, "")
        answerer = Answerer(opened.model, opened.tokenizer, opened.data, self._chat, seed=0)
        return answer_prompt(answerer, prompt, 0).text

    def _lines(self, before: str, tuned: str) -> Iterator[str]:
        yield from side_by_side(("base", before), (self._name, tuned), width=self._width)
