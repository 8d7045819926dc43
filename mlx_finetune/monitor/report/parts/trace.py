"""What ``mlxft trace`` found: when each kind was learned, then layers and matrices. Read from RUN/trace/."""

import statistics
from collections.abc import Iterator, Sequence

from mlx_finetune.monitor.report.chart import Chart, Series, draw
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, details, foreign, section, table, tag
from mlx_finetune.monitor.report.traced import Asked, Category, Layer, Matrix, Point, Trace
from mlx_finetune.units import counted

_LOOKS = {"learned": "good", "known before": "open", "not learned": "bad", "too few": "open", "no answers": "open"}
_SERIES = ("second", "third", "first")
_MOST_CATEGORIES, _MOST_MODULES, _MOST_SAMPLES = 24, 16, 200
_HOW_TO_READ = (
    "Every checkpoint was loaded afresh and asked held-out questions. Right means that the right answer was more "
    "probable than each wrong one of the same kind; margin is by how many nats. Learned is said from the first "
    "checkpoint on where most questions are right, with 95 % certainty there and at every later one."
)


def trace(facts: ReportFacts) -> Html | None:
    """The section; None where no trace was made."""
    found = facts.trace
    if found is None:
        return None
    summary = found.summary
    figures = [figure for chart in _charts(found) if (figure := draw(chart)) is not None]
    return section(
        "trace",
        "When it was learned" if summary.probes.count else "How the weights moved",
        *_how_asked(summary.probes),
        _reload(found),
        *(_verdict(category) for category in summary.categories[:_MOST_CATEGORIES]),
        tag("div", *figures, class_="charts") if figures else None,
        *(_course(category) for category in summary.categories[:_MOST_CATEGORIES]),
        _samples(found),
        _matrix_table(found.matrices),
        *(tag("p", "Left out: ", foreign(text, 600), class_="note") for text in summary.left_out[:10]),
        tag("p", foreign(summary.note, 400), " The figures are in ", code("trace/*.csv"), ".", class_="note"),
    )


def _how_asked(asked: Asked) -> Iterator[Html]:
    """Nothing where nothing was asked."""
    if asked.count:
        split = f", split {asked.split}." if asked.split != "all" else "."
        yield tag("p", _HOW_TO_READ, class_="hint")
        yield tag("p", f"{counted(asked.count, 'probe')} of ", foreign(asked.source, 200), split, class_="same")


def _verdict(category: Category) -> Html:
    return tag("p", foreign(category.sentence, 400), class_=f"verdict {_LOOKS.get(category.outcome, 'open')}")


def _reload(found: Trace) -> Html | None:
    """Whether what was loaded is what was saved."""
    checked = [step for step in found.summary.steps if step.is_reload_right is not None]
    wrong = [step.step for step in checked if not step.is_reload_right]
    if wrong:
        text = f"Checkpoints with another loss than they were saved with: steps {', '.join(map(str, wrong[:10]))}."
        return tag("p", tag("b", "Not what was saved. "), text, class_="verdict bad")
    if not checked:
        return None
    most = max(step.reload_difference or 0.0 for step in checked)
    text = f"{counted(len(checked), 'checkpoint')} reloaded with the loss saved, at most {most:.0e} nats apart."
    return tag("p", text, class_="same")


def _charts(found: Trace) -> Iterator[Chart]:
    categories = found.summary.categories[:_MOST_CATEGORIES]
    yield _losses(categories)
    for category in categories:
        if all(point.num_right is not None for point in category.course):
            yield _share_right(category)
            yield _margin(category)
    yield from _layer_charts(found.layers)
    yield from _norm_charts(found.matrices)


def _losses(categories: Sequence[Category]) -> Chart:
    shown = categories[: len(_SERIES)]
    more = f" The first {len(shown)} of {len(categories)} kinds." if len(shown) < len(categories) else ""
    return Chart(
        "Loss of the right answers",
        tuple(
            Series(
                category.name[:40], look, _steps(category), [point.loss for point in category.course], is_dotted=True
            )
            for category, look in zip(shown, _SERIES, strict=False)
        ),
        note=f"Nats for each token of the answers to held-out questions; lower is better.{more}",
    )


def _share_right(category: Category) -> Chart:
    course, steps = category.course, _steps(category)
    return Chart(
        f"Right, {category.name[:40]}",
        (
            Series("right", "first", steps, [_share(point, category) for point in course], is_dotted=True),
            Series("95 %", "raw", steps, [100 * (point.low or 0.0) for point in course]),
            Series("", "raw", steps, [100 * (point.high or 0.0) for point in course]),
        ),
        unit="%",
        limit=("chance", 100 * category.chance),
    )


def _margin(category: Category) -> Chart:
    course, steps = category.course, _steps(category)
    return Chart(
        f"Margin, {category.name[:40]}",
        (
            Series("margin", "second", steps, [point.margin or 0.0 for point in course], is_dotted=True),
            Series("95 %", "raw", steps, [point.margin_low or 0.0 for point in course]),
            Series("", "raw", steps, [point.margin_high or 0.0 for point in course]),
        ),
        note="Log-probability of the right answer less that of the likeliest wrong one; above 0 it is right.",
    )


