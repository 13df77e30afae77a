"""Where each query's best right candidate stands among the wrong ones, at any size.

The rule, whatever the size: a candidate's score is its cosine similarity to the query, summed in
float64 and rounded to float32, so that equal candidates tie wherever they stand; a wrong candidate
that ties with the best right one stands before it. `similarity` and `metrics.best_positive_rank`
are that rule as it is written down, and serve small problems.

A large problem runs on the device in blocks of queries by candidates, in float32. A float32 score
is off by `rounding` at most, so most candidates are certainly before or behind the best right one;
those that are too near to tell, one in thousands, are computed again by the rule. Both roads give
the same ranks, and memory does not grow with the problem: with the sizes below about 0.5 GB on the
device and 0.5 GB on the host beside the features themselves, at 1,000 pictures as at 1,000,000.
"""

import collections
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

from rwkv_jax.evaluation import metrics
from rwkv_jax.evaluation.progress import progress

SMALL = 2**24  # pairs; up to here numpy is done before a device has compiled its program
QUERIES, CANDIDATES = 2048, 16_384  # a block: scores [2048, 16384] float32 are 134 MB
PAIRS = 2**13  # computed by the rule at once: 2 * 8192 * 640 * 8 bytes are 84 MB
DENSE = 2**18  # near candidates in a block from which one product is quicker than pair by pair


def similarity(
    queries: Float[np.ndarray, "Q D"], candidates: Float[np.ndarray, "C D"]
) -> Float32[np.ndarray, "Q C"]:
    """Cosine similarities of features of length 1, summed in float64, rounded to float32."""
    return (queries.astype(np.float64) @ candidates.astype(np.float64).T).astype(np.float32)


def ranks(
    queries: Float[np.ndarray, "Q D"],
    query_concept: Int[np.ndarray, " Q"],
    candidates: Float[np.ndarray, "C D"],
    candidate_concept: Int[np.ndarray, " C"],
) -> Int[np.ndarray, " Q"]:
    """1 + how many candidates of other concepts score as high as the best of the query's own.

    Raises:
      ValueError: a feature is not finite, or a query has no candidate of its concept.
    """
    for name, features in (("query", queries), ("candidate", candidates)):
        broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if broken.size:
            raise ValueError(
                f"{broken.size} {name} features are not finite, the first is {broken[0]}: "
                "the parameters are broken"
            )
    queries, candidates = queries.astype(np.float32), candidates.astype(np.float32)
    if len(queries) * len(candidates) <= SMALL:
        return _by_the_rule(queries, query_concept, candidates, candidate_concept)
    return _in_blocks(queries, query_concept, candidates, candidate_concept)


def _by_the_rule(
    queries: Float[np.ndarray, "Q D"],
    query_concept: Int[np.ndarray, " Q"],
    candidates: Float[np.ndarray, "C D"],
    candidate_concept: Int[np.ndarray, " C"],
    chunk: int = 1024,
) -> Int[np.ndarray, " Q"]:
    parts = [
        metrics.best_positive_rank(
            similarity(queries[i : i + chunk], candidates),
            query_concept[i : i + chunk, None] == candidate_concept,
        )
        for i in range(0, len(queries), chunk)
    ]
    return np.concatenate(parts)


def rounding(queries: Float[np.ndarray, "Q D"], candidates: Float[np.ndarray, "C D"]) -> float:
    """A bound on how far a float32 score lies from the rule's.

    Whatever the order of the sum, its error is at most D u / (1 - D u) |q| |c| with u = 2^-24
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); the rule's own rounding adds u.
    Twice that, because accelerators make a float32 product from several of lower precision.
    """
    longest = np.linalg.norm(queries, axis=1).max() * np.linalg.norm(candidates, axis=1).max()
    return 2 * (queries.shape[1] + 8) * 2.0**-24 * float(longest)


