"""The row-vector rollout against the paper's formulas with full matrices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

from benchmarks.literal import literal_rollout
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.rollout import PrefixAttention, rollout_last_row, rollout_steps
from decaf_ros.stages import finish


def random_layers(batch=2, layers=3, heads=4, key_heads=2, tokens=11, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, size), (batch, key_heads, tokens, size)
    return [
        LayerAttention(
            torch.randn(shape[0], generator=generator), torch.randn(shape[1], generator=generator), size**-0.5
        )
        for _ in range(layers)
    ]


@pytest.mark.parametrize("method", ["v_max", "max", "mean"])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_equals_the_literal_formulas(method, block):
    layers = random_layers()
    visual = torch.zeros(2, 11, dtype=torch.bool)
    visual[:, 2:8] = True
    row = rollout_last_row(layers, visual, method=method, block=block)
    torch.testing.assert_close(row, literal_rollout(layers, visual, method), atol=1e-6, rtol=0)


def test_bfloat16_is_summed_in_float32():
    visual = torch.zeros(2, 11, dtype=torch.bool)
    visual[:, 2:8] = True
    rounded = [LayerAttention(layer.query.bfloat16(), layer.key.bfloat16(), layer.scaling) for layer in random_layers()]
    exact = [LayerAttention(layer.query.float(), layer.key.float(), layer.scaling) for layer in rounded]
    row = rollout_last_row(rounded, visual, block=4)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row, rollout_last_row(exact, visual, block=4), atol=1e-6, rtol=0)


def test_padding_changes_nothing():
    layers = random_layers(batch=1)
    visual = torch.zeros(1, 11, dtype=torch.bool)
    visual[:, 2:8] = True
    alone = rollout_last_row(layers, visual)
    for left, right in ((3, 0), (0, 2)):
        padded = [
            LayerAttention(*(torch.nn.functional.pad(x, (0, 0, left, right), value=9.0) for x in layer[:2]), layer[2])
            for layer in layers
        ]
        valid = torch.nn.functional.pad(torch.ones_like(visual), (left, right))
        row = rollout_last_row(padded, torch.nn.functional.pad(visual, (left, right)), valid, block=4)
        torch.testing.assert_close(row[:, left : left + 11], alone, atol=1e-6, rtol=0)
        assert row[~valid].abs().max() == 0


def test_one_head_two_tokens_by_hand():
    """Zero queries: the last row of A is (1/2, 1/2) and the head's weight is 1, so the last row of A^ is (1/4, 3/4)."""
    layer = LayerAttention(torch.zeros(1, 1, 2, 4), torch.randn(1, 1, 2, 4), 0.5)
    row = rollout_last_row([layer], torch.tensor([[True, False]]))
    torch.testing.assert_close(row, torch.tensor([[0.25, 0.75]]))


def test_prompts_that_share_a_prefix():
    """Each rollout equals that of the whole sequence: asked together, again later, or from a higher layer."""
    whole = [random_layers(batch=2, tokens=tokens) for tokens in (14, 17)]
    prefix = [LayerAttention(query[:, :, :11], key[:, :, :11], factor) for query, key, factor in whole[0]]
    for number, layers in enumerate(whole):
        for index, (query, key, factor) in enumerate(layers):
            query[:, :, :11], key[:, :, :11] = prefix[index].query, prefix[index].key
            whole[number][index] = LayerAttention(query, key, factor)
    suffixes = [[LayerAttention(q[:, :, 11:], k[:, :, 11:], factor) for q, k, factor in layers] for layers in whole]
    visual = torch.zeros(11, dtype=torch.bool)
    visual[2:5] = visual[7:9] = True
    for method in ("v_max", "max", "mean"):
        shared = PrefixAttention(prefix, visual)
        together = finish(rollout_steps(shared, suffixes, method, block=4))
        again = finish(rollout_steps(shared, suffixes[1:], method, block=64))
        higher = finish(rollout_steps(shared, [suffix[1:] for suffix in suffixes], method, block=4, skipped=1))
        for layers, row, above in zip(whole, together, higher):
            padded = torch.nn.functional.pad(visual, (0, layers[0].query.shape[2] - 11)).expand(2, -1)
            torch.testing.assert_close(row, literal_rollout(layers, padded, method)[:, :11], atol=1e-6, rtol=0)
            torch.testing.assert_close(above, literal_rollout(layers[1:], padded, method)[:, :11], atol=1e-6, rtol=0)
        torch.testing.assert_close(again[0], together[1], atol=1e-6, rtol=0)


