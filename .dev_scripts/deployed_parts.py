"""What the parts of SE cost in a deployed SE-ResNet-50 on a CPU, one image of 224x224, as docs/deploy.md quotes it.

    python .dev_scripts/deployed_parts.py --json docs/deployed_parts.json

PyTorch: networks with more and more parts of SE take turns, from ResNet-50 to SE-ResNet-50. A part is what a network
takes longer than the one before. onnxruntime and OpenVINO profile themselves: the time of all operators of a kind.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import torch
import torch._inductor.config
from rich.console import Console
from rich.progress import track
from rich.table import Table

from se_mm.analysis import interleave
from se_mm.analysis.cost import Measurement
from se_mm.conversion.onnx_file import export_onnx
from se_mm.models import SEResNet
from se_mm.models.blocks import SEBottleneck
from se_mm.ops import scale_add
from se_mm.utils import installed_versions, write_json

IMAGES = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


class KnownGates(SEBottleneck):
    """Scales and adds."""

    def residual(self, x, identity):
        gates = self.gates_for(x)
        in_place = not torch.compiler.is_compiling()
        return self.relu(scale_add(self.last_conv(x), gates, identity, in_place=in_place))

    def gates_for(self, x):
        return self.se_layer.conv2.conv.bias[None]


class KnownMeans(KnownGates):
    """Computes gates by functions of torch, of numbers that are no means."""

    def gates_for(self, x):
        return self.se_layer.as_excitation(1.0)(self.known_means)


class ModulesOfGates(KnownMeans):
    """Computes gates by the modules of the SE layer."""

    def gates_for(self, x):
        return self.branch_gates(self.known_means)


EAGER = {  # how the units of a network compute, None for those of the library
    'ResNet-50': (False, None),
    'scale': (True, KnownGates),
    'products and activations of gates': (True, KnownMeans),
    'calls of modules': (True, ModulesOfGates),
    'means': (True, None),
}
COMPILED = {  # modules are called once, to compile them; gates of known means would become constants
    'ResNet-50': (False, None),
    'scale': (True, KnownGates),
    'means, products and activations of gates': (True, None),
}


def deployed(with_se, kind=None):
    """A network in evaluation mode."""
    torch.manual_seed(0)
    network = SEResNet(50, out_indices=(3,), with_se=with_se, zero_init_residual=False).eval()
    network.switch_to_deploy()
    if kind is not None:
        for unit in network.modules():
            if isinstance(unit, SEBottleneck):
                unit.__class__ = kind
                unit.known_means = torch.rand(1, unit.last_conv.in_channels)
                if kind is KnownMeans:  # looks for hooks once
                    excitation = unit.se_layer.as_excitation(1.0)
                    unit.se_layer.as_excitation = lambda factor, excitation=excitation: excitation
    return network


def time_of_parts(compiled, rounds):
    """Milliseconds of every network, one number a round."""
    measurements = {}
    for name, (with_se, kind) in (COMPILED if compiled else EAGER).items():
        network = deployed(with_se, kind)
        run = torch.compile(network) if compiled else network
        measurements[name] = Measurement(network, lambda run=run: run(IMAGES)[0], torch.device('cpu'))
        measurements[name]()
    steps = track(range((rounds + 3) * len(measurements)), 'compiled' if compiled else 'not compiled')
    found = interleave(measurements, repeats=rounds, warmup=3, progress=iter(steps).__next__)
    return {name: torch.tensor([1e3 * seconds['step'] for seconds in found[name]]) for name in measurements}


def median(values):
    """Median of the rounds, and the ends of its 95 % interval by ranks, which pauses of the machine do not move."""
    ranked, margin = values.sort().values, 0.98 * len(values) ** 0.5
    ranks = (min(max(0, int(len(ranked) / 2 + shift)), len(ranked) - 1) for shift in (-margin, 0, margin))
    low, middle, high = (round(ranked[rank].item(), 2) for rank in ranks)
    return middle, low, high


def differences(times):
    """Median and interval of the plain network, of each part (the difference to the network before), and of SE."""
    (first, plain), *others = times.items()
    found, before = {first: median(plain)}, plain
    for name, values in others:
        found[name], before = median(values - before), values
    return found | {'all of SE': median(before - plain)}


def profile_of_onnxruntime(content, rounds):
    """Milliseconds of each kind of operator in one run."""
    import onnxruntime

    times, images = Counter(), IMAGES.numpy()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / 'profile')
        session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
        for _ in range(rounds):
            session.run(None, dict(images=images))
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('kernel_time'):
            kind, gate = event['args']['op_name'], 'se_layer' in event['name']
            times['Conv of gates' if kind == 'Conv' and gate else kind] += event['dur'] / 1e3 / rounds
    return times


def profile_of_openvino(content, rounds):
    """Milliseconds of each kind of operator in one run."""
    import openvino

    settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads(), PERF_COUNT=True)
    core = openvino.Core()
    request = core.compile_model(core.read_model(content), 'CPU', settings).create_infer_request()
    times, images = Counter(), IMAGES.numpy()
    for _ in range(rounds):
        request.infer([images])
        for info in request.get_profiling_info():
            gate = info.node_type == 'Convolution' and 'se_layer' in info.node_name
            times['Convolution of gates' if gate else info.node_type] += info.real_time.total_seconds() * 1e3 / rounds
    return times


def profiles(profile, contents, rounds):
    """Milliseconds in the plain and in the SE network, of each kind of operator that takes 0.05 ms in one of them."""
    plain, se = (profile(content, rounds) for content in contents)
    kinds = [kind for kind in {**se, **plain} if max(plain[kind], se[kind]) >= 0.05]
    found = {kind: (round(plain[kind], 2), round(se[kind], 2)) for kind in sorted(kinds, key=lambda kind: -se[kind])}
    return found | {'all': (round(plain.total(), 2), round(se.total(), 2))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=400, help='of each network [400]')
    parser.add_argument('--json', metavar='FILE', help='write the numbers into this file')
    args = parser.parse_args()
    torch._inductor.config.freezing = True
    contents = [export_onnx(deployed(with_se), IMAGES, ['map']) for with_se in (False, True)]
    found = {
        'PyTorch': differences(time_of_parts(False, args.rounds)),
        'torch.compile': differences(time_of_parts(True, args.rounds)),
        'onnxruntime': profiles(profile_of_onnxruntime, contents, args.rounds),
        'OpenVINO': profiles(profile_of_openvino, contents, args.rounds),
    }
    table = Table('', 'ms: median and 95 % interval, or plain and SE', show_header=True)
    for name, rows in found.items():
        for part, values in rows.items():
            table.add_row(f'{name}: {part}', ', '.join(map(str, values)))
        table.add_section()
    Console(width=100).print(table)
    found['machine'] = dict(
        cpu=torch.backends.cpu.get_cpu_capability(), threads=torch.get_num_threads(), **installed_versions()
    )
    if args.json:
        write_json(args.json, found)


if __name__ == '__main__':
    main()
