"""Accounting of hand-made programs, with answers worked out by hand, and of one by XLA."""

import re

import jax
import jax.numpy as jnp
import pytest

from rwkv_jax.hlo import kept_bytes, parse, program_cost

ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def cost(entry: str, more: str = "", devices: int = 8):
    text = f"HloModule m, is_scheduled=true, num_partitions={devices}\n{ADD}{more}\n"
    return program_cost(parse(f"{text}ENTRY %main (p: f32[4]) -> f32[4] {{\n{entry}\n}}\n"))


def loop(body: str, *, limit: int, name: str = "body", step: int = 1, direction: str = "LT") -> str:
    """A body over (counter, array) that ends with `%next`, and a condition counter < limit."""
    state = "(s32[], f32[8,16])"
    return f"""
%{name} (s: {state}) -> {state} {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,16]{{1,0}} get-tuple-element(%s), index=1
  %step = s32[] constant({step})
  %j = s32[] add(%i, %step)
{body}
  ROOT %t = {state} tuple(%j, %next)
}}

%{name}_condition (s: {state}) -> pred[] {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant({limit})
  ROOT %more = pred[] compare(%i, %n), direction={direction}
}}
"""


def runs(name: str, first: str) -> str:
    """A program of such a loop, whose counter begins with the instruction `first`."""
    return f"""
  %p = f32[8,16]{{1,0}} parameter(0)
  %first = s32[] {first}
  %start = (s32[], f32[8,16]) tuple(%first, %p)
  %w = (s32[], f32[8,16]) while(%start), condition=%{name}_condition, body=%{name}
  ROOT %r = f32[8,16]{{1,0}} get-tuple-element(%w), index=1"""


SQUARE = """
  %w = f32[16,16]{1,0} constant({...})
  %next = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}"""


def test_a_product_reads_and_writes_its_arrays():
    entry = """
  %p = f32[8,16]{1,0} parameter(0)
  %q = bf16[16,32]{1,0} parameter(1)
  ROOT %d = f32[8,32]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}"""
    found = cost(entry)
    assert found.flops == 2 * 8 * 16 * 32
    assert found.memory_bytes == 8 * 16 * 4 + 16 * 32 * 2 + 8 * 32 * 4


def test_what_cublas_is_given_to_work_in_is_no_traffic():
    entry = """
  %p = bf16[8,16]{1,0} parameter(0)
  %q = bf16[16,32]{1,0} parameter(1)
  ROOT %d = (bf16[8,32]{1,0}, s8[33554432]{0}) custom-call(%p, %q), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}"""
    found = cost(entry)
    assert found.flops == 2 * 8 * 16 * 32
    assert found.memory_bytes == 2 * (8 * 16 + 16 * 32 + 8 * 32)


def test_nor_is_it_in_a_fusion_with_a_slice():
    call = """custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}"""
    fused = f"""
%fused (p: bf16[8,16], q: bf16[12,16,32]) -> (bf16[8,32], s8[33554432]) {{
  %p = bf16[8,16]{{1,0}} parameter(0)
  %q = bf16[12,16,32]{{2,1,0}} parameter(1)
  %one = bf16[1,16,32]{{2,1,0}} slice(%q), slice={{[2:3], [0:16], [0:32]}}
  %flat = bf16[16,32]{{1,0}} bitcast(%one)
  ROOT %d = (bf16[8,32]{{1,0}}, s8[33554432]{{0}}) custom-call(%p, %flat), {call}
}}
"""
    entry = """
  %p = bf16[8,16]{1,0} parameter(0)
  %q = bf16[12,16,32]{2,1,0} parameter(1)
  ROOT %d = (bf16[8,32]{1,0}, s8[33554432]{0}) fusion(%p, %q), kind=kCustom, calls=%fused"""
    found = cost(entry, fused)
    assert found.flops == 2 * 8 * 16 * 32
    assert found.memory_bytes == 2 * (8 * 16 + 16 * 32 + 8 * 32)


