"""Checkpoints on real disks: exact, kept in number, never half, never of another model."""

import resource
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from rwkv_jax.training.checkpoint import CheckpointError, RunCheckpoints
from rwkv_jax.training.config import CheckpointConfig, MeshConfig, OptimizerConfig
from rwkv_jax.training.optimizer import make_optimizer
from rwkv_jax.training.sharding import make_mesh, replicated
from rwkv_jax.training.state import TrainState

OPTIMIZER = make_optimizer(OptimizerConfig(), 100)


def state_at(step: int, width: int = 8) -> TrainState:
    params = {"image": {"w": jnp.full((4, width), float(step))}, "logit_scale": jnp.asarray(0.5)}
    return jax.device_put(
        TrainState(jnp.asarray(step, jnp.int32), params, OPTIMIZER.init(params)),
        replicated(make_mesh(MeshConfig())),
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run with checkpoints at 10, 20 and 30, of which two are kept."""
    with RunCheckpoints(tmp_path, CheckpointConfig(every=10, keep=2)) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(state_at(step), {"position": step})
    return tmp_path


def opened(path: Path) -> RunCheckpoints:
    return RunCheckpoints(path, CheckpointConfig(every=10, keep=2))


def test_restores_exactly_and_keeps_the_newest(saved: Path):
    with opened(saved) as checkpoints:
        assert checkpoints.latest_step() == 30
        state, loader = checkpoints.restore(30, abstract(state_at(0)))
    chex.assert_trees_all_equal(state, state_at(30))
    assert loader == {"position": 30}
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["20", "30"]


def test_saving_does_not_race_with_donation(tmp_path: Path):
    state = state_at(1)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda a: a * 0 - 1, s), donate_argnums=0)
    with RunCheckpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(state, {})
        overwrite(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, abstract(state_at(0)))
    chex.assert_trees_all_equal(restored, state_at(1))


def test_one_cut_off_in_writing_is_not_picked_up(saved: Path):
    folder = saved / "checkpoints"
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp-0")
    (folder / "40.orbax-checkpoint-tmp-0" / "_CHECKPOINT_METADATA").unlink()
    with opened(saved) as checkpoints:
        assert checkpoints.latest_step() == 30


def test_a_truncated_one_is_named_and_nothing_is_lost(saved: Path):
    folder = saved / "checkpoints" / "30"
    for file in folder.rglob("*"):
        if file.is_file() and "/d/" in file.as_posix():
            file.write_bytes(file.read_bytes()[:5])
    with opened(saved) as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoints/30 cannot be restored"):
            checkpoints.restore(30, abstract(state_at(0)))
        state, _ = checkpoints.restore(20, abstract(state_at(0)))
    chex.assert_trees_all_equal(state, state_at(20))


def save_one_and_fail_at_the_next(path: Path, limit: int) -> None:
    """Saves step 10, then step 20 while no file may have more than `limit` bytes."""
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunCheckpoints(path, CheckpointConfig(every=10, keep=1)) as checkpoints:
        checkpoints.save(state_at(10), {"position": 10})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, no_limit[1]))
        try:
            checkpoints.save(state_at(20), {"position": 20})
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)


@pytest.mark.parametrize("limit", [4, 1000])  # bytes a file: fails at once, or in the background
def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, limit: int):
    """With one checkpoint to keep: the old one goes only when the new one is whole."""
    with pytest.raises(CheckpointError, match=r"step 20 could not .* newest .*/10\."):
        save_one_and_fail_at_the_next(tmp_path, limit)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.newest_undamaged() == 10
        state, loader = checkpoints.restore(10, abstract(state_at(0)))
    chex.assert_trees_all_equal(state, state_at(10))
    assert loader == {"position": 10}


def test_a_flipped_bit_is_found_and_the_one_before_is_used(saved: Path):
    folder = saved / "checkpoints" / "30"
    files = [file for file in (folder / "params").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    said: list[str] = []
    with opened(saved) as checkpoints:
        assert checkpoints.newest_undamaged(said.append) == 20
        state, _ = checkpoints.restore(20, abstract(state_at(0)))
        chex.assert_trees_all_equal(state, state_at(20))
        checkpoints.save(state_at(30), {"position": 30})
        checkpoints.wait()
        assert checkpoints.newest_undamaged(said.append) == 30
    (line,) = said
    assert f"{largest.relative_to(folder)} has changed since it was written" in line
    assert (saved / "damaged" / "30" / largest.relative_to(folder)).read_bytes() == content


def test_a_lost_file_is_found(saved: Path):
    next(file for file in (saved / "checkpoints" / "30" / "opt_state").rglob("d/*")).unlink()
    said: list[str] = []
    with opened(saved) as checkpoints:
        assert checkpoints.newest_undamaged(said.append) == 20
    assert "is missing" in said[0]


def test_a_renamed_folder_is_refused(saved: Path):
    (saved / "checkpoints" / "30").rename(saved / "checkpoints" / "40")
    told = "says it is of step 30, not 40"
    with opened(saved) as checkpoints, pytest.raises(CheckpointError, match=told):
        checkpoints.restore(40, abstract(state_at(0)))


def test_another_model_is_refused(saved: Path):
    with opened(saved) as checkpoints, pytest.raises(CheckpointError, match="another model"):
        checkpoints.restore(30, abstract(state_at(0, width=16)))