def test_triton_kernels_agree():
    """With Triton's interpreter, in another process: it must be selected before the kernels are imported."""
    # The interpreter of 3.1 does not pass constants into a function that a kernel calls.
    triton = pytest.importorskip("triton", minversion="3.2")
    # That of 3.6 converts arrays of one element to integers, which NumPy 2.4 refuses; that of 3.8 does not.
    if Version(triton.__version__) < Version("3.8") and Version(np.__version__) >= Version("2.4"):
        pytest.skip(f"Triton {triton.__version__} cannot interpret kernels with NumPy {np.__version__}")
    script = Path(__file__).with_name("triton_interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["agree"] * 6


@pytest.mark.parametrize("architecture", [80, 90])
def test_triton_kernels_compile_for_a_gpu(architecture):
    """For an A100 and an H100, in bfloat16 with heads of 128. Needs no GPU."""
    triton = pytest.importorskip("triton", minversion="3.3")  # signatures were different before
    from triton.backends.compiler import GPUTarget

    from decaf_ros.grounding import rollout_triton

    shape = {"SIZE": 128, "WIDTH": 128, "QUERIES": 64, "KEYS": 64, "PRECISION": "tf32"}
    inputs = {"query_at": "*bf16", "key_at": "*bf16"}
    numbers = {"scaling": "fp32", "count": "i32", "tokens": "i32", "groups": "i32"}
    statistics = {**inputs, "columns_at": "*i8", "total_at": "*fp32", "strength_at": "*fp32", **numbers}
    products = {**inputs, "rows_at": "*fp32", "total_at": "*fp32", "products_at": "*fp32", **numbers, "vectors": "i32"}
    for kernel, types, constants in (
        (rollout_triton._statistics, statistics, shape),
        (rollout_triton._products, products, {**shape, "VECTORS": 2}),
    ):
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        assert f"sm_{architecture}" in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 0
        assert compiled.metadata.shared <= 99 * 1024, "does not fit into the memory of a GeForce"


def test_bad_arguments_raise():
    layers, visual = random_layers(), torch.ones(2, 11, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected one of v_max, max, mean, got 'median'"):
        rollout_last_row(layers, visual, method="median")
    with pytest.raises(ValueError, match="expected one of auto, torch, triton, got 'cuda'"):
        rollout_last_row(layers, visual, kernel="cuda")
    with pytest.raises(ValueError, match="expected a cuda device and the package triton, got device cpu"):
        rollout_last_row(layers, visual, kernel="triton")
    with pytest.raises(ValueError, match="at least one recorded layer"):
        rollout_last_row([], visual)
    with pytest.raises(ValueError, match=r"expected keys for \(2, 12\) tokens"):
        rollout_last_row(layers, torch.ones(2, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="got one without any"):
        rollout_last_row(layers, torch.zeros_like(visual))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 80, 128])
@pytest.mark.parametrize("method", ["v_max", "max", "mean"])
def test_kernels_agree_on_a_gpu(dtype, size, method):
    """At a real prompt's length, with the model's memory layout of queries and keys."""
    generator = torch.Generator("cuda").manual_seed(0)
    tokens, visual = 1703, torch.zeros(2, 1703, dtype=torch.bool, device="cuda")
    visual[:, 15:1600] = True

    def part(heads: int) -> torch.Tensor:
        flat = torch.randn(2, tokens, heads, size, device="cuda", generator=generator).to(dtype)
        return flat.transpose(1, 2)

    layers = [LayerAttention(part(8), part(2), size**-0.5) for _ in range(3)]
    found = [rollout_last_row(layers, visual, method=method, block=512, kernel=name) for name in ("torch", "triton")]
    torch.testing.assert_close(*found, atol=1e-7, rtol=1e-3)
    # bfloat16 inputs, float32 sums, as on a CPU.
    on_cpu = [LayerAttention(layer.query.cpu(), layer.key.cpu(), layer.scaling) for layer in layers]
    torch.testing.assert_close(
        found[0].cpu(), rollout_last_row(on_cpu, visual.cpu(), method=method), atol=1e-6, rtol=1e-2
    )
    faster = rollout_last_row(layers, visual, method=method, block=512)
    torch.testing.assert_close(faster, found[0], atol=1e-7, rtol=1e-3)
