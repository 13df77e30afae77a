"""The results beside chance, in the groups that a reader looks for."""

import dataclasses

from rwkv_jax.evaluation.figure import is_rank, shown
from rwkv_jax.evaluation.report.run_files import RunFiles


@dataclasses.dataclass(frozen=True)
class Line:
    """One figure: its name within the group, its value and chance, as shares or as ranks."""

    name: str
    value: float
    chance: float

    @property
    def title(self) -> str:
        """In words: "label/text_to_image/R@10" -> "label: text to image, R@10"."""
        *before, direction, metric = ["", "", *self.name.replace("_", " ").split("/")]
        kind = f"{before[-1]}: " if before[-1] else ""
        return kind + (f"{direction}, {metric}" if direction else metric)

    @property
    def is_share(self) -> bool:
        """Whether a bar up to 100% can show it."""
        return not is_rank(self.name)

    @property
    def shown(self) -> tuple[str, str]:
        """Value and chance."""
        return shown(self.name, self.value), shown(self.name, self.chance)

    @property
    def times_chance(self) -> str:
        """How many times better than guessing, e.g. "34" or "2.1"; less, for ranks."""
        better, worse = (self.value, self.chance) if self.is_share else (self.chance, self.value)
        ratio = better / worse if worse else 0.0
        return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


@dataclasses.dataclass(frozen=True)
class Group:
    """The figures of one evaluator; `more` are those of single kinds of text."""

    title: str
    explanation: str
    headline: Line
    lines: tuple[Line, ...]
    more: tuple[Line, ...] = ()


def groups(run: RunFiles) -> list[Group]:
    """One group for each evaluator, in the order of the config."""
    found = []
    for ask in run.asked.retrieval:
        lines = _lines(run, ask.name)
        every = tuple(line for line in lines if line.name.count("/") == 1)
        by_kind = tuple(line for line in lines if line.name.count("/") == 2)
        headline = next(line for line in every if line.name == f"text_to_image/R@{max(ask.ks)}")
        explanation = (
            "R@k: how often a right picture is among the k nearest to a text, "
            "and a right text among the k nearest to a picture. Ranks count from 1, up to the best "
            "right answer."
        )
        found.append(
            Group(f"Retrieval on {_words(ask.split)}", explanation, headline, every, by_kind)
        )
    for task in run.asked.zero_shot:
        lines = _lines(run, task.name)
        headline = next(line for line in lines if line.name == f"top_{min(task.ks)}")
        explanation = (
            f"The nearest of the {task.label} names, with the prompts “{task.prompts}”; "
            "nothing was trained for it."
        )
        title = f"Zero-shot {_words(task.label)} on {_words(task.split)}"
        found.append(Group(title, explanation, headline, tuple(lines)))
    for probe in run.asked.linear_probe:
        lines = _lines(run, probe.name)
        headline = next((line for line in lines if line.name == "top_1"), lines[0])
        explanation = (
            "A linear classifier on frozen picture features, fitted on "
            f"{_words(probe.train_split)}; chance is to say the commonest class."
        )
        title = f"Linear probe {_words(probe.label)} on {_words(probe.test_split)}"
        found.append(Group(title, explanation, headline, tuple(lines)))
    return found


def _lines(run: RunFiles, name: str) -> list[Line]:
    metrics, chance = run.results["metrics"], run.results["chance"]
    return [
        Line(full.removeprefix(f"{name}/"), value, chance[full])
        for full, value in metrics.items()
        if full.startswith(f"{name}/")
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")