def test_a_float32_product_in_full_is_six_passes():
    entry = """
  %p = f32[8,16]{1,0} parameter(0)
  %q = f32[16,32]{1,0} parameter(1)
  ROOT %d = f32[8,32]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}"""
    inputs = "p: f32[8,16], q: f32[16,32]"
    fusion = """
  %p = f32[8,16]{1,0} parameter(0)
  %q = f32[16,32]{1,0} parameter(1)
  ROOT %f = f32[8,32]{1,0} fusion(%p, %q), kind=kOutput, calls=%fused"""
    product = 2 * 8 * 16 * 32
    assert cost(entry).passes_flops == product
    assert cost(f"{entry}, operand_precision={{high,default}}").passes_flops == 3 * product
    highest = f"{entry}, operand_precision={{highest,highest}}"
    fused = f"\n%fused ({inputs}) -> f32[8,32] {{{highest}\n}}\n"
    for found in (cost(highest), cost(fusion, fused)):
        assert (found.passes_flops, found.flops) == (6 * product, product)


def test_loops_in_loops_count_as_often_as_they_run():
    inner = loop(SQUARE, limit=5, name="inner")
    again = """
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16]) tuple(%zero, %x)
  %w = (s32[], f32[8,16]) while(%start), condition=%inner_condition, body=%inner
  %next = f32[8,16]{1,0} get-tuple-element(%w), index=1"""
    entry = runs("outer", "constant(2)")
    found = cost(entry, inner + loop(again, limit=9, name="outer"))
    assert found.flops == (9 - 2) * 5 * 2 * 8 * 16 * 16  # the outer counter starts at 2
    assert found.unknown_loops == ()
    told = entry.replace(
        "body=%outer", 'body=%outer, backend_config={"known_trip_count":{"n":"3"}}'
    )
    assert cost(told, inner + loop(again, limit=9, name="outer")).flops == 3 * 5 * 2 * 8 * 16 * 16


@pytest.mark.parametrize(
    ("first", "step", "direction", "limit", "trips"),
    [
        (0, 3, "LT", 10, 4), (0, 1, "LE", 9, 10), (9, -1, "GE", 0, 10), (9, -2, "GT", 0, 5),
        (0, 2, "NE", 8, 4),
    ],
)  # fmt: skip
def test_counters_of_every_kind(first, step, direction, limit, trips):
    more = loop(SQUARE, limit=limit, step=step, direction=direction)
    found = cost(runs("body", f"constant({first})"), more)
    assert (found.flops, found.unknown_loops) == (trips * 2 * 8 * 16 * 16, ())


def test_a_loop_of_unknown_length_is_named():
    negated = loop("  %next = f32[8,16]{1,0} negate(%x)", limit=9)
    found = cost(runs("body", "parameter(1)"), negated)
    assert found.unknown_loops == ("w",)


def test_of_branches_the_dearest_counts():
    branches = """
%cheap (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %y = f32[4]{0} negate(%x)
}

%dear (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %v = f32[4]{0} negate(%x)
  ROOT %y = f32[4]{0} sine(%v)
}
"""
    entry = """
  %p = f32[4]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %c = f32[4]{0} conditional(%i, %p, %p), branch_computations={%cheap, %dear}"""
    assert cost(entry, branches).memory_bytes == 2 * (16 + 16)


@pytest.mark.parametrize(
    ("operation", "sent"),
    [
        # 1,024 numbers of float32 on 8 devices: 4,096 bytes
        ("f32[1024]{0} all-reduce(%p), replica_groups={}, to_apply=%add", 2 * 7 / 8 * 4096),
        ("f32[1024]{0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add", 2 / 2 * 4096),
        ("f32[8192]{0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}", 7 * 4096),
        ("f32[2048]{0} all-gather(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}", 4096),
        ("f32[128]{0} reduce-scatter(%p), replica_groups={}, to_apply=%add", 7 / 8 * 4096),
        ("f32[1024]{0} all-to-all(%p), replica_groups={}, dimensions={0}", 7 / 8 * 4096),
        (
            "f32[256]{0} reduce-scatter(%p),"
            " replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, to_apply=%add",
            3 / 4 * 4096,
        ),
        (
            "f32[4096]{0} all-gather(%p), replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2],"
            " device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}",
            3 * 4096,
        ),
        ("f32[1024]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", 4096),
        ("f32[1024]{0} collective-permute(%p), source_target_pairs={{0,0},{1,1}}", 0),
    ],
)
def test_what_a_collective_sends(operation: str, sent: float):
    entry = f"  %p = f32[1024]{{0}} parameter(0)\n  ROOT %c = {operation}"
    assert cost(entry).sent_bytes() == sent


