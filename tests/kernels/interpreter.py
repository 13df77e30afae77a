"""Mosaic's interpreters of GPU and TPU kernels, as tests use them, and the races they find."""

from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from rwkv_kernels.gpu.warpgroup import Warpgroup

# Reads beyond an array give zeros, as the copy engine's do. So does then what was never written,
# which STRICT sees.
INTERPRETER = InterpretGPUParams(
    detect_races=True, out_of_bounds_reads="uninitialized", uninitialized_memory="zero"
)
# For whole tiles: what was never written is NaN here, and reading beyond an array an error.
STRICT = InterpretGPUParams(
    detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
)


# Of TPU kernels.
TPU_INTERPRETER = pltpu.InterpretParams(detect_races=True)


def watch_tpu(monkeypatch) -> list:
    """As `watch`, of TPU kernels."""
    detector, states = interpret_pallas_call.RaceDetectionState, []

    def started(*arguments, **options):
        states.append(detector(*arguments, **options))
        return states[-1]

    monkeypatch.setattr(interpret_pallas_call, "RaceDetectionState", started)
    return states


def watch(monkeypatch) -> list:
    """Every kernel's races: the interpreter itself remembers those of the last kernel alone."""
    names = ("RaceDetectionState", "GPURaceDetectionState")  # JAX 0.10, 0.11
    (name,) = [name for name in names if hasattr(gpu_callbacks, name)]
    detector, states = getattr(gpu_callbacks, name), []

    def started(*arguments, **options):
        states.append(detector(*arguments, **options))
        return states[-1]

    monkeypatch.setattr(gpu_callbacks, name, started)
    if hasattr(gpu_callbacks, "call_tag_ref_union"):  # JAX 0.11 watches memory used in turn, too
        monkeypatch.setattr(Warpgroup, "in_turn", staticmethod(plgpu.RefUnion))
    return states


def assert_no_races(watched: list, kernels: int) -> None:
    assert len(watched) == kernels
    assert not any(state.races_found for state in watched)
