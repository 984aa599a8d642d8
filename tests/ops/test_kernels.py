import json
import sys

import pytest
import triton
from packaging.version import Version

# Compiles for GPUs that need not be there; the interpreter, which the other tests use without a GPU, knows no types,
# registers or memory accesses.
COMPILE = """
import collections, itertools, json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from se_mm.ops import excitation_kernels, kernels

MAPS = ('x', 'identity', 'out', 'grad', 'g', 'dx')
INTEGERS = ('C', 'N', 'R', 'size', 'rows', 'span', 'splits', 'channel_stride', 'position_stride', 'count', 'total')
TYPES = dict(float16='fp16', bfloat16='bf16', float32='fp32', float64='fp64')
report = []
for name, layout, (dtype, short), capability in itertools.product(
    sys.argv[1:], ('contiguous', 'channels_last'), TYPES.items(), (80, 90)
):
    kernel = getattr(kernels, name, None) or getattr(excitation_kernels, name)
    acc = 'fp64' if dtype == 'float64' else 'fp32'
    one = 'position_stride' if layout == 'contiguous' else 'channel_stride'
    tile = (2, 1024) if layout == 'contiguous' else (64, 64)
    values = dict(ACC=getattr(kernels.tl, acc.replace('fp', 'float')), BLOCK_C=tile[0], BLOCK_P=tile[1], BLOCK_N=64,
                  BLOCK_R=64, BIAS=True,
                  BATCH=True, UPDATE=True)
    values[one] = 1
    signature, constants, hints = {}, {}, {}
    for i, p in enumerate(kernel.params):
        if p.name in values:
            signature[p.name], constants[p.name] = 'constexpr', values[p.name]
        elif p.name in ('unbiased', 'momentum', 'eps', 'factor'):
            signature[p.name] = 'fp32'
        else:
            signature[p.name] = 'i32' if p.name in INTEGERS else '*' + (short if p.name in MAPS else acc)
            hints[(i,)] = [['tt.divisibility', 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32))
    wide = re.findall(r'(?:ld|st)\\.global\\S*\\.(?:v4\\.b32|v2\\.b64)', compiled.asm['ptx'])
    report.append((layout, dtype, capability, len(compiled.asm['cubin']), len(wide)))
print(json.dumps(report))
"""


@pytest.mark.skipif(
    Version(triton.__version__) < Version('3.3'), reason='Triton before 3.3 has another interface to its compiler'
)
@pytest.mark.parametrize(
    'name',
    [
        '_moments',
        '_normalise',
        '_scale_add_relu',
        '_masked_sums',
        '_gate_gradients',
        '_gates',
        '_excitation_gradients',
        '_excitation_weights',
        '_coefficients',
        '_input_gradient',
    ],
)
def test_compiles_for_gpus(name, run):
    """For Ampere and Hopper, all dtypes and layouts; maps are read and written 16 bytes at a time."""
    code, output = run(sys.executable, '-c', COMPILE, f'{name}_kernel', TRITON_INTERPRET=0, TRITON_CACHE_DIR='cache')
    assert code == 0, output
    report = json.loads(output.splitlines()[-1])
    assert len(report) == 2 * 4 * 2
    for layout, dtype, capability, size, wide in report:
        assert size > 0
        if name in ('_moments', '_scale_add_relu', '_masked_sums', '_input_gradient'):  # of maps
            assert wide > 0, (layout, dtype, capability)
