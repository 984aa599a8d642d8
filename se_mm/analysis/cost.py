"""Time and memory of training steps and inference."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[], dict[str, float]]


def kept_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of all the storages that autograd keeps for backward in ``forward()``, after which backward cannot run.

    Every storage is counted once; parameters and buffers of ``module`` are not, nor are tensors that
    a function keeps by other means than ``save_for_backward``.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    kept, alive = {}, []

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or else the address would be given again

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        forward()
    alive.clear()  # the graph holds pack, which holds them: it would never be freed
    return sum(kept.values())


def clock(device: torch.device) -> float:
    """Seconds, after all work of the device is done."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def interleave(
    steps: dict[str, Step], repeats: int, warmup: int, progress: Callable[[], object]
) -> dict[str, list[dict]]:
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


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """p20, p50 and p80."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tuple(tensor.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist())
