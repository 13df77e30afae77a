"""What is counted of a compiled program, by one written by hand."""

from rwkv_jax.bench_crossings import crossings
from rwkv_jax.models import rwkv_clip_b32

# B/32's activations: 256 x 49 tokens of 640 channels.
PROGRAM = """HloModule m

ENTRY %main (x: bf16[12544,640], w: bf16[640,640]) -> f32[12544,640] {
  %x = bf16[12544,640]{1,0} parameter(0)
  %w = bf16[640,640]{1,0} parameter(1)
  %call = (bf16[12544,640]{1,0}, s8[33554432]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul"
  %y = bf16[12544,640]{1,0} get-tuple-element(%call), index=0
  ROOT %z = f32[12544,640]{1,0} fusion(%x, %y, %y), kind=kLoop, calls=%nothing
}
"""  # noqa: E501, an instruction is a line


# A TPU's, which keeps x in fast memory: fetched as a whole, and once more a half of it.
IN_FAST_MEMORY = """HloModule m

ENTRY %main (x: bf16[12544,640]) -> bf16[12544,640] {
  %x = bf16[12544,640]{1,0} parameter(0)
  %begin = (bf16[12544,640]{1,0:S(1)}, bf16[12544,640]{1,0}, u32[]) copy-start(%x)
  %here = bf16[12544,640]{1,0:S(1)} copy-done(%begin)
  %part = ((bf16[12544,640]{1,0}), bf16[6272,640]{1,0:S(1)}, s32[]) slice-start(%x), slice={[0:6272], [0:640]}
  %half = bf16[6272,640]{1,0:S(1)} slice-done(%part)
  %part2 = ((bf16[12544,640]{1,0}), bf16[6272,640]{1,0:S(1)}, s32[]) slice-start(%x), slice={[6272:12544], [0:640]}
  %half2 = bf16[6272,640]{1,0:S(1)} slice-done(%part2)
  %y = f32[12544,640]{1,0:S(1)} fusion(%here, %half), kind=kLoop, calls=%nothing
  ROOT %z = bf16[12544,640]{1,0} fusion(%y, %half2), kind=kLoop, calls=%nothing
}
"""  # noqa: E501, an instruction is a line


def counted(program: str) -> dict[str, int]:
    return crossings(program, rwkv_clip_b32().image)


def test_what_a_product_works_in_is_no_activation():
    assert counted(PROGRAM)["matrix products and what is fused into them"] == 2


def test_an_array_read_twice_by_one_operation_crosses_once_and_float32_counts_two():
    assert counted(PROGRAM)["all else"] == 4


def test_what_stays_in_fast_memory_crosses_where_it_comes_and_goes():
    assert counted(IN_FAST_MEMORY) == {"copies": 2, "all else": 1}
