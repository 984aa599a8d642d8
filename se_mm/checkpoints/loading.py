"""Loading weights from anywhere into a backbone, with nothing silently lost."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
import yaml
from filelock import FileLock
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from se_mm.utils import InputError

from .architecture import differences, expected_arguments
from .formats import Format, Weights, recognise
from .reading import read_checkpoint

# Parts that no weights of another project have: they start afresh.
OWN_PARTS = re.compile(r'conv_offset|num_batches_tracked')
# Parts that no backbone has.
HEADS = re.compile(r'(head|fc|classifier|neck|last_linear|out|output|proj\w*)\.')
STAGE = re.compile(r'(layer|stage)\d+\.')


def published() -> list[dict]:
    """Published weights of SE networks.

    Returns:
        Dicts of ``checkpoint``, ``arguments`` of the backbone, ``error`` (top-1 and top-5 on ImageNet in %),
        ``images`` (normalisation, 'imagenet' or 'caffe') and, if not 224, ``size``.
    """
    return yaml.safe_load(Path(__file__).with_name('published.yml').read_text())


def locate(checkpoint: str) -> Path:
    """The local file of a checkpoint, downloaded if need be, once for all processes of a machine.

    Args:
        checkpoint: a path; ``timm://NAME`` through timm's download and cache; the names that MMEngine
            knows (``torchvision://``, ``open-mmlab://``, ``mmcls://``); or ``http(s)://``.

    Raises:
        InputError: unknown name or scheme; not cached and not to be downloaded.
    """
    scheme, separator, name = str(checkpoint).partition('://')
    if not separator:
        return Path(checkpoint)
    if scheme == 'timm':
        return _locate_in_timm(name)
    url = checkpoint if scheme in ('http', 'https') else _openmmlab_url(scheme, name)
    if not url.startswith('http'):
        return Path(url)
    name = Path(urlparse(url).path).name
    digest = re.search(r'-([a-f0-9]{8,})\.', name)  # OpenMMLab's convention and torch's
    # Files of the same name from elsewhere are told apart by their digest or their address.
    folder = '' if digest else hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(torch.hub.get_dir(), 'checkpoints', folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        if not path.is_file():
            print_log(f'downloading {url} to {path}', logger='current')
            try:
                torch.hub.download_url_to_file(url, str(path), digest and digest[1])
            except Exception as error:
                raise InputError(_offline(checkpoint, url, path, error)) from error
    return path


def _offline(checkpoint: str, url: str, path: str | Path, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f'checkpoint {checkpoint} is not in the cache and cannot be downloaded ({reason}): download {url} elsewhere '
        f'and give its path as checkpoint, or put it at {path}'
    )


def _locate_in_timm(name: str) -> Path:
    if re.search(r'res(net|next)(aa|blur)', name):
        raise InputError(f'checkpoint timm://{name}: no network here smooths before its strides, as this one does')
    try:
        import timm
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InputError(f"checkpoint timm://{name} needs timm: pip install 'se_mm[weights]'") from error
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        cfg = None
    if cfg is None or not cfg.has_weights:
        similar = timm.list_pretrained(f'*{name.partition(".")[0]}*')[:8]
        raise InputError(f'timm has no weights named {name!r}; similar: {", ".join(similar) or "none"}')
    repository = cfg.hf_hub_id
    try:
        try:
            return Path(hf_hub_download(repository, 'model.safetensors'))
        except EntryNotFoundError:
            return Path(hf_hub_download(repository, 'pytorch_model.bin'))
    except Exception as error:
        url = f'https://huggingface.co/{repository}/resolve/main/model.safetensors'
        raise InputError(_offline(f'timm://{name}', url, "Hugging Face's cache", error)) from error


def _openmmlab_url(scheme: str, name: str) -> str:
    from mmengine.runner import checkpoint as mm

    tables = {
        'torchvision': mm.get_torchvision_models,
        'modelzoo': mm.get_torchvision_models,
        'open-mmlab': mm.get_external_models,
        'openmmlab': mm.get_external_models,
        'mmcls': mm.get_mmcls_models,
    }
    if scheme not in tables:
        known = ', '.join(f'{key}://' for key in ('timm', *tables, 'http', 'https'))
        raise InputError(f'checkpoint {scheme}://{name}: unknown scheme, known are {known}; or give a file')
    models = tables[scheme]()
    if name not in models:
        raise InputError(f'checkpoint {scheme}://{name}: MMEngine knows no such name, but {", ".join(models)}')
    url = models[name]
    if not url.startswith('http'):  # relative to MMEngine's folder of models
        from mmengine.runner.checkpoint import _get_mmengine_home

        return os.path.join(_get_mmengine_home(), url)
    return url


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$')
def load_from_safetensors(filename: str, map_location: str | None = None) -> dict:
    """For load_from and testing, where MMEngine reads the file."""
    return read_checkpoint(filename)


class Report(NamedTuple):
    """What became of a checkpoint's tensors.

    Attributes:
        source: the checkpoint.
        format: its :class:`Format`, None if its names are the model's own.
        matched: number of the model's tensors that were loaded.
        renamed, transposed: of these, how many had another name, or another shape or order of channels.
        fresh: the model's tensors that keep their initial values.
        left_over: the checkpoint's tensors that the model has no place for.
    """

    source: str
    format: Format | None
    matched: int
    renamed: int
    transposed: int
    fresh: list[str]
    left_over: list[str]

    @property
    def fresh_se(self) -> bool:
        return any('se_layer' in name for name in self.fresh)

    def __str__(self) -> str:
        name = self.format.name if self.format else "the model's own"
        lines = [
            f'{self.source} (format: {name}): {self.matched} tensors loaded, {self.renamed} of them renamed, '
            f'{self.transposed} transposed; {examples(self.fresh)} start afresh; {examples(self.left_over)} left over'
        ]
        if self.fresh_se:
            lines.append('The SE layers start afresh: the network has to be trained until it is as good as without SE.')
        if self.format and self.format.normalisation:
            n = self.format.normalisation
            lines.append(f'The weights expect RGB images with mean={n["mean"]}, std={n["std"]} (data_preprocessor).')
        return '\n'.join(lines)


def examples(names: list[str]) -> str:
    """Their number, with a few of them."""
    if not names:
        return 'none'
    return f'{len(names)} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'


def backbone_weights(
    tensors: dict[str, Tensor], source: str, prefix: str | None, meta: dict | None = None
) -> tuple[dict[str, Tensor], Weights | None]:
    """A backbone's tensors with our names, and what they were if of a known format."""
    weights = recognise(tensors, source, prefix, meta)
    if weights is not None:
        return weights.tensors, weights
    if prefix is None:
        prefix = next(
            (p for p in ('module.backbone.', 'backbone.', 'module.') if any(n.startswith(p) for n in tensors)), ''
        )
    elif prefix:
        prefix = f'{prefix.rstrip(".")}.'
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, None


def load_backbone(
    model: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    strict: bool = True,
    fresh_se: str = 'random',
    unsafe_pickle: bool = False,
) -> Report:
    """Load weights of any format that this package reads into a backbone.

    Tensors of a plain network are all loaded; SE then starts afresh. Deformable convolutions'
    offsets and plugins may be missing, stages that the model does not have may be left over.

    Args:
        model: one of the backbones here.
        checkpoint: see :func:`locate`.
        prefix: of the backbone's names in the checkpoint; None to find it.
        strict: whether every other tensor has to match, on both sides.
        fresh_se: 'random', or 'identity' to let SE that starts afresh leave the network's results as they
            are: its gates are 0.5 for every image, and the norms before it are doubled.
        unsafe_pickle: let a torch file run whatever code it holds.

    Raises:
        InputError: no such checkpoint; it is damaged or would run code; its tensors do not fit, with the
            arguments of the model to set.
    """
    content = read_checkpoint(locate(checkpoint), unsafe_pickle)
    tensors, weights = backbone_weights(content['state_dict'], checkpoint, prefix, content.get('meta'))
    return load_tensors(model, tensors, weights, checkpoint, strict, fresh_se)


def load_tensors(
    model: nn.Module,
    tensors: dict[str, Tensor],
    weights: Weights | None,
    checkpoint: str,
    strict: bool = True,
    fresh_se: str = 'random',
) -> Report:
    """:func:`load_backbone` of what was read: tensors with our names, and what they were."""
    if fresh_se not in ('random', 'identity'):
        raise InputError(f"init_cfg.fresh_se={fresh_se!r}: choose 'random' or 'identity'")
    own, name = model.state_dict(), type(model).__name__
    residual = 'layer1.0.conv2.weight'
    if weights and hasattr(model, 'maxpool') and residual in own and residual in tensors:
        changes = differences(expected_arguments(tensors, weights.format), model)
        message = f'checkpoint {checkpoint} ({weights.format.name}) does not fit this {name}: set {", ".join(changes)}'
        if changes and strict:
            raise InputError(message)
        if changes:
            print_log(message, logger='current', level=logging.WARNING)
    shapes = [k for k, t in tensors.items() if k in own and t.shape != own[k].shape]
    fresh = [k for k in own if k not in tensors]
    surplus = [k for k in tensors if k not in own]
    stages = tuple(f'{stage}.' for stage in getattr(model, 'stage_names', ()))
    plain = not any('se_layer' in k for k in tensors)
    missing = [
        k for k in fresh
        if not (OWN_PARTS.search(k) or plain and 'se_layer' in k or _of_plugin(model, k))
    ]  # fmt: skip
    unexpected = [
        k for k in surplus
        if not (HEADS.match(k) or k.endswith('num_batches_tracked') or STAGE.match(k) and not k.startswith(stages))
    ]  # fmt: skip
    left_over = surplus
    if weights:
        inside = [k for k in weights.left_over if k.startswith(weights.prefix)]
        unexpected += [k for k in inside if not HEADS.match(k.removeprefix(weights.prefix))]
        left_over = weights.left_over + [f'{weights.format.head}.{k}' for k in weights.head] + surplus
    if shapes or (strict and (missing or unexpected)) or len(fresh) == len(own):
        raise InputError(
            f'checkpoint {checkpoint} does not fit this {name}: of its {len(own)} tensors {examples(missing)} are '
            f'missing, {examples(shapes)} have another shape; {examples(unexpected)} of the checkpoint have no place. '
            'Check type, depth and the other arguments of the backbone, or allow it with init_cfg.strict=False '
            '(other shapes are never allowed)'
        )
    model.load_state_dict(tensors, strict=False)
    if fresh_se == 'identity':
        if not plain or not any('se_layer' in k for k in fresh):
            raise InputError(f"init_cfg.fresh_se='identity': checkpoint {checkpoint} has SE, or {name} has none")
        start_as_identity(model)
    counts = (weights.renamed, weights.transposed) if weights else (0, 0)
    return Report(checkpoint, weights and weights.format, len(own) - len(fresh), *counts, fresh, left_over)


def _of_plugin(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a plugin of a residual unit."""
    parts = name.split('.')
    block = model.get_submodule('.'.join(parts[:2])) if len(parts) > 3 else None
    return any(parts[2] in names for names in getattr(block, 'plugin_names', {}).values())


@torch.no_grad()
def start_as_identity(model: nn.Module) -> None:
    """Let fresh SE layers change nothing: gates of 0.5 after norms of twice the size.

    Gates near 1 would change as little, but a sigmoid learns a tenth as fast there.

    Raises:
        InputError: a layer whose gate is no sigmoid, or that does not stand after a norm.
    """
    for block in model.modules():
        se_layer = getattr(block, 'se_layer', None)
        if se_layer is None or not hasattr(block, 'se_position'):
            continue
        last = getattr(se_layer, se_layer.layers[-1])
        if block.se_position != 'standard' or type(last.activate) is not nn.Sigmoid:
            raise InputError("init_cfg.fresh_se='identity' needs se_position='standard' and a gate of type Sigmoid")
        for parameter in last.conv.parameters():
            parameter.zero_()
        norm = block.last_norm
        norm.weight.mul_(2)
        norm.bias.mul_(2)
