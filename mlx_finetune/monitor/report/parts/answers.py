"""The answer filmstrip: the user's own prompts before training and at every evaluation, changed words marked.

Every frame stands in the page, so that it can be read without JavaScript; the script shows one beside the base's. Where
a run has more answers than a page should carry, frames in between are left out, and that is said.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from mlx_finetune.monitor.filmstrip import Frame, changed_words, frames
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, cut, foreign, section, tag
from mlx_finetune.units import counted

MAX_ANSWER_CHARACTERS = 4000
MAX_PROMPT_CHARACTERS = 2000
#: Bytes of all frames together.
BUDGET_BYTES = 900_000


def answers(facts: ReportFacts) -> Html | None:
    """The section; None where no prompt was answered."""
    strip = [_cut_frame(frame) for frame in frames(facts.summary)]
    if not strip:
        return None
    best = facts.summary.best_evaluation
    shown, prompts = _fitting(strip, best.step if best else 0)
    return section(
        "answers",
        "Answers before, during and after",
        tag("p", _introduction(shown), class_="hint"),
        _slider(shown, best.step if best else 0) if len(shown) > 1 else None,
        *(_prompt(prompt, shown, best.step if best else 0) for prompt in prompts),
        _left_out(strip, shown, prompts),
    )


def _introduction(shown: Sequence[Frame]) -> str:
    if len(shown) == 1:
        return "Your own prompts, answered once; a later evaluation would show what changes."
    return (
        "Your own prompts, answered by the model before training and at every evaluation. Marked words are not in the "
        "answer before it."
    )


def _cut_frame(frame: Frame) -> Frame:
    return Frame(frame.step, {prompt: cut(text, MAX_ANSWER_CHARACTERS) for prompt, text in frame.answers.items()})


def _fitting(strip: Sequence[Frame], best_step: int) -> tuple[list[Frame], list[str]]:
    """Frames and prompts that stay within the budget; the first, the best and the last frame go last of all."""
    prompts = list(dict.fromkeys(prompt for frame in strip for prompt in frame.answers))
    kept = {strip[0].step, best_step, strip[-1].step}
    sizes = {frame.step: _size(frame, prompts) for frame in strip}
    room = BUDGET_BYTES - sum(len(prompt.encode("utf-8", "replace")) for prompt in prompts)
    room -= sum(sizes[frame.step] for frame in strip if frame.step in kept)
    others = [frame.step for frame in strip if frame.step not in kept]
    average = max(1, sum(sizes[step] for step in others) // max(1, len(others)))
    count = max(0, min(len(others), room // average))
    kept |= {others[len(others) * place // count] for place in range(count)}
    shown = [frame for frame in strip if frame.step in kept]
    return shown, _first_prompts(shown, prompts)


def _first_prompts(shown: Sequence[Frame], prompts: Sequence[str]) -> list[str]:
    """As many as fit, at least one."""
    total, count = 0, 0
    for prompt in prompts:
        total += len(prompt) + sum(_size(frame, [prompt]) for frame in shown)
        if count and total > BUDGET_BYTES:
            break
        count += 1
    return list(prompts[:count])


def _size(frame: Frame, prompts: Sequence[str]) -> int:
    """About the bytes of a frame's answers: marks around changed words may double a text."""
    return sum(
        2 * len(frame.answers[prompt].encode("utf-8", "replace")) + 200 for prompt in prompts if prompt in frame.answers
    )


def _slider(shown: Sequence[Frame], best_step: int) -> Html:
    """Hidden until the script takes it; ``data-steps`` has the step of each position."""
    place = next((index for index, frame in enumerate(shown) if frame.step == best_step and index), len(shown) - 1)
    steps = ",".join(str(frame.step) for frame in shown)
    slider = tag(
        "input", type="range", min=1, max=len(shown) - 1, value=place, step=1, data_steps=steps, id="frame-slider"
    )
    label = tag("label", "Answer at ", tag("output", "", for_="frame-slider"), for_="frame-slider")
    return tag("div", label, slider, class_="slider", hidden=True)


def _prompt(prompt: str, shown: Sequence[Frame], best_step: int) -> Html:
    answered = [(place, frame) for place, frame in enumerate(shown) if prompt in frame.answers]
    texts: Mapping[int, str] = {place: frame.answers[prompt] for place, frame in answered}
    before = {later: (_when(shown[earlier]), texts[earlier]) for earlier, later in pairwise(texts)}
    return tag(
        "article",
        tag("h3", tag("span", "Prompt", class_="who"), foreign(prompt, MAX_PROMPT_CHARACTERS)),
        tag(
            "div",
            *(_frame(place, frame, texts[place], before.get(place), best_step) for place, frame in answered),
            class_="frames",
        ),
        class_="prompt",
    )


def _when(frame: Frame) -> str:
    return "before training" if frame.step == 0 else f"step {frame.step:,}"


def _frame(place: int, frame: Frame, text: str, earlier: tuple[str, str] | None, best_step: int) -> Html:
    """``earlier`` is the answer before this one, with when it was given."""
    is_best = bool(frame.step) and frame.step == best_step
    when, before = earlier or ("", None)
    badge = tag("span", "lowest validation loss", class_="badge finished") if is_best else None
    same = f"the same as {'at ' * when.startswith('step')}{when}" if before == text else ""
    return tag(
        "div",
        tag("h4", _when(frame), " ", badge, tag("span", same, class_="same") if same else None),
        tag("bdi", *_marked(before, text), class_="text"),
        class_="frame",
        data_frame=place,
    )


def _marked(before: str | None, text: str) -> list[Child]:
    if not text.strip():
        return [tag("span", "(nothing)", class_="same")]
    if before is None:
        return [text]
    return [tag("mark", piece.text) if piece.is_changed else piece.text for piece in changed_words(before, text)]


def _left_out(strip: Sequence[Frame], shown: Sequence[Frame], prompts: Sequence[str]) -> Html | None:
    total = len(dict.fromkeys(prompt for frame in strip for prompt in frame.answers))
    parts = [f"{len(shown)} of {counted(len(strip), 'evaluation')} are shown"] if len(shown) < len(strip) else []
    parts += [f"{len(prompts)} of {counted(total, 'prompt')} are shown"] if len(prompts) < total else []
    return (
        tag("p", f"{'; '.join(parts)}: the page would be too large. All are in samples.jsonl.", class_="note")
        if parts
        else None
    )
