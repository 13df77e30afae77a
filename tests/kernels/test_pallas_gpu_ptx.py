"""The Hopper kernels as a GPU gets them, played on a CPU, against the float64 loop.

The compiler's PTX for an H200 is run by `hopper/`: descriptors, swizzles, fragments of products and
barriers are the real ones, which the interpreter of `test_pallas_gpu.py` has not. It was checked by
kernels that an H100 had found right.

Run by `make test-aot`: needs the CUDA plugin's wheels, and no GPU.
"""

import dataclasses
import itertools

import float64_loop
import gpu_judge
import jax.numpy as jnp
import numpy as np
import pytest
from float64_loop import REGIMES
from hopper import host, launch
from hopper.launch import on_machine
from hopper.machine import RaceError
from jax.experimental.pallas import mosaic_gpu as plgpu
from regimes import NAMES

from rwkv_kernels.gpu.call import Block
from rwkv_kernels.gpu.plan import TILE, Plan
from rwkv_kernels.gpu.tiling import Tiling, default
from rwkv_kernels.gpu.warpgroup import Warpgroup

pytestmark = pytest.mark.aot

# The order of warps, and whether copies and products come early or late.
WAYS = list(itertools.product((False, True), (False, True)))
# One tile, two and three in a block, and more than a block has; the last full and cut short.
LENGTHS = {1: 80, 7: 64, 17: 80, 49: 80, 64: 64, 77: 64, 128: 80, 150: 64, 196: 80, 257: 64}
OF_CI = (7, 49, 77)


def marked(lengths, of_ci):
    return [T if T in of_ci else pytest.param(T, marks=pytest.mark.slow) for T in lengths]