def _in_blocks(
    queries: Float[np.ndarray, "Q D"],
    query_concept: Int[np.ndarray, " Q"],
    candidates: Float[np.ndarray, "C D"],
    candidate_concept: Int[np.ndarray, " C"],
) -> Int[np.ndarray, " Q"]:
    concepts, numbers = np.unique(
        np.concatenate([query_concept, candidate_concept]), return_inverse=True
    )
    assert len(concepts) < 2**31
    query_number = numbers[: len(queries)].astype(np.int32)
    candidate_number = numbers[len(queries) :].astype(np.int32)
    best = best_right_score(queries, query_number, candidates, candidate_number)
    margin = rounding(queries, candidates)
    # outwards, should the sums themselves be rounded
    low = np.nextafter((best.astype(np.float64) - margin).astype(np.float32), np.float32(-np.inf))
    high = np.nextafter((best.astype(np.float64) + margin).astype(np.float32), np.float32(np.inf))

    before = np.zeros(len(queries), np.int64)
    height = min(QUERIES, -(-len(queries) // 128) * 128)
    width = min(CANDIDATES, -(-len(candidates) // 1024) * 1024)
    # A block of candidates stays on the device while all queries pass it. One result is read while
    # the device computes the next.
    waiting: collections.deque = collections.deque()

    def finish() -> None:
        rows, columns, (sure, near, packed) = waiting.popleft()
        count = rows.stop - rows.start
        before[rows] += np.asarray(sure)[:count]
        near_count = np.asarray(near)[:count]
        if near_count.any():
            some = np.flatnonzero(near_count)
            mask = np.unpackbits(np.asarray(packed)[some], axis=1).astype(bool)
            mask = mask[:, : columns.stop - columns.start]
            before[rows.start + some] += _ties_and_better(
                queries[rows.start + some], candidates[columns], best[rows.start + some], mask
            )

    blocks = [
        (rows, columns)
        for columns in _slices(len(candidates), width)
        for rows in _slices(len(queries), height)
    ]
    resident = None
    for rows, columns in progress(blocks, len(blocks), "ranking"):
        if resident != columns:
            resident = columns
            block = jax.device_put(
                (
                    _padded(candidates[columns], width, 0),
                    _padded(candidate_number[columns], width, -1),
                )
            )
        asked = (
            _padded(queries[rows], height, 0),
            _padded(query_number[rows], height, -1),
            _padded(low[rows], height, np.inf),
            _padded(high[rows], height, np.inf),
        )
        waiting.append((rows, columns, _block(*asked, *block)))
        if len(waiting) > 1:
            finish()
    while waiting:
        finish()
    return 1 + before


@jax.jit
def _block(
    queries: Float32[Array, "q D"],
    query_number: Int32[Array, " q"],
    low: Float32[Array, " q"],
    high: Float32[Array, " q"],
    candidates: Float32[Array, "c D"],
    candidate_number: Int32[Array, " c"],
) -> tuple[Int32[Array, " q"], Int32[Array, " q"], UInt8[Array, "q c//8"]]:
    """How many wrong candidates score above `high`, how many in [low, high], and which these are.

    Padding has the number -1: no candidate there is wrong.
    """
    # accelerators would round the operands to bfloat16 or TF32 without being told
    scores = jnp.matmul(queries, candidates.T, precision=jax.lax.Precision.HIGHEST)
    wrong = (query_number[:, None] != candidate_number) & (candidate_number >= 0)
    above = wrong & (scores > high[:, None])
    near = wrong & (scores >= low[:, None]) & ~above
    return above.sum(axis=1), near.sum(axis=1), jnp.packbits(near, axis=1)


def block_temporary_bytes(width: int) -> int:
    """What the compiled program of a whole block asks for beside its inputs and outputs."""
    numbers = [jax.ShapeDtypeStruct((n,), np.int32) for n in (QUERIES, CANDIDATES)]
    queries, candidates = (
        jax.ShapeDtypeStruct((n, width), np.float32) for n in (QUERIES, CANDIDATES)
    )
    limit = jax.ShapeDtypeStruct((QUERIES,), np.float32)
    lowered = _block.lower(queries, numbers[0], limit, limit, candidates, numbers[1])
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None  # every backend that runs here has one
    return analysis.temp_size_in_bytes


def best_right_score(
    queries: Float32[np.ndarray, "Q D"],
    query_concept: Int[np.ndarray, " Q"],
    candidates: Float32[np.ndarray, "C D"],
    candidate_concept: Int[np.ndarray, " C"],
) -> Float32[np.ndarray, " Q"]:
    """The score of each query's best candidate of its own concept, by the rule.

    Raises:
      ValueError: a query has no candidate of its concept.
    """
    order = np.argsort(candidate_concept, kind="stable")
    ordered = candidate_concept[order]
    first = np.searchsorted(ordered, query_concept, "left")
    count = np.searchsorted(ordered, query_concept, "right") - first
    without = np.flatnonzero(count == 0)
    if without.size:
        raise ValueError(f"{without.size} queries have no positive, the first is {without[0]}")
    best = np.full(len(queries), -np.inf, np.float32)
    ends = np.cumsum(count)
    for pairs in _slices(int(ends[-1]), PAIRS):
        place = np.arange(pairs.start, pairs.stop)
        query = np.searchsorted(ends, place, "right")
        within = place - (ends[query] - count[query])
        candidate = order[first[query] + within]
        np.maximum.at(best, query, _pair_scores(queries[query], candidates[candidate]))
    return best


def _pair_scores(
    left: Float32[np.ndarray, "n D"], right: Float32[np.ndarray, "n D"]
) -> Float32[np.ndarray, " n"]:
    products = np.einsum("nd,nd->n", left.astype(np.float64), right.astype(np.float64))
    return products.astype(np.float32)


def _ties_and_better(
    queries: Float32[np.ndarray, "q D"],
    candidates: Float32[np.ndarray, "c D"],
    best: Float32[np.ndarray, " q"],
    near: Bool[np.ndarray, "q c"],
) -> Int[np.ndarray, " q"]:
    """How many of the candidates in `near` score as high as `best`, by the rule."""
    if near.sum() > DENSE:
        return (near & (similarity(queries, candidates) >= best[:, None])).sum(axis=1)
    query, candidate = np.nonzero(near)
    before = np.zeros(len(queries), np.int64)
    for pairs in _slices(len(query), PAIRS):
        q, c = query[pairs], candidate[pairs]
        before += np.bincount(
            q, _pair_scores(queries[q], candidates[c]) >= best[q], minlength=len(queries)
        ).astype(np.int64)
    return before


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, length)) for i in range(0, length, size))


def _padded(array: np.ndarray, length: int, value: float) -> np.ndarray:
    width = [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, width, constant_values=value)
