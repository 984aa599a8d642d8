"""Registers, spills, shared memory and occupancy of the Triton kernels, compiled for GPUs that need not be there.

    python .dev_scripts/kernel_resources.py -o docs/kernels.md

Occupancy is the largest share of a multiprocessor's warps that can be resident: registers, shared memory and the number
of blocks limit it. Tiles are those that the kernels get for a map of 8 images of 256 channels and 56x56 positions.
"""

import argparse
import itertools
import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ['TRITON_INTERPRET'] = '0'  # before Triton is imported

import torch  # noqa: E402
import triton  # noqa: E402
from rich.progress import track  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from se_mm.ops import excitation_kernels, map_kernels, row_kernels, triton_passes  # noqa: E402
from se_mm.ops.excitation import Excitation  # noqa: E402
from se_mm.utils import write_json, written_whole  # noqa: E402

CAPABILITIES = (80, 90, 100)
DTYPES = ('float16', 'bfloat16', 'float32', 'float64')
LAYOUTS = ('contiguous', 'channels_last')
OF_SUMS = (('contiguous', 'float32'), ('contiguous', 'float64'))  # that kernels of rows get
OF_MAPS = ('_moments', '_scale_add_relu', '_masked_sums', '_input_gradient')
OF_ROWS = ('_normalise', '_gate_gradients', '_gates', '_excitation_gradients', '_excitation_weights', '_coefficients')
SHORT = dict(float16='fp16', bfloat16='bf16', float32='fp32', float64='fp64')
MAPS = ('x', 'identity', 'out', 'grad', 'g', 'dx')
INTEGERS = ('C', 'N', 'R', 'size', 'rows', 'span', 'splits', 'channel_stride', 'position_stride', 'count', 'total')
FLOATS = ('unbiased', 'momentum', 'eps', 'factor')
# Of a multiprocessor, by capability: bytes of shared memory. All have 65536 registers, 64 warps and 32 blocks.
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kernels', nargs='+', choices=OF_MAPS + OF_ROWS, default=OF_MAPS + OF_ROWS, help='[all]')
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=DTYPES, help='of maps [all]')
    parser.add_argument('-o', '--out', type=Path, help='page to write, .md')
    parser.add_argument('--json', type=Path, help='file for the numbers')
    return parser.parse_args()


def tiles(dtype, layout):
    """Constants that the kernels get, by name."""
    x = torch.empty(8, 256, 56, 56, dtype=getattr(torch, dtype), device='meta')
    x = x.to(memory_format=torch.channels_last) if layout == 'channels_last' else x
    _, of_maps = triton_passes._grid(x)
    z = torch.empty(8, 256, dtype=triton_passes.accumulation_dtype(x), device='meta')
    _, of_rows = triton_passes._vector_grid(z)
    excitation = Excitation(z.new_empty(16, 256), None, z.new_empty(256, 16), None)
    of_gates = triton_passes._excitation_arguments(z, excitation)
    flags = dict(BATCH=True, UPDATE=True, BIAS=True)
    found = {name: {**of_maps, **flags} for name in OF_MAPS}
    found.update({name: {**of_rows, **flags} for name in OF_ROWS})
    found['_gate_gradients'] = {**of_rows, 'BLOCK_C': triton_passes.GATE_ROWS}
    found['_gates'] = found['_excitation_gradients'] = {**of_gates, **flags}
    found['_excitation_weights'] = {**of_gates, **triton_passes.WEIGHTS_TILE}
    return found


def compile_kernel(name, dtype, layout, capability):
    """A kernel for a GPU; pointers and sizes are multiples of 16."""
    module = next(m for m in (map_kernels, row_kernels, excitation_kernels) if hasattr(m, f'{name}_kernel'))
    kernel = getattr(module, f'{name}_kernel')
    values = tiles(dtype, layout)[name]
    acc = 'fp64' if dtype == 'float64' else 'fp32'
    signature, constants, hints = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        key = parameter.name
        if key.isupper() and len(key) > 1 or values.get(key) == 1 and key.endswith('stride'):
            signature[key], constants[key] = 'constexpr', values[key]
        elif key in FLOATS:
            signature[key] = 'fp32'
        else:
            signature[key] = 'i32' if key in INTEGERS else '*' + (SHORT[dtype] if key in MAPS else acc)
            hints[(i,)] = [['tt.divisibility', 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32))


