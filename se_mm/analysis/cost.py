"""Time and memory of training steps and inference."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Step = Callable[[], dict[str, float]]
PHASES = ('forward', 'backward', 'step')  # of an inference: forward and step


class Quantiles(NamedTuple):
    """The 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


def quantiles(values: list[float], digits: int | None = None) -> Quantiles:
    """p20, p50 and p80, interpolated linearly and rounded to ``digits`` decimals."""
    tensor = torch.tensor(values, dtype=torch.float64)
    found = tensor.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return Quantiles(*(value if digits is None else round(value, digits) for value in found))


def stored_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of all the storages that autograd stores for backward in ``forward()``, after which backward cannot run.

    Every storage is counted once. Parameters and buffers of ``module`` are not counted, nor are
    tensors that a function stores by other means than ``save_for_backward``.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    stored, alive = {}, []

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            stored[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or else the address would be given again

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        forward()
    alive.clear()  # the graph holds pack, which holds them: it would never be freed
    return sum(stored.values())


def clock(device: torch.device) -> float:
    """Seconds, after all work of the device is done."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Measurement:
    """A network's training step, with SGD, if the network is in training mode; its inference otherwise.

    Args:
        model: the network, on ``device``.
        forward: computes the loss, a scalar; for inference anything.
        device: where the network runs.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], Tensor], device: torch.device) -> None:
        self.model, self.forward, self.device = model, forward, device
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9) if model.training else None

    def __call__(self) -> dict[str, float]:
        """Run once; returns the seconds of each of ``PHASES``. A training step includes the optimizer's."""
        times = [clock(self.device)]
        with torch.set_grad_enabled(self.model.training):
            loss = self.forward()
        times.append(clock(self.device))
        if self.model.training:
            loss.backward()
            times.append(clock(self.device))
            self.optimizer.step()
            self.optimizer.zero_grad()
        end = clock(self.device)
        seconds = dict(zip(PHASES, (b - a for a, b in zip(times, times[1:]))))
        return dict(seconds, step=end - times[0])

    def memory(self) -> dict[str, int]:
        """``stored_bytes`` in training; on a GPU ``peak_bytes``, the peak of a step above what stood before."""
        result = dict(stored_bytes=stored_bytes(self.model, self.forward)) if self.model.training else {}
        if self.device.type == 'cuda':
            self()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()  # of all networks
            self()
            result['peak_bytes'] = torch.cuda.max_memory_allocated() - before
        return result


def interleave(
    steps: dict[str, Step], *, repeats: int, warmup: int, progress: Callable[[], object] = lambda: None
) -> dict[str, list[dict[str, float]]]:
    """Run every step ``repeats`` times, all of them in each round in a random order.

    Args:
        steps: functions that run once and return seconds by name.
        warmup: rounds before that are not counted.
        progress: called after every step.

    Returns:
        what each step returned, one entry a round.
    """
    order, rounds = list(steps), {name: [] for name in steps}
    shuffle = random.Random(0)
    for i in range(warmup + repeats):
        shuffle.shuffle(order)
        for name in order:
            seconds = steps[name]()
            if i >= warmup:
                rounds[name].append(seconds)
            progress()
    return rounds


def compare(
    measurements: dict[str, Measurement], *, repeats: int, warmup: int, progress: Callable[[], object] = lambda: None
) -> dict[str, dict[str, Quantiles | int | float]]:
    """Measure networks in turn and divide by the first: times by those of the same round, bytes by its bytes.

    Args:
        measurements: what to run, by name.
        repeats: rounds that are counted.
        warmup: rounds before that are not counted.
        progress: called after every step.

    Returns:
        for each name, the measured fields of :class:`se_mm.analysis.Cost`.
    """
    memory = {name: measurement.memory() for name, measurement in measurements.items()}  # compiles, too
    keep_freed_memory(True)
    rounds = interleave(measurements, repeats=repeats, warmup=warmup, progress=progress)
    keep_freed_memory(False)
    base, costs = next(iter(measurements)), {}
    for name, seconds in rounds.items():
        cost = costs[name] = dict(memory[name])
        for key, value in memory[name].items():
            cost[key.replace('bytes', 'ratio')] = round(value / memory[base][key], 4)
        for phase in seconds[0]:
            ratios = [own[phase] / plain[phase] for own, plain in zip(seconds, rounds[base])]
            cost[f'{phase}_ms'] = quantiles([1e3 * own[phase] for own in seconds], digits=3)
            cost[f'{phase}_ratio'] = quantiles(ratios, digits=4)
    return costs


def keep_freed_memory(keep: bool) -> bool:
    """Whether glibc keeps freed memory instead of giving it back to the system.

    Asking the system again in every step costs a fifth of a training step, more or less at random,
    and would hide differences between networks. Not while compiling: its many small objects would
    break the large pieces up.

    Returns:
        False where the C library has no such setting.
    """
    trim_threshold, mmap_max = -1, -4
    try:
        libc = ctypes.CDLL('libc.so.6')
        if keep:
            return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))
        libc.malloc_trim(0)
        return bool(libc.mallopt(mmap_max, 65536) and libc.mallopt(trim_threshold, 128 * 1024))
    except OSError:
        return False
