"""CLIP's search for the strength of the L2 penalty, from coarse to fine.

The strengths are 96 steps of an eighth of a decade over [1e-6, 1e6] (97 values with both ends).
The search looks at every 16th, {1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6}, then goes round the peak in
steps half as wide, until they are an eighth of a decade: at most 7 + 4 x 2 fits instead of 97.

Source: Radford et al. 2021, appendix A.3.
"""

from collections.abc import Callable, Generator, Sequence

STEPS_A_DECADE = 8
STRENGTHS = tuple(10 ** (i / STEPS_A_DECADE - 6) for i in range(12 * STEPS_A_DECADE + 1))
COARSE = 2 * STEPS_A_DECADE
ROUNDS = 5  # 16, 8, 4, 2 and 1 steps wide


def search() -> Generator[list[int], Sequence[float], int]:
    """Yields the places in `STRENGTHS` to look at, takes their scores, returns the best place.

    Of equal scores the strongest penalty's counts as the best. Yields `ROUNDS` times, never twice
    the same place.
    """
    known: dict[int, float] = {}
    asked = list(range(0, len(STRENGTHS), COARSE))
    for halving in range(1, ROUNDS + 1):
        scores = yield asked
        known.update(zip(asked, scores, strict=True))
        peak = max(known, key=lambda place: (known[place], place))
        width = COARSE >> halving
        asked = [place for place in (peak - width, peak + width) if 0 <= place < len(STRENGTHS)]
    return peak


def find_peak(score: Callable[[list[int]], Sequence[float]]) -> int:
    """The best place, by a function that scores some places."""
    rounds = search()
    asked = next(rounds)
    while True:
        try:
            asked = rounds.send(score(asked))
        except StopIteration as end:
            return end.value