def test_groups_that_are_not_known_are_named():
    entry = "  ROOT %c = f32[8]{0} all-reduce(%p), replica_groups=by_moonlight, to_apply=%add"
    with pytest.raises(ValueError, match=r"c has groups .* not known: .*moonlight"):
        cost("  %p = f32[8]{0} parameter(0)\n" + entry)


@pytest.mark.parametrize(
    ("start", "sent"),
    [
        ("(f32[64]{0}, f32[512]{0}) all-gather-start(%p), replica_groups={}", 7 * 256),
        ("f32[64]{0} all-reduce-start(%p), replica_groups={}, to_apply=%add", 2 * 7 / 8 * 256),
        (
            "(f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%p),"
            " source_target_pairs={{0,1},{1,2},{2,0}}",
            256,
        ),
        ("((f32[64]{0}), f32[8]{0}) async-start(%p), calls=%wrapped", 7 / 8 * 256),
    ],
)
def test_a_started_collective_counts_once_also_in_a_loop(start: str, sent: float):
    """In a loop of 6 runs; its second half, the done, sends nothing."""
    wrapped = """
%wrapped (q: f32[64]) -> f32[8] {
  %q = f32[64]{0} parameter(0)
  ROOT %r = f32[8]{0} reduce-scatter(%q), replica_groups={}, to_apply=%add
}
"""
    operation = re.search(r" ([\w-]+)-start\(", start)[1]
    body = f"""
  %p = f32[64]{{0}} constant({{...}})
  %c = {start}
  %d = f32[64]{{0}} {operation}-done(%c)
  %next = f32[8,16]{{1,0}} negate(%x)"""
    found = cost(runs("body", "constant(0)"), wrapped + loop(body, limit=6))
    assert found.sent_bytes() == 6 * sent
    assert sum(found.collectives.values()) == 6


def test_a_tpus_collective_in_three_fusions_counts_once():
    gather = "all-gather(%q), channel_id=7, replica_groups={}, dimensions={0}"
    fused = f"""
%starts (q: f32[64]) -> (f32[64], f32[512]) {{
  %q = f32[64]{{0}} parameter(0)
  %g = f32[512]{{0}} {gather}
  ROOT %c = (f32[64]{{0}}, f32[512]{{0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%ends (q: f32[64], o: f32[512]) -> f32[512] {{
  %q = f32[64]{{0}} parameter(0)
  %o = f32[512]{{0}} parameter(1)
  %g = f32[512]{{0}} {gather}
  ROOT %c = f32[512]{{0}} custom-call(%q, %o, %g), custom_call_target="AsyncCollectiveDone"
}}
"""
    entry = """
  %p = f32[64]{0} parameter(0)
  %s = (f32[64]{0}, f32[512]{0}) fusion(%p), kind=kCustom, calls=%starts
  %a = f32[64]{0} get-tuple-element(%s), index=0
  %b = f32[512]{0} get-tuple-element(%s), index=1
  ROOT %d = f32[512]{0} fusion(%a, %b), kind=kCustom, calls=%ends"""
    found = cost(entry, fused)
    assert found.sent_bytes() == 7 * 256
    assert found.memory_bytes == 64 * 4 + 512 * 4  # read once, and written once