def _layer_charts(layers: Sequence[Layer]) -> Iterator[Chart]:
    steps = sorted({layer.step for layer in layers})
    trained = [step for step in steps if step > 0]
    shown = sorted({trained[0], trained[len(trained) // 2], trained[-1]}) if trained else []

    def over_blocks(step: int, name: str, look: str) -> Series | None:
        lines = [(layer.layer, getattr(layer, name)) for layer in layers if layer.step == step]
        known = [(float(block), value) for block, value in lines if value is not None]
        if not known:
            return None
        return Series(f"step {step:,}", look, [x for x, _ in known], [y for _, y in known], is_dotted=True)

    def chart(title: str, name: str, note: str, of: Sequence[int]) -> Chart | None:
        series = [over_blocks(step, name, look) for step, look in zip(of, _SERIES, strict=False)]
        known = tuple(one for one in series if one is not None)
        return Chart(title, known, note=note, across="block", from_zero=name != "base_cka") if known else None

    made = (
        chart(
            "Hidden states compared with the base, by block",
            "base_cka",
            "Linear CKA of the same tokens: 1 is the same up to rotation and scale. Blocks run from left to right.",
            shown,
        ),
        chart(
            "What the logit lens reads, base against tuned, by block",
            "base_kl",
            "KL(base || tuned) in nats of each block's output through the final norm and the head.",
            shown,
        ),
        chart(
            "How far a block is from the final answer",
            "lens_kl",
            "KL(final || lens) in nats: 0 after the last block. It says what can be read there, not that it is used.",
            sorted({steps[0], *shown[-1:]}) if steps else [],
        ),
    )
    yield from (one for one in made if one is not None)


def _norm_charts(matrices: Sequence[Matrix]) -> Iterator[Chart]:
    steps = sorted({one.step for one in matrices})
    by_step = {step: [one for one in matrices if one.step == step] for step in steps}

    def means(name: str) -> tuple[list[float], list[float]]:
        found = [
            (float(step), statistics.fmean(known))
            for step in steps
            if (known := [value for one in by_step[step] if (value := getattr(one, name)) is not None])
        ]
        return [x for x, _ in found], [y for _, y in found]

    yield Chart(
        "Size of the updates",
        (Series("mean", "first", *means("relative_norm"), is_dotted=True),),
        note="Frobenius norm of the update over that of the weight, mean over all trained matrices.",
    )
    yield Chart(
        "Directions of the updates",
        (
            Series("effective rank", "second", *means("effective_rank"), is_dotted=True),
            Series("stable rank", "third", *means("stable_rank"), is_dotted=True),
        ),
        note="In how many directions an update moves its weight: exp of the entropy of the singular values, and "
        "squared norm over the largest one squared.",
    )
    yield Chart(
        "Change from checkpoint to checkpoint",
        (
            Series("cosine", "second", *means("previous_cosine"), is_dotted=True),
            Series("overlap", "third", *means("previous_overlap"), is_dotted=True),
        ),
        note="Cosine of an update with that of the checkpoint before, and how much their top four directions share.",
    )


def _course(category: Category) -> Html:
    head = ("step", "right", "95 %", "rank", "margin", "95 %", "loss", "token rank")
    rows = [_point_cells(point, category) for point in category.course]
    return details(tag("span", foreign(category.name, 60), " as a table"), table(head, rows, class_="figures"))


def _point_cells(point: Point, category: Category) -> list[Child]:
    if point.num_right is None or point.low is None or point.high is None:
        cells: list[Child] = ["", "", "", "", ""]
    else:
        cells = [
            f"{_share(point, category):.0f} %",
            f"{100 * point.low:.0f} to {100 * point.high:.0f}",
            f"{point.rank or 0.0:.2f}",
            f"{point.margin or 0.0:+.2f}",
            f"{point.margin_low or 0.0:+.2f} to {point.margin_high or 0.0:+.2f}",
        ]
    return [f"{point.step:,}", *cells, f"{point.loss:.3f}", f"{point.token_rank:,.0f}"]


def _samples(found: Trace) -> Html | None:
    """The free answers, prompt by prompt over the steps."""
    samples = found.summary.samples[:_MOST_SAMPLES]
    if not samples:
        return None
    rows: list[list[Child]] = [
        [foreign(prompt, 200), f"{sample.step:,}", foreign(sample.answer, 300)]
        for prompt in dict.fromkeys(sample.prompt for sample in samples)
        for sample in samples
        if sample.prompt == prompt
    ]
    return details("Free answers at every checkpoint", table(("asked", "step", "answer"), rows, class_="texts"))


def _matrix_table(matrices: Sequence[Matrix]) -> Html | None:
    """The last step, each kind of matrix as a mean over blocks."""
    if not matrices:
        return None
    last = max(one.step for one in matrices)
    names = sorted({one.name for one in matrices if one.step == last})[:_MOST_MODULES]
    rows: list[list[Child]] = []
    for name in names:
        chosen = [one for one in matrices if one.step == last and one.name == name]
        rows.append(
            [
                foreign(name, 60),
                f"{len(chosen)}",
                _mean([one.norm for one in chosen], 2),
                _mean([one.relative_norm for one in chosen], 4),
                _mean([one.effective_rank for one in chosen], 2),
                _mean([one.stable_rank for one in chosen], 2),
            ]
        )
    head = ("matrix", "blocks", "norm", "over the weight's", "effective rank", "stable rank")
    return details(f"Updates at step {last:,}, mean over blocks", table(head, rows, class_="figures"))


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known else ""


def _steps(category: Category) -> list[float]:
    return [float(point.step) for point in category.course]


def _share(point: Point, category: Category) -> float:
    return 100 * (point.num_right or 0) / category.num_probes
