"""Reading compiled XLA programs: what a step computes, moves, sends and keeps, counted exactly."""

from rwkv_jax.hlo.cost import Cost, program_cost
from rwkv_jax.hlo.kept import kept_bytes
from rwkv_jax.hlo.text import Program, parse

__all__ = ["Cost", "Program", "kept_bytes", "parse", "program_cost"]