def test_a_fusion_moves_what_goes_in_and_out():
    """It reads one row of a table, and changes one row of another in place."""
    fused = """
%copied (x: f32[12,64]) -> f32[12,64] {
  %x = f32[12,64]{1,0} parameter(0)
  ROOT %y = f32[12,64]{1,0} copy(%x)
}

%fused (table: f32[12,64], i: s32[], out: f32[12,64]) -> f32[12,64] {
  %table = f32[12,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %out = f32[12,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %same = f32[12,64]{1,0} fusion(%table), kind=kLoop, \
output_to_operand_aliasing={{}: (0, {})}, calls=%copied
  %row = f32[1,64]{1,0} dynamic-slice(%same, %i, %zero), dynamic_slice_sizes={1,64}
  %twice = f32[1,64]{1,0} add(%row, %row)
  ROOT %new = f32[12,64]{1,0} dynamic-update-slice(%out, %twice, %i, %zero)
}
"""
    entry = """
  %table = f32[12,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %out = f32[12,64]{1,0} parameter(2)
  ROOT %f = f32[12,64]{1,0} fusion(%table, %i, %out), kind=kLoop, calls=%fused"""
    moved = 64 * 4 + 4 + 64 * 4
    assert cost(entry, fused).memory_bytes == moved
    begun = """
  %table = f32[12,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %out = f32[12,64]{1,0} parameter(2)
  %s = ((f32[12,64]{1,0}, s32[], f32[12,64]{1,0}), f32[12,64]{1,0}, u32[]) \
fusion-start(%table, %i, %out), kind=kLoop, calls=%fused
  ROOT %f = f32[12,64]{1,0} fusion-done(%s)"""
    assert cost(begun, fused).memory_bytes == moved


@pytest.mark.parametrize(
    ("operation", "moved"),
    [
        ("f32[1,64]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,64}", 256 + 256 + 8),
        ("f32[12,64]{1,0} dynamic-update-slice(%x, %row, %i, %i)", 256 + 256 + 8),
        # three indices; rows that come, and those that they are added to, read and written
        ("f32[12,64]{1,0} scatter(%x, %where, %rows), to_apply=%add", 12 + 3 * 3 * 256),
        ("pred[12,64]{1,0} not(%mask)", 2 * 12 * 64),
    ],
)
def test_what_stands_alone_moves_what_it_takes_and_changes(operation: str, moved: int):
    entry = f"""
  %x = f32[12,64]{{1,0}} parameter(0)
  %row = f32[1,64]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %where = s32[3,1]{{1,0}} parameter(3)
  %rows = f32[3,64]{{1,0}} parameter(4)
  %mask = pred[12,64]{{1,0}} parameter(5)
  ROOT %r = {operation}"""
    assert cost(entry).memory_bytes == moved


def test_fast_memory_costs_nothing_and_tiles_are_filled_up():
    entry = """
  %p = bf16[100,100]{1,0:T(8,128)(2,1)} parameter(0)
  %s = (bf16[100,100]{1,0:T(8,128)(2,1)S(1)}, bf16[100,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%p)
  %d = bf16[100,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%s)
  ROOT %n = bf16[100,100]{1,0:T(8,128)(2,1)S(1)} negate(%d)"""
    assert cost(entry).memory_bytes == 104 * 128 * 2  # read once; the rest stays in VMEM


def test_a_kernel_says_itself_what_it_computes():
    entry = """
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %k = f32[8,16]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"()","cost_estimate":{"flops":"12345"}}}"""
    found = cost(entry)
    assert found.flops == 12345
    assert found.memory_bytes == 2 * 8 * 16 * 4


