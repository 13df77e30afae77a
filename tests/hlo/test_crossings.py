"""What is counted of a compiled program, by one written by hand."""

from rwkv_jax.bench_crossings import crossings

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


def test_what_a_product_works_in_is_no_activation():
    assert crossings(PROGRAM)["matrix products and what is fused into them"] == 2


def test_an_array_read_twice_by_one_operation_crosses_once_and_float32_counts_two():
    assert crossings(PROGRAM)["all else"] == 4
