"""Tile choices of the Hopper kernels: what may be chosen, and the table they are kept in."""

import json
import types

import jax.numpy as jnp
import pytest

from rwkv_kernels import pallas_gpu, tune
from rwkv_kernels.bench_gpu_static import Case
from rwkv_kernels.gpu import tuned
from rwkv_kernels.gpu.plan import KERNELS, SHARED_MEMORY, Plan
from rwkv_kernels.gpu.tiling import Tiling, default

H200 = "NVIDIA H200"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sweep_stages": 3}, "sweep_stages must be 1 or 2, got 3"),
        ({"sweep_stages": 0}, "sweep_stages must be a positive integer, got 0"),
        ({"sweep_blocks": 2.0}, "sweep_blocks must be a positive integer, got 2.0"),
    ],
)
def test_what_is_no_choice(fields, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**fields)


@pytest.mark.parametrize(
    ("kernel", "shape", "blocks"),
    [
        ("forward", (1024, 49, 8, 80), 4), ("backward", (1024, 49, 8, 80), 2),
        ("backward", (1024, 196, 8, 80), 2), ("forward", (1024, 77, 10, 64), 2),
    ],
)  # fmt: skip
def test_as_many_blocks_share_a_multiprocessor(kernel, shape, blocks):
    """Of shared memory; each takes 1 KiB for itself, and its barriers."""
    _, T, _, N = shape
    plan = Plan(T, N, False, Case(shape).tiling)
    assert blocks * (plan.shared_memory(kernel) + 1024 + 128) <= 228 * 1024


def test_what_does_not_fit_a_call():
    tiling = Tiling(sweep_blocks=2, sweep_segments=3)
    assert tiling.misfits(head_size=64, tiles=6) == ()
    reasons = Plan(196, 80, False, tiling).unservable()
    assert "sweep_blocks = 2 does not divide N / 16 = 5" in reasons
    assert "sweep_segments = 3 does not divide the 4 tiles" in reasons


def test_few_heads_are_cut_until_every_multiprocessor_has_a_block():
    assert default(heads=2048, tiles=4) == Tiling(sweep_stages=1)
    longest = default(heads=8, tiles=256)
    assert (longest.sweep_blocks, longest.sweep_segments) == (1, 8)  # both ways 2 * 8 * 8 blocks
    assert default(heads=1, tiles=5).sweep_segments == 1  # a tile each: no gain
    assert default(heads=1, tiles=8).sweep_segments == 2  # of four tiles each
    assert default(heads=64, tiles=4) == Tiling(sweep_stages=1)  # both ways 128 blocks
    # 449 tokens are eight tiles, the last of one token
    assert tuned.best("unknown", (1, 449, 1, 80)) == default(heads=1, tiles=8)


@pytest.mark.parametrize("shape", [(1024, 196, 8, 80), (1, 16384, 8, 80)], ids=str)
def test_choices_fit_and_begin_with_the_default(shape):
    _, T, _, N = shape
    first = Case(shape).tiling
    choices = tune.choices(shape, first)
    assert choices[0] == first
    assert len(choices) == len(set(choices)) > 1
    plans = [Plan(T, N, False, x) for x in choices]
    assert all(plan.shared_memory(kernel) <= SHARED_MEMORY for plan in plans for kernel in KERNELS)


@pytest.mark.parametrize("T", [1, 49, 64, 65, 128])
def test_up_to_two_tiles_there_is_nothing_to_choose(T, monkeypatch):
    monkeypatch.setattr(tune, "measure", lambda *_: pytest.fail("timed for nothing"))
    shape = (1024, T, 8, 80)
    first = Case(shape).tiling
    assert tune.choices(shape, first) == [first]
    assert tune.search(shape, calls=2) is None  # so that none is kept as measured


def test_the_quickest_is_found(monkeypatch):
    quickest = Tiling(sweep_blocks=5, sweep_segments=2, sweep_stages=1)
    monkeypatch.setattr(tune, "compile_sweep", lambda _, tiling: tiling)
    monkeypatch.setattr(tune, "measure", lambda _, sweep, __: 1.0 + (sweep != quickest))
    assert tune.search((1024, 196, 8, 80), calls=2) == quickest


def test_on_paper_spills_count_both_ways_and_the_fewest_warps(monkeypatch):
    kernels = [("forward", 100, 100, 1), ("left_states", 4, 8, 3), ("left_segments", 0, 1, 2)]
    made = [
        types.SimpleNamespace(name=name, spill_stores=stores, spill_loads=loads, fit=fit)
        for name, stores, loads, fit in kernels
    ]

    def occupancy(plan, heads, kernel):
        return types.SimpleNamespace(fit=kernel.fit, blocks=10**6, warpgroups=1)

    monkeypatch.setattr(tune.bench_gpu_static, "compiled", lambda *_: made)
    monkeypatch.setattr(tune.bench_gpu_static, "occupancy", occupancy)
    assert tune.cost((1024, 196, 8, 80), Tiling()) == (4 + 8 + 1, -4 * 2)


