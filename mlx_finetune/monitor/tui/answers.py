"""The pane of the answers: the prompts of [eval] answered at each evaluation, with the words that changed."""

from collections.abc import Sequence
from functools import lru_cache

from rich.text import Text

from mlx_finetune.monitor.filmstrip import Frame, Piece, changed_words, frames
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.monitor.tui.blocks import Lines, fit, most, plain, title, wrap

CHANGED = "bold underline green"  # also told without colours


@lru_cache(256)
def _pieces(before: str, after: str) -> Sequence[Piece]:
    return changed_words(before, after)


def answers_lines(summary: Summary, *, width: int, chosen: int | None = None, answer_lines: int = 0) -> Lines:
    """All answers of one evaluation: frame ``chosen`` from 0, None for the last. ``answer_lines`` each, 0 for all."""
    strip = frames(summary)
    if not strip:
        more = 'the recipe\'s prompts are answered at every evaluation: [eval] prompts = ["..."]'
        return wrap(f" no answers so far; {more}", width, indent=" ", style="dim")
    place = len(strip) - 1 if chosen is None else max(0, min(chosen, len(strip) - 1))
    now, before = strip[place], strip[place - 1] if place else None
    lines: Lines = [_heading(now, before, place, len(strip), width)]
    for prompt, answer in now.answers.items():
        lines += most(wrap(Text.assemble((plain(prompt).strip(), "bold")), width - 1), 3, width=width)
        earlier = before.answers.get(prompt) if before else None
        shown = wrap(_marked(earlier, answer), width - 3)
        lines += [
            Text.assemble("  ", line)
            for line in (most(shown, answer_lines, width=width - 3) if answer_lines else shown)
        ]
        if not answer_lines:
            lines.append(Text(""))
    return lines


def _heading(now: Frame, before: Frame | None, place: int, count: int, width: int) -> Text:
    where = f"answers at step {now.step}" if now.step else "answers before training"
    line = title(where, width, f", . step through ({place + 1} of {count})" if count > 1 else "")
    if before is None or width < 100:
        return line
    return title(
        f"{where}, changed since step {before.step} underlined", width, f", . step through ({place + 1} of {count})"
    )


def _marked(before: str | None, after: str) -> Text:
    """The answer, its changed words marked. Cleaned first, so that nothing is cut between two marks."""
    clean = plain(after).strip()
    if not clean:
        return Text("(nothing)", "dim")
    if before is None:
        return Text(clean)
    line = Text()
    for piece in _pieces(plain(before).strip(), clean):
        line.append(piece.text, CHANGED if piece.is_changed else "")
    return line


def last_answers(summary: Summary, *, width: int, height: int) -> Lines:
    """The last answers in at most ``height`` lines, heading included; as many prompts as go in with two lines each."""
    strip = frames(summary)
    if not strip or height < 2:
        return []
    num_prompts = len(strip[-1].answers)
    per_answer = max(1, (height - 1) // max(1, num_prompts) - 1)
    lines = answers_lines(summary, width=width, answer_lines=per_answer)
    return [fit(line, width) for line in lines[:height]]
