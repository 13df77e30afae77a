"""Times of rivals in PyTorch on a GPU: a script of its own, for an environment without JAX.

fla's kernels read one way; both ways are two calls, one on the reversed sequence, and the bonus of
the present token counted once. `chunk_rwkv6` works in chunks, `fused_recurrent_rwkv6` token by
token. Scaled dot-product attention is no WKV, but what a tower would have in its place. Needs torch
and flash-linear-attention; `make gpu-check` runs it.

python bench_gpu_torch.py --out FILE.json
"""

import argparse
import contextlib
import json
import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import fla
import torch
from fla.ops.rwkv6 import chunk_rwkv6, fused_recurrent_rwkv6

# B, T, H, N; as in bench_gpu.py.
SHAPES = (
    (1024, 49, 8, 80),
    (1024, 77, 10, 64),
    (1024, 196, 8, 80),
    (16, 1024, 8, 80),
    (1, 16384, 8, 80),
)


def both_ways(function: Callable) -> Callable[..., torch.Tensor]:
    """What a one-way kernel of fla gives, run both ways."""

    def run(r, k, v, w, u) -> torch.Tensor:
        log_d = -torch.exp(w.float())
        forward, _ = function(r, k, v, log_d, u, scale=1.0)
        turned = [x.flip(1) for x in (r, k, v, log_d)]
        backward, _ = function(*turned, torch.zeros_like(u), scale=1.0)
        return forward + backward.flip(1)

    return run


def attention(r, k, v, w, u) -> torch.Tensor:
    del w, u
    q, k, v = (x.transpose(1, 2) for x in (r, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


# The first is measured at once; fla's `chunk_rwkv6` tries many tiles for each shape first.
RIVALS: dict[str, Callable[..., torch.Tensor]] = {
    "scaled_dot_product_attention": attention,
    "fla fused_recurrent_rwkv6, both ways": both_ways(fused_recurrent_rwkv6),
    "fla chunk_rwkv6, both ways": both_ways(chunk_rwkv6),
}


def milliseconds(run: Callable[[], object], calls: int) -> float:
    times = []
    for i in range(calls + 3):  # the first three choose and warm up kernels
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def measure(function, shape: tuple[int, ...], calls: int) -> list[float]:
    """Milliseconds of forward, and of forward and backward."""
    make = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make, device="cuda", dtype=torch.bfloat16)

    r, k, v, g = (normal(*shape) for _ in range(4))
    w = torch.rand(*shape, generator=make, device="cuda") * 5.5 - 6
    u = 0.5 * normal(*shape[2:])
    inputs = [x.requires_grad_() for x in (r, k, v, w, u)]

    def once() -> None:
        with torch.no_grad():
            function(*inputs)

    def both() -> None:
        y = function(*inputs)
        torch.autograd.grad(y, inputs, g, allow_unused=True)

    return [milliseconds(once, calls), milliseconds(both, calls)]


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer: fla tries tiles for minutes, or for hours."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument(
        "--seconds", type=int, default=600, help="for a rival at a shape, its search for tiles too"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    times: dict[str, dict[str, list[float]]] = {str(list(shape)): {} for shape in SHAPES}
    versions = f"Rivals by CUDA events: torch {torch.__version__}, fla {fla.__version__}."
    for name, function in RIVALS.items():
        for shape in SHAPES:
            print(name, list(shape), flush=True)
            try:
                with at_most(options.seconds):
                    times[str(list(shape))][name] = measure(function, shape, options.calls)
            except (torch.OutOfMemoryError, TimeoutError) as error:  # others still have their row
                print(f"left out: {error}", flush=True)
            # What was measured is kept, whatever comes after.
            options.out.write_text(json.dumps({"versions": versions, **times}, indent=1))


if __name__ == "__main__":
    main()