def test_table_is_kept_and_found(tmp_path, monkeypatch):
    path = tmp_path / tuned.FILE
    shape, other = (1024, 196, 8, 80), (16, 1024, 10, 64)
    tune.keep(path, H200, {shape: Tiling(5, 2), other: Tiling(1, 2)})
    tune.keep(path, H200, {shape: Tiling(5, 1)})  # takes the place of the first
    tune.keep(path, "NVIDIA H100 PCIe", {shape: Tiling(1, 4)})
    assert len(json.loads(path.read_text())) == 3
    monkeypatch.setattr(tuned.resources, "files", lambda package: tmp_path)
    tuned._table.cache_clear()
    try:
        assert tuned.best(H200, shape) == Tiling(5, 1)
        assert tuned.best(H200, other) == Tiling(1, 2)
        assert tuned.best("NVIDIA GH200 480GB", shape) == default(8192, 4)
    finally:
        tuned._table.cache_clear()


def test_the_table_that_comes_with_the_package_is_of_choices():
    for (_, _, (_, T, _, N)), tiling in tuned._table().items():
        assert Plan(T, N, False, tiling).unservable() == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "table.json is no JSON"),
        ('[{"device": "x", "shape": [1, 2, 3, 64]}]', "table.json: .*'x'.* is no choice.*dtype"),
        (
            '[{"device": "x", "dtype": "y", "shape": [1], "tiling": {"sweep_bloks": 1}}]',
            "table.json: .*sweep_bloks.* is no choice",
        ),
    ],
)
def test_a_damaged_table_is_named_before_anything_is_timed(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(tune, "search", lambda *_: pytest.fail("timed for nothing"))
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        tune.tune([(1, 1024, 8, 64)], 2, path)
    assert path.read_text() == text


def test_a_choice_is_of_its_dtype(monkeypatch):
    shape = (1024, 196, 8, 80)
    monkeypatch.setattr(tuned, "_table", lambda: {(H200, "bfloat16", shape): Tiling(5)})
    assert tuned.best(H200, shape) == Tiling(5)
    assert tuned.best(H200, shape, "float32") == default(8192, 4)


def test_a_choice_that_does_not_fit_is_passed_over(monkeypatch, caplog):
    shape = (1024, 196, 8, 80)
    monkeypatch.setattr(
        tuned, "_table", lambda: {(H200, "bfloat16", shape): Tiling(sweep_segments=3)}
    )
    assert tuned.best(H200, shape) == default(8192, 4)
    assert "sweep_segments = 3 does not divide the 4 tiles" in caplog.text


def test_what_was_measured_is_kept_if_another_shape_fails(tmp_path, monkeypatch):
    shapes = (1024, 196, 8, 80), (16, 1024, 10, 64), (8, 1024, 8, 80)

    def search(shape, calls):
        if shape == shapes[1]:
            raise RuntimeError("out of memory")
        return Tiling(sweep_segments=2)

    monkeypatch.setattr(tune, "search", search)
    path = tmp_path / "table.json"
    assert tune.tune(shapes, 2, path) == ["[16, 1024, 10, 64]: out of memory"]
    assert [shape for _, _, shape in tune.read(path)] == [shapes[0], shapes[2]]


@pytest.mark.parametrize(
    ("shape", "message"),
    [("1,256,4,32", "N = 32, but it takes"), ("1,0,8,64", "must be 1 at least"), ("1,2", "four")],
)
def test_shapes_that_no_kernel_serves(monkeypatch, capsys, shape, message):
    monkeypatch.setattr("sys.argv", ["tune", "--static", "--shape", shape])
    with pytest.raises(SystemExit):
        tune.main()
    assert message in capsys.readouterr().err


def test_float32_heads_of_96_fit_whatever_their_number():
    """With a sweep's tokens in two stages they would not."""
    for heads in (1, 8, 64):
        shape = (heads, 256, 1, 96)
        assert pallas_gpu.unservable(shape, jnp.dtype("float32"), H200, causal=True) == ()


def test_causal_calls_need_room_for_states():
    def why_not(causal, stages):
        tiling = Tiling(sweep_stages=stages)
        return "; ".join(Plan(49, 96, causal, tiling, words=2).unservable())

    assert why_not(causal=False, stages=2) == ""
    assert "bytes of shared memory" in why_not(causal=True, stages=2)
    assert why_not(causal=True, stages=1) == ""


def test_without_a_gpu_one_line_says_so(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tune"])
    with pytest.raises(SystemExit, match="JAX found 'cpu': without one, --static ranks"):
        tune.main()