def slow_cases(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def check_both_directions(shape, regime, tiling=None, dtype=jnp.bfloat16, *, down, lazy):
    with on_machine(down=down, lazy=lazy):
        function = gpu_judge.both_directions_as_is(tiling=tiling)
        gpu_judge.check_both_directions(shape, regime, function=function, dtype=dtype)


def check_causal(shape, regime, tiling=None, dtype=jnp.bfloat16, *, down, lazy):
    with on_machine(down=down, lazy=lazy):
        function = gpu_judge.causal_as_is(tiling=tiling)
        gpu_judge.check_causal(shape, regime, function=function, dtype=dtype)


@pytest.mark.parametrize("T", marked(LENGTHS, OF_CI))
def test_both_directions(T):
    for regime, (down, lazy) in zip(REGIMES, itertools.cycle(WAYS)):
        check_both_directions((1, T, 1, LENGTHS[T]), regime, down=down, lazy=lazy)


def logits(T, N, of_all=-0.01, strong=()):
    """Of decays whose logarithms are given: of all, and of some tokens in some channels."""
    log_d = np.full((1, T, 1, N), of_all)
    for token, channel, number in strong:
        log_d[0, token, 0, channel] = number
    return np.log(-log_d)


GENTLE = {
    "none is strong": {},
    "all are": {"of_all": -1.2},  # 49, and 15 of exp(-1) that the tile is filled up with: exp(-74)
    "one, as strong as may be": {"strong": [(20, 7, -2.95)]},
}
NOT_GENTLE = {
    "one decay": {"strong": [(20, 7, -3.1)]},
    "one decay, of the last warp": {"strong": [(48, 79, -3.1)]},
    "one channel": {"strong": [(slice(None), 3, -1.8)]},
}
# Each once, the ways in turn; the rest is slow.
EACH_ONCE = list(zip([*GENTLE, *NOT_GENTLE], itertools.cycle(WAYS), strict=False))
ALL = itertools.product([*GENTLE, *NOT_GENTLE], WAYS)


@pytest.mark.parametrize(
    ("decays", "way"), [*EACH_ONCE, *slow_cases(*(x for x in ALL if x not in EACH_ONCE))]
)
def test_levels_where_decays_are_not_gentle(decays, way, monkeypatch):
    """All of a warpgroup's threads go one way, which products of registers tell: those of levels
    within a warp.
    """
    shape, is_gentle = (1, 49, 1, 80), decays in GENTLE
    w = logits(49, 80, **(GENTLE | NOT_GENTLE)[decays])
    x = dict(gpu_judge.rounded(shape, "typical"), w=jnp.asarray(w, jnp.float32))
    monkeypatch.setattr(gpu_judge, "rounded", lambda *_: x)
    down, lazy = way
    with on_machine(down=down, lazy=lazy) as ran:
        function = gpu_judge.both_directions_as_is()
        gpu_judge.check_both_directions(shape, "typical", function=function)
    forward, backward = (run.executed for run in ran)
    of_levels = sum(n for opcode, n in forward.items() if opcode.startswith("mma"))
    assert (of_levels == 0) == is_gentle
    # Backward it also has g . v of each token.
    of_levels = sum(n for opcode, n in backward.items() if opcode.startswith("mma"))
    assert (of_levels == 4 * 10) == is_gentle


def test_tiles_of_a_sequence_go_their_own_ways():
    """The second one alone is not gentle: of three in a block, and of five that are swept."""
    for T, N in ((150, 64), (300, 64)):
        x = gpu_judge.rounded((1, T, 1, N), "typical")
        x = dict(x, w=x["w"].at[:, TILE : 2 * TILE].add(5))
        with on_machine() as ran:
            results = gpu_judge.both_directions_as_is()(*(x[name] for name in "rkvwug"))
        judge = gpu_judge.judge_sees(x)
        of = (judge[name] for name in "rkvwu")
        y, gradients = float64_loop.bi_wkv(*of, g=judge["g"])
        gpu_judge.assert_near(results, (y, *gradients), NAMES[:6])
        (forward,) = [run for run in ran if run.name == "wkv6_forward"]
        of_levels = sum(n for opcode, n in forward.executed.items() if opcode.startswith("mma"))
        assert of_levels == 4 * 56  # of one tile's four warps


@pytest.mark.parametrize(("down", "lazy"), [WAYS[0], WAYS[-1], *slow_cases(*WAYS[1:-1])])
def test_four_tiles_in_a_block_forward(down, lazy):
    """Backward they are swept for states."""
    check_both_directions((1, 196, 1, 80), "spiky", down=down, lazy=lazy)


@pytest.mark.parametrize("T", marked((1, 64, 77, 257), (77,)))
def test_causal_with_states(T):
    for regime, (down, lazy) in zip(REGIMES, itertools.cycle(WAYS)):
        check_causal((1, T, 1, 64), regime, down=down, lazy=lazy)


def test_float32():
    """Two tiles with states, once; the rest is slow."""
    check_both_directions((1, 77, 1, 80), "spiky", dtype=jnp.float32, down=True, lazy=True)


@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 49, 77, 196])
def test_float32_in_every_regime(T):
    for regime, (down, lazy) in zip(REGIMES, itertools.cycle(WAYS)):
        check_both_directions((1, T, 1, 80), regime, dtype=jnp.float32, down=down, lazy=lazy)


@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 77, 257])
def test_float32_causal_with_states(T):
    for regime, (down, lazy) in zip(REGIMES, itertools.cycle(WAYS)):
        check_causal((1, T, 1, 64), regime, dtype=jnp.float32, down=down, lazy=lazy)


@pytest.mark.slow
@pytest.mark.parametrize("N", [96, 112, 128])
@pytest.mark.parametrize("T", [49, 77])
def test_wider_heads(T, N):
    check_both_directions((1, T, 1, N), "typical", down=True, lazy=True)


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [Tiling(1, 2, 1), Tiling(4, 1, 1), Tiling(2, 3, 2)], ids=str)
def test_tile_choices(tiling):
    check_both_directions((1, 370, 1, 64), "typical", tiling, down=False, lazy=True)
    check_causal((1, 370, 1, 64), "spiky", tiling, down=True, lazy=False)


@pytest.mark.parametrize("T", marked((77, 193, 300), (77,)))
def test_several_heads_and_sequences(T):
    check_both_directions((2, T, 3, 64), "mixed", down=True, lazy=True)