def resources(compiled, capability):
    """Registers of a thread, bytes spilled, bytes of shared memory, and occupancy."""
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        text = subprocess.run([tool, '-res-usage', file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, shared = (int(re.search(rf'{key}:(\d+)', text)[1]) for key in ('REG', 'STACK', 'SHARED'))
    shared = max(shared, compiled.metadata.shared)
    warps = compiled.metadata.num_warps
    per_warp = -(-registers * 32 // 256) * 256  # registers are given out in pieces of 256
    blocks = min(32, 64 // warps, 65536 // (per_warp * warps), SHARED[capability] // (shared + 1024))
    return dict(registers=registers, spilled=stack, shared=shared, warps=warps, occupancy=blocks * warps / 64)


def exchanges_in_loops(ptx):
    """Shuffles and barriers between a label and a jump back to the label."""
    lines = ptx.splitlines()
    labels = {line.partition(':')[0]: i for i, line in enumerate(lines) if line.startswith('$L__BB')}
    inside = set()
    for i, line in enumerate(lines):
        if (jump := re.search(r'bra\S*\s+(\$L__BB\w+)', line)) and labels[jump[1]] < i:
            inside.update(range(labels[jump[1]], i))
    return sum(bool(re.search(r'\b(shfl|bar)\.', lines[i])) for i in inside)


def measure(names, dtypes):
    """A dict for every kernel, dtype, layout and capability."""
    cases = [
        case for case in itertools.product(names, LAYOUTS, DTYPES, CAPABILITIES)
        if (case[2] in dtypes if case[0] in OF_MAPS else case[1:3] in OF_SUMS)
    ]  # fmt: skip
    rows = []
    for name, layout, dtype, capability in track(cases, 'kernels', transient=True):
        compiled = compile_kernel(name, dtype, layout, capability)
        wide = len(re.findall(r'(?:ld|st)\.global\S*\.(?:v4\.b32|v2\.b64|v4\.b64|v8\.b32)', compiled.asm['ptx']))
        case = dict(kernel=name.strip('_'), layout=layout, dtype=dtype, capability=capability, wide=wide)
        case['exchanges'] = exchanges_in_loops(compiled.asm['ptx'])
        rows.append(case | resources(compiled, capability))
    return rows


def page(rows):
    """The numbers as a table, a line for each kernel, layout and dtype."""
    head = ' | '.join(f'sm_{capability}' for capability in CAPABILITIES)
    lines = [f'| kernel | layout | dtype | {head} |', '| --- ' * (3 + len(CAPABILITIES)) + '|']
    for (name, layout, dtype), group in itertools.groupby(rows, lambda r: (r['kernel'], r['layout'], r['dtype'])):
        cells = []
        for row in group:
            spilled = f', {row["spilled"]} bytes spilled' if row['spilled'] else ''
            cells.append(f'{row["registers"]}, {row["shared"]}, {row["occupancy"]:.0%}{spilled}')
        lines.append(f'| {name} | {layout} | {dtype} | {" | ".join(cells)} |')
    return '\n'.join(lines)


TEXT = """# What the Triton kernels need

Written by `python .dev_scripts/kernel_resources.py -o docs/kernels.md`, with Triton {version}. The kernels were
compiled and not run.

A cell has the registers of a thread, the bytes of shared memory of a block, and the occupancy: the largest share of
a multiprocessor's warps that can be resident. If a kernel spilled registers into memory, its cell would name the bytes.
Tiles are those for a map of 8 images with 256 channels and 56x56
positions. Kernels of maps do the work; the other kernels take numbers of rows and channels.

{table}

Each kernel of maps reads each of its input maps once and writes its output map once. Forward, `moments` reads x, and
`scale_add_relu` reads x and the shortcut and writes the output. Backward, `masked_sums` reads the gradient, the output
and x and writes the gradient before ReLU, and `input_gradient` reads this gradient and x and writes the gradient of x.
These are 11 maps, as many bytes as the definition of the passes needs.

A tail in training launches 5 kernels forward and 6 backward; tests/ops/test_excitation.py counts them. A tile
has 2048 elements. Larger tiles need more registers, and fewer warps are resident.

Sums over positions are kept for each element of a tile. Threads exchange them once, after the loop over tiles: the
loops of `moments` and `masked_sums` have no shuffles and no barriers. Loops over splits are unrolled, and the loop over
images of `excitation_weights`: their loads wait for memory together.
"""


def main():
    args = parse_args()
    rows = measure(args.kernels, args.dtypes)
    table = page(rows)
    print(table)
    if args.json:
        write_json(args.json, rows)
    if args.out:
        with written_whole(args.out) as partial:
            partial.write_text(TEXT.format(version=triton.__version__, table=table))


if __name__ == '__main__':
    main()
