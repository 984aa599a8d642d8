"""What pruning needs to know of a model from data: mean gates, gradients and how good it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from se_mm.analysis.excitation import gather_gates
from se_mm.analysis.gate_statistics import GateStatistics
from se_mm.analysis.gates import Batch, evaluating, gate_layers
from se_mm.analysis.scores import Score
from se_mm.utils import InputError

from .excitation import GateData

Advance = Callable[[], object]


def mean_gates(model: nn.Module, data: GateData, advance: Advance = lambda: None) -> dict[str, Tensor]:
    """Mean gate (C,), float64, of every SE layer over images, by path of the layer in the model.

    Args:
        model: with SE layers.
        data: the images.
        advance: called after each batch.
    """
    paths = {layer.name: layer.path for layer in gate_layers(model)}
    statistics = GateStatistics(data.groupings, (0.1, 0.9), paths)
    gather_gates(statistics, model, _advancing(data.batches(), advance), model.test_step)
    found = statistics.layers
    return {path: found[name].sum[0] / found[name].count[0] for name, path in paths.items()}


def add_gradients(model: nn.Module, cfg: Config, images: int, seed: int, advance: Advance = lambda: None) -> None:
    """Add the gradients of the loss over images of the training to the parameters of a model in evaluation mode.

    Args:
        model: whose parameters get gradients, frozen ones too.
        cfg: with ``train_dataloader``, whose workers draw by the seed as well.
        images: number of images, rounded up to whole batches.
        seed: of the images and what training does to them.
        advance: called after each batch.

    Raises:
        InputError: a gradient is NaN or infinite.
    """
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
    set_random_seed(seed)  # transforms draw from all generators
    model.eval().requires_grad_(True).zero_grad()
    for batch in islice(loader, number_of_batches(images, cfg.train_dataloader.batch_size)):
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        model.parse_losses(losses)[0].backward()
        advance()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise InputError(
                f'the gradient of {name} is not finite: look for NaN and infinite values in the weights and in the '
                'images, or choose another --importance'
            )


def evaluate(model: nn.Module, data: GateData, score: Score, advance: Advance = lambda: None) -> list:
    """What a score has to remember of a model's outputs for images, an entry for each image.

    Args:
        model: runs in evaluation mode, and gets its mode back.
        data: the images.
        score: of :func:`se_mm.engine.excitation.score_of`.
        advance: called after each batch.
    """
    kept = []
    with evaluating(model), torch.no_grad():
        for batch in _advancing(data.batches(), advance):
            kept += score.keep(model.test_step(batch.inputs))
    return kept


def number_of_batches(images: int, size: int) -> int:
    """Batches that so many images fill."""
    return -(-images // size)


def _advancing(batches: Iterable[Batch], advance: Advance) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance()