@pytest.mark.parametrize(("T", "causal"), [(49, False), *slow_cases((196, False), (300, True))])
@pytest.mark.parametrize("N", [64, 80])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_shared_memory_is_as_planned_and_no_bank_is_asked_thrice(T, N, causal, dtype):
    """What a block takes decides how many share a multiprocessor: a few bytes more may halve it."""
    shape = (1, T, 1, N)
    with on_machine() as ran:
        if causal:
            function = gpu_judge.causal_as_is()
            gpu_judge.check_causal(shape, "typical", function=function, dtype=dtype)
        else:
            function = gpu_judge.both_directions_as_is()
            gpu_judge.check_both_directions(shape, "typical", function=function, dtype=dtype)
    of_dtype, in_words = ("wkv6_", 1) if dtype == jnp.bfloat16 else ("wkv6_float32_", 2)
    plan = Plan(T, N, causal, default(1, -(-T // TILE)), words=in_words)
    assert {run.name for run in ran} >= {f"{of_dtype}forward", f"{of_dtype}backward"}
    for run in ran:
        kernel = run.name.removeprefix(of_dtype).removeprefix("wkv6_").removeprefix("both_")
        kernel = kernel.replace("segments", "states")
        assert run.shared_memory - plan.shared_memory(kernel) in range(8, 128)  # barriers
        asked, at_least = run.turns
        assert at_least <= asked < 2 * at_least


@pytest.fixture
def otherwise(monkeypatch):
    """Kernels are made otherwise: none that was compiled before is run, nor one kept for later."""
    launch.forget()
    yield monkeypatch
    launch.forget()


def test_a_copy_that_never_comes_is_seen(otherwise):
    otherwise.setattr(Block, "start", lambda *_: None)
    with pytest.raises(RuntimeError, match="wait for ever"):
        check_both_directions((1, 7, 1, 64), "typical", down=False, lazy=False)


def test_memory_beyond_a_block_is_seen(monkeypatch):
    """A block that was given a quarter of what it reckons with."""

    def less(*arguments):
        start = host_start(*arguments)
        return dataclasses.replace(start, shared_memory=start.shared_memory // 4)

    host_start = host.start
    monkeypatch.setattr(host, "start", less)
    with pytest.raises(RuntimeError, match="that the block has"):
        check_both_directions((1, 7, 1, 64), "typical", down=False, lazy=False)


def test_a_fence_left_out_is_seen(otherwise):
    """What threads write is there for products only after it."""
    otherwise.setattr(plgpu, "commit_smem", Warpgroup(None, 64).wait_for_readers)
    for regime in ("typical", "spiky"):
        with pytest.raises(RaceError, match="before a fence"):
            check_both_directions((1, 49, 1, 64), regime, down=False, lazy=False)


def test_a_barrier_left_out_is_seen(otherwise):
    """Keys are written while another warp still multiplies those before them."""
    otherwise.setattr(Warpgroup, "wait_for_readers", lambda _: None)

    def try_all(regime):
        for down, lazy in WAYS:
            check_both_directions((1, 49, 1, 80), regime, down=down, lazy=lazy)

    for regime in ("typical", "spiky"):
        with pytest.raises(AssertionError):
            try_all(regime)


def test_a_write_that_is_not_waited_for_is_seen(otherwise):
    """The gradient of u goes to main memory from a room that its tile works in next."""
    written, wait = [], Block.wait_for_writes

    def noted(name):
        function = getattr(Block, name)

        def write(*given):
            written.append(name)
            function(*given)

        otherwise.setattr(Block, name, write)

    noted("write")
    noted("write_to")
    # Tokens are waited for as ever.
    otherwise.setattr(
        Block, "wait_for_writes", lambda block: wait(block) if written[-1] == "write" else None
    )
    for regime in ("typical", "spiky"):
        with pytest.raises(AssertionError, match=" u:"):
            check_both_directions((1, 49, 1, 80), regime, down=False, lazy=True)
