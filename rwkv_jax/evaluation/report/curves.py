"""Line charts as inline SVG, coloured by the page's style sheet, so that they follow light and
dark.
"""

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from rwkv_jax.evaluation.report.run_files import RunFiles

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
MOST_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Chart:
    """One panel.

    Attributes:
      title: what it shows.
      lines: (label, points) of each line, at least one.
      note: the last values, in words.
      chance: a dashed level, if there is one.
      share: values are shares, shown as percentages.
    """

    title: str
    lines: tuple[tuple[str, Points], ...]
    note: str = ""
    chance: float | None = None
    share: bool = False

    def svg(self) -> Markup:
        """The chart, with a description for those who do not see it."""
        return line_chart(self)


# (title, ((label, metric), ...), a share?)
TRAINING: tuple[tuple[str, tuple[tuple[str, str], ...], bool], ...] = (
    ("Loss", (("loss", "train/loss"),), False),
    ("Learning rate", (("learning rate", "train/learning_rate"),), False),
    (
        "Gradient norm",
        (("image", "train/gradient_norm/image"), ("text", "train/gradient_norm/text")),
        False,
    ),
    (
        "Update norm",
        (("image", "train/update_norm/image"), ("text", "train/update_norm/text")),
        False,
    ),
    (
        "Parameter norm",
        (("image", "train/parameter_norm/image"), ("text", "train/parameter_norm/text")),
        False,
    ),
    ("Logit scale", (("logit scale", "train/logit_scale"),), False),
    ("Logit bias", (("logit bias", "train/logit_bias"),), False),
    ("Images per second", (("images/s", "train/images_per_second"),), False),
    ("Time spent waiting for data", (("share", "train/data_wait_share"),), True),
)


def training_charts(run: RunFiles) -> list[Chart]:
    """What was logged of the training steps."""
    charts = []
    for title, series, share in TRAINING:
        lines = tuple((label, run.series(metric)) for label, metric in series)
        lines = tuple((label, points) for label, points in lines if points)
        if lines:
            note = ", ".join(f"{label} {_number(points[-1][1], share)}" for label, points in lines)
            charts.append(Chart(title, lines, f"last: {note}", share=share))
    return charts


def evaluation_charts(run: RunFiles) -> list[Chart]:
    """The course of every headline figure that was measured more than once."""
    charts = []
    names = [f"{each.name}/text_to_image/R@{max(each.ks)}" for each in run.asked.retrieval]
    names += [f"{each.name}/top_{min(each.ks)}" for each in run.asked.zero_shot]
    names += [f"{each.name}/top_1" for each in run.asked.linear_probe]
    for name in names:
        points = run.series(name) or run.series(f"eval/{name}")
        if len(points) > 1:
            chance = run.results["chance"].get(name)
            note = f"last: {points[-1][1]:.1%}, chance {chance:.1%}" if chance else ""
            title = name.replace("_", " ").replace("/", " · ")
            charts.append(Chart(title, ((name, points),), note, chance, share=True))
    return charts


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, share: bool = False) -> str:
    if share:
        return f"{value:.3g}" if value != value else f"{100 * value:.3g}%"
    if value and (abs(value) < 1e-4 or abs(value) >= 1e5):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _thin(points: Points) -> Points:
    every = -(-len(points) // MOST_POINTS)
    return [*points[::every], points[-1]] if every > 1 else points


def line_chart(chart: Chart) -> Markup:
    """An SVG of the lines over the steps; y begins at 0 where that wastes little room."""
    finite = [[(x, y) for x, y in points if math.isfinite(y)] for _, points in chart.lines]
    xs = [x for points in finite for x, _ in points] or [0.0]
    ys = [y for points in finite for _, y in points] or [0.0]
    if chart.chance is not None:
        ys.append(chart.chance)
    low, high = min(ys), max(ys)
    if 0 < low < 0.5 * high or chart.share:
        low = min(0.0, low)
    if high == low:
        high = low + (abs(low) or 1)
    first, last = min(xs), max(xs)
    last = last if last > first else first + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first)
        up = (y - low) / (high - low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    def level(css: str, value: float) -> str:
        y = place(first, value)[1]
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        return f'<line class="{css}" {ends}/>'

    parts = []
    for value in ticks(low, high):
        parts.append(level("grid", value))
        y = place(first, value)[1]
        label = _number(value, chart.share)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for value in ticks(first, last):
        x, _ = place(value, low)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 9}" text-anchor="middle">{_step(value)}</text>'
        )
    if chart.chance is not None:
        parts.append(level("chance", chart.chance))
    for number, points in enumerate(finite, 1):
        if points:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in _thin(points)))
            parts.append(f'<polyline class="line line-{number}" points="{path}"/>')
            x, y = place(*points[-1])
            parts.append(f'<circle class="dot line-{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
    description = escape(f"{chart.title} over the training steps; {chart.note}")
    return Markup(  # every part above is a number or escaped
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{description}">'
        + "".join(parts)
        + "</svg>"
    )


def _step(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