@pytest.mark.parametrize(
    ("operation", "flops"),
    [
        # a 3x3 window over 8x8 with padding 1: 22 of 24 positions an axis lie inside
        (
            "f32[2,8,8,5]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1},"
            " dim_labels=b01f_01io->b01f",
            2 * 2 * 5 * 4 * 22 * 22,
        ),
        # no window axes: a plain product
        ("f32[6,9]{1,0} convolution(%a, %b), dim_labels=bf_io->bf", 2 * 6 * 9 * 7),
        # a batch of 3 products, as a TPU writes it: only the diagonal of batches lies inside
        (
            "f32[3,6,9]{2,1,0} convolution(%c, %d),"
            " window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf",
            3 * 2 * 6 * 9 * 7,
        ),
        # a kernel with holes, at -2, 0 and 2: 6, 8 and 6 positions of 8 lie inside
        (
            "f32[2,8,5]{2,1,0} convolution(%e, %f), window={size=3 pad=2_2 rhs_dilate=2},"
            " dim_labels=b0f_0io->b0f",
            2 * 2 * 5 * 4 * (6 + 8 + 6),
        ),
    ],
)
def test_convolutions(operation: str, flops: int):
    entry = f"""
  %x = f32[2,8,8,4]{{3,2,1,0}} parameter(0)
  %k = f32[3,3,4,5]{{3,2,1,0}} parameter(1)
  %a = f32[6,7]{{1,0}} parameter(2)
  %b = f32[7,9]{{1,0}} parameter(3)
  %c = f32[3,6,7]{{2,1,0}} parameter(4)
  %d = f32[3,7,9]{{2,1,0}} parameter(5)
  %e = f32[2,8,4]{{2,1,0}} parameter(6)
  %f = f32[3,4,5]{{2,1,0}} parameter(7)
  ROOT %r = {operation}"""
    assert cost(entry).flops == flops


def test_kept_for_the_backward_pass():
    """`a` and `b` are, `c` is not; a view is no memory of its own."""
    text = """HloModule m, is_scheduled=true
ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %a = f32[100]{0} sine(%p), metadata={op_name="jit(f)/jvp()/sin"}
  %c = f32[100]{0} negate(%a), metadata={op_name="jit(f)/jvp()/neg"}
  %b = f32[50]{0} slice(%c), slice={[0:50]}, metadata={op_name="jit(f)/jvp()/slice"}
  %v = f32[50,1]{1,0} bitcast(%b)
  %g = f32[50,1]{1,0} cosine(%v), metadata={op_name="jit(f)/transpose(jvp())/cos"}
  %h = f32[100]{0} cosine(%a), metadata={op_name="jit(f)/transpose(jvp())/cos"}
  ROOT %r = f32[100]{0} add(%h, %p), metadata={op_name="jit(f)/transpose(jvp())/add"}
}
"""
    assert kept_bytes(parse(text)) == 400 + 200


def test_kept_beside_a_call_and_in_it():
    text = """HloModule m, is_scheduled=true
%inner (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %a = f32[100]{0} sine(%p), metadata={op_name="jit(f)/jvp()/sin"}
  ROOT %h = f32[100]{0} cosine(%a), metadata={op_name="jit(f)/transpose(jvp())/cos"}
}

ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %b = f32[100]{0} tan(%p), metadata={op_name="jit(f)/jvp()/tan"}
  %c = f32[100]{0} call(%p), to_apply=%inner
  ROOT %r = f32[100]{0} add(%c, %b), metadata={op_name="jit(f)/transpose(jvp())/add"}
}
"""
    assert kept_bytes(parse(text)) == 400 + 400 + 400  # `b`, what the call gives, and `a` in it


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("nothing of the kind")


def test_a_compiled_loop_counts_as_its_unrolled_form():
    """XLA's own count of products, once it has no loop to stumble over."""

    def loss(w, x, unroll):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)
        return jnp.sum(x)

    w, x = jnp.zeros((6, 64, 64)), jnp.zeros((32, 64))
    found = []
    for unroll in (1, 6):
        compiled = jax.jit(jax.grad(loss), static_argnums=2).lower(w, x, unroll).compile()
        found.append(program_cost(parse(compiled.as_text())))
    product = 2 * 32 * 64 * 64
    assert found[0].flops == 6 * 3 * product
    assert found[1].flops == (6 * 3 - 1) * product  # nobody asks for the gradient of x
    assert found[0].unknown_loops == ()
    xla = compiled.cost_analysis()["flops"]
    assert found[1].flops == pytest.approx(xla, rel=0.1)
