"""How much a linear classifier gets out of frozen picture features.

CLIP's protocol (Radford et al. 2021, appendix A.3): logistic regression by L-BFGS, at most 1,000
steps, with the strength of the L2 penalty that is best on validation pictures out of 96 steps over
[1e-6, 1e6], searched from coarse to fine; then fitted again on the training and the validation
pictures together, and judged on the test pictures once. Where no validation split is named, a share
of the training pictures, drawn by a seed, takes its place.

CLIP takes the features before the projection into the space that pictures and texts share.
RWKV-CLIP has no projection, so these are the encoder's features themselves, before they are scaled
to length 1. They are neither standardised nor otherwise changed.

A label of which a picture may have several values is fitted as independent sigmoids with one
penalty. All penalties of a round of the search, and all draws of a few-shot probe, are solved at
once; datasets come one after another. On several devices of this process the rows are split over
them.
"""

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np

from rwkv_jax.evaluation import metrics
from rwkv_jax.evaluation.config import LinearProbeConfig
from rwkv_jax.evaluation.features import EmbeddedSplit
from rwkv_jax.evaluation.figure import Figure
from rwkv_jax.evaluation.probe.examples import Examples, examples_of, hold_out
from rwkv_jax.evaluation.probe.few_shot import few_shot
from rwkv_jax.evaluation.probe.fit import SEARCH_TOLERANCE, Classifier, Problem
from rwkv_jax.evaluation.probe.judge import JUDGES, Judge
from rwkv_jax.evaluation.probe.rows import rows_mesh
from rwkv_jax.evaluation.probe.search import STRENGTHS, find_peak


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search came to.

    Attributes:
      strength: lambda, the best on the validation rows.
      classifier: fitted with it on training and validation rows.
      searched: by strength, what was fitted on the training rows alone.
    """

    strength: float
    classifier: Classifier
    searched: dict[float, Classifier]


def search_and_fit(train: Examples, validation: Examples, classes: int, judge: Judge) -> Found:
    """Looks for the best strength on `validation`, and fits with it on all the rows.

    A class that has no row scores -inf: its bias would otherwise wander off without end.
    """
    mesh = rows_mesh()
    together = train.join(validation)
    present = np.arange(classes) if train.multi_label else np.unique(together.targets)

    def problem(examples: Examples) -> Problem:
        targets = examples.targets
        if not examples.multi_label:
            targets = np.searchsorted(present, targets)
        return Problem(examples.features, targets, len(present), mesh)

    searched = problem(train)
    fitted: dict[int, Classifier] = {}

    def score(places: list[int]) -> list[float]:
        starts = [_nearest(fitted, place) for place in places] if fitted else None
        strengths = [STRENGTHS[place] for place in places]
        new = searched.fit(strengths, starts, SEARCH_TOLERANCE)
        fitted.update(zip(places, new, strict=True))
        return [
            judge(_spread(each, present, classes).scores(validation.features), validation.targets)
            for each in new
        ]

    best = find_peak(score)
    (final,) = problem(together).fit([STRENGTHS[best]], [fitted[best]])
    return Found(
        STRENGTHS[best],
        _spread(final, present, classes),
        {STRENGTHS[place]: _spread(each, present, classes) for place, each in fitted.items()},
    )


def _nearest(fitted: dict[int, Classifier], place: int) -> Classifier:
    return fitted[min(fitted, key=lambda known: abs(known - place))]


def _spread(classifier: Classifier, present: np.ndarray, classes: int) -> Classifier:
    """The classifier of all classes, given that of those that are present."""
    if len(present) == classes:
        return classifier
    weights = np.zeros((classes, classifier.weights.shape[1]), np.float32)
    bias = np.full(classes, -np.inf, np.float32)
    weights[present], bias[present] = classifier.weights, classifier.bias
    return dataclasses.replace(classifier, weights=weights, bias=bias)


def linear_probe(
    train: EmbeddedSplit,
    test: EmbeddedSplit,
    config: LinearProbeConfig,
    *,
    validation: EmbeddedSplit | None = None,
) -> Iterator[Figure]:
    """Figures "linear_probe/SPLIT/LABEL/top_1", ".../mean_per_class", and the config's own metric.

    A label with several values a picture has that metric alone. With `config.shots` there follow
    ".../4_shot/top_1", the mean over the draws, and ".../4_shot/top_1_std", their standard
    deviation. Chance is to answer the commonest class of the training pictures always.

    Args:
      train: to fit on.
      test: looked at once.
      config: what is asked for.
      validation: to choose the penalty on; None holds out a share of `train`.

    Raises:
      ValueError: the dataset has no such label, too few pictures have it, or the metric does not
        go with it.
    """
    fit_on, judged = examples_of(train, config.label), examples_of(test, config.label)
    if len(fit_on) < 2:
        raise ValueError(
            f"a linear probe of {config.label!r} needs pictures that have it: "
            f"{train.name} has {len(fit_on)}, {test.name} {len(judged)}"
        )
    if fit_on.multi_label != (config.metric == "map_11") or (fit_on.multi_label and config.shots):
        raise ValueError(
            f"{config.name}: a label with {'several values' if fit_on.multi_label else 'one value'}"
            f" a picture cannot have metric {config.metric!r} and shots {config.shots}: map_11 is"
            " for several values, and shots and the others for one"
        )
    if config.max_train is not None and len(fit_on) > config.max_train:
        drawn = np.random.default_rng(config.seed).choice(len(fit_on), config.max_train, False)
        fit_on = fit_on.take(np.sort(drawn))
    if validation is None:
        fit_on, held_out = hold_out(fit_on, config.validation_share, config.seed)
    else:
        held_out = examples_of(validation, config.label)
    classes = len(train.class_names[config.label])
    judge = JUDGES[config.metric]

    found = search_and_fit(fit_on, held_out, classes, judge)
    print(f"{config.name}: lambda {found.strength:.3g}", file=sys.stderr, flush=True)
    scores = found.classifier.scores(judged.features)
    yield from _figures(config, scores, fit_on.join(held_out), judged)
    if config.shots:
        by_shots = few_shot(
            fit_on,
            held_out,
            judged,
            classes=classes,
            shots=config.shots,
            seeds=[config.seed + i for i in range(config.shot_seeds)],
            judge=JUDGES["accuracy"],
        )
        for shots, values in by_shots.items():
            name = f"{config.name}/{shots}_shot/top_1"
            yield Figure(name, float(np.mean(values)), 1 / classes)
            yield Figure(f"{name}_std", float(np.std(values, ddof=1)), 0.0)


def _figures(
    config: LinearProbeConfig, scores: np.ndarray, train: Examples, test: Examples
) -> Iterator[Figure]:
    if test.multi_label:
        # of a random order the precision is the share of positives at every recall
        chance = float(np.nanmean(test.targets))
        yield Figure(f"{config.name}/map_11", JUDGES["map_11"](scores, test.targets), chance)
        return
    place = metrics.label_rank(scores, test.targets)
    by_count = np.argsort(-np.bincount(train.targets, minlength=scores.shape[1]), kind="stable")
    commonest = [float(np.isin(test.targets, by_count[:k]).mean()) for k in (1, 5)]
    yield Figure(f"{config.name}/top_1", metrics.recall_at_k(place, 1), commonest[0])
    yield Figure(
        f"{config.name}/mean_per_class",
        metrics.mean_per_class_accuracy(place == 1, test.targets),
        1 / len(np.unique(test.targets)),
    )
    if config.metric in ("top_1_5", "roc_auc"):
        chance = sum(commonest) / 2 if config.metric == "top_1_5" else 0.5
        value = JUDGES[config.metric](scores, test.targets)
        yield Figure(f"{config.name}/{config.metric}", value, chance)
