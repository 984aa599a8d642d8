"""What torch.compile makes of units in inference on a GPU: kernels and what they compute, without a GPU.

    python .dev_scripts/inductor_kernels.py

Units of ResNet-50 and SE-ResNet-50, as trained and deployed, stage 5, 128 images, bfloat16, channels_last, for sm_90.
Inductor generates code from tensors without content; nothing is compiled further or run. With max_autotune it would
time its templates for matrix products on the GPU; here it takes the first one. The script stands in for the GPU inside
of Inductor, which is made for this version of torch: tested with 2.14.1.
"""

import itertools
import re
from types import SimpleNamespace
from unittest import mock

import torch
import torch._inductor.config as config
from rich.console import Console
from rich.table import Table
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.select_algorithm import AlgorithmSelectorCache
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from se_mm.models import SEResNet

H100 = SimpleNamespace(
    name='NVIDIA H100', major=9, minor=0, total_memory=80 << 30, multi_processor_count=132,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
)  # fmt: skip
MEANINGS = dict(  # of what a generated kernel computes
    mean=r'tl\.sum|tl2\.sum', product=r'tl\.dot', sigmoid='sigmoid', relu=r'triton_helpers\.maximum'
)


class Generated(Exception):
    """The code of a graph, before anything would be loaded."""


def stand_in_for_gpu():
    """Let Inductor believe in an H100."""
    answers = dict(
        is_available=True, device_count=1, current_device=0, get_device_capability=(9, 0), get_device_properties=H100,
        _get_device_properties=H100, get_rng_state=torch.zeros(1), set_rng_state=None, _exchange_device=0,
        _maybe_exchange_device=0, _lazy_init=None,
    )  # fmt: skip
    for name, answer in answers.items():
        mock.patch.object(torch.cuda, name, lambda *_, answer=answer: answer, create=True).start()
    mock.patch.object(torch.compiler, 'is_compiling', lambda: True).start()
    # as cuDNN answers for channels_last maps
    mock.patch.object(torch._C, '_conv_determine_backend_memory_format', lambda *_: torch.channels_last).start()
    driver._active = SimpleNamespace(
        get_current_target=lambda: GPUTarget('cuda', 90, 32), get_active_torch_device=lambda: torch.device('cuda', 0)
    )

    def first_is_best(*_, **__):
        return lambda choices: {choice: float(i) for i, choice in enumerate(choices)}

    def stop(graph):
        raise Generated(graph.codegen()[0].value)

    mock.patch.object(AlgorithmSelectorCache, 'make_benchmark_fn', classmethod(first_is_best)).start()
    mock.patch.object(GraphLowering, 'compile_to_module', stop).start()


def generated(unit, x):
    """Code for a unit and a map of the shape of x."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():

        def on_gpu(tensor):
            tensor = torch.empty(tensor.shape, dtype=torch.bfloat16, device='cuda')
            return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

        state = {name: on_gpu(tensor) for name, tensor in unit.state_dict().items()}
        arguments = state, on_gpu(x)
        graph = make_fx(lambda state, x: (functional_call(unit, state, x),), decomposition_table=select_decomp_table())(
            *arguments
        )
        try:
            compile_fx_inner(graph, [*state.values(), arguments[1]])
        except Exception as error:
            cause = error.inner_exception if hasattr(error, 'inner_exception') else error
            if isinstance(cause, Generated):
                return str(cause)
            raise
    raise RuntimeError('Inductor took the code from its cache')


def kernels(code):
    """The kernels that the generated program calls, each with what it computes."""
    bodies = dict(re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.DOTALL))
    found = []
    for line in code[code.index('def call(') :].splitlines():
        if call := re.search(r'extern_kernels\.(\w+)\(', line):
            found.append(f'{call[1]} by a library')
        elif call := re.search(r'(triton_\w+)\.run\(', line):
            body = bodies[call[1]]
            does = [meaning for meaning, pattern in MEANINGS.items() if re.search(pattern, body)]
            inputs = len(re.findall(r'tl\.load\(', body))
            found.append(f'Triton: {", ".join(does) or "other pointwise"}; reads {inputs} tensors')
    return found


def main():
    stand_in_for_gpu()
    table = Table('unit', 'deployed', 'max_autotune', 'kernels', show_lines=True)
    for with_se, deployed in itertools.product((False, True), repeat=2):
        network = SEResNet(50, with_se=with_se).eval()
        if deployed:
            network.switch_to_deploy()
        unit, x = network.layer4[1], torch.empty(128, 2048, 7, 7, device='meta')
        for autotune in (False, True):
            options = dict(max_autotune=autotune, max_autotune_gemm_backends='TRITON', fx_graph_cache=False)
            with config.patch(**options, benchmark_epilogue_fusion=False, force_disable_caches=True):
                lines = kernels(generated(unit, x))
            name = 'SE-ResNet-50' if with_se else 'ResNet-50'
            table.add_row(name, str(deployed), str(autotune), '\n'.join(lines))
    Console(width=140).print(table)


if __name__ == '__main__':
    main()
