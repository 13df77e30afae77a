"""Which records show a picture that an earlier one shows: by file, or by perceptual hash."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, UInt64

# Pairs compared at once: 64 MB of 64-bit words.
_BLOCK = 2**23


def same_file(
    high: UInt64[np.ndarray, " n"], low: UInt64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether an earlier record has the same 128-bit digest."""
    order = np.lexsort((low, high))  # stable: of equal ones, the earlier comes first
    repeated = np.zeros(len(order), bool)
    if len(order):
        same = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
        repeated[order[1:]] = same
    return repeated


def same_looks(looks: UInt64[np.ndarray, " n"], distance: int) -> Bool[np.ndarray, " n"]:
    """Whether a record's hash is within `distance` bits of an earlier one's that is kept.

    In the records' order, so that A ~ B ~ C with A and C apart keeps A and C. Hashes within d bits
    agree in at least one of d + 1 bands of bits, so only those are compared.
    """
    values, first, inverse = np.unique(looks, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")  # of values, by appearance
    near: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    for left, right in _candidates(values, distance + 1):
        close = np.bitwise_count(values[left] ^ values[right]) <= distance
        pair = np.stack([rank[left[close]], rank[right[close]]], axis=1)  # [m, 2]
        near.append(np.sort(pair, axis=1))
    pairs = np.unique(np.concatenate(near), axis=0)
    dropped = np.zeros(len(values), bool)  # by rank
    # By the later one: whether the earlier is kept is known by then.
    for earlier, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]:
        if not dropped[earlier]:
            dropped[later] = True
    repeated = dropped[rank[inverse]]
    repeated[np.arange(len(looks)) != first[inverse]] = True
    return repeated


def _candidates(
    values: UInt64[np.ndarray, " n"], bands: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places of values that agree in a band; a pair may come more than once."""
    edges = np.linspace(0, 64, bands + 1).astype(int)
    for low, high in itertools.pairwise(edges.tolist()):
        mask = np.uint64((1 << (high - low)) - 1)
        band = (values >> np.uint64(low)) & mask
        order = np.argsort(band, kind="stable")
        ordered = band[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))[: len(order)]
        ends = np.append(starts[1:], len(order))[: len(starts)]
        for start, end in zip(starts, ends, strict=True):
            members = order[start:end]
            rows = max(1, _BLOCK // max(1, len(members)))
            for begin in range(0, len(members), rows):
                left = np.arange(begin, min(begin + rows, len(members)))
                i, j = np.nonzero(left[:, None] < np.arange(len(members))[None, :])
                if len(i):
                    yield members[left[i]], members[j]
