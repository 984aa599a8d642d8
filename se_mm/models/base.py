"""What all backbones here share."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.utils.checkpoint as cp
from mmengine.logging import print_log
from mmengine.model import BaseModule, Sequential, update_init_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from se_mm.registry import WEIGHT_INITIALIZERS
from se_mm.utils.config import is_pretrained

from .checks import check_stages
from .deploy import Deployed, deploy, fold_gates
from .se_layer import SELayer


class Stage(Sequential):
    """Blocks one after the other; those with ``with_cp`` are recomputed in backward, their activations not stored."""

    def __init__(self, *blocks: nn.Module, with_cp: bool = False) -> None:
        super().__init__(*blocks)
        for block in blocks:
            block.with_cp = with_cp  # where OpenMMLab's tools look for it

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            recompute = getattr(block, 'with_cp', False) and torch.is_grad_enabled()
            x = cp.checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class ConvSE(nn.Sequential):
    """Layers by name, one after the other; the last two are a convolution with norm and ReLU, and ``se_layer``."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(OrderedDict(layers))

    def layers_before_se(self) -> list[nn.Module]:
        """For :func:`start_as_identity`."""
        conv = self[-2]
        return [conv.norm or conv.conv]


def of_each_stage(with_se: bool | Sequence, stages: int) -> tuple[bool | tuple[bool, ...], ...]:
    """Whether SE stands in each stage, or in each of its units, from one value for all or one for each stage."""
    if not isinstance(with_se, Sequence):
        return (bool(with_se),) * stages
    found = [tuple(map(bool, part)) if isinstance(part, Sequence) else bool(part) for part in with_se]
    return tuple(part if part is True or part and any(part) else False for part in found)


def check_se_cfg(se_cfg: dict) -> None:
    """Check that the keys are arguments of :class:`SELayer` that a backbone does not give itself."""
    if 'ratio' in se_cfg:
        raise ValueError('se_cfg has a ratio: give it as se_ratio')
    known = set(inspect.signature(SELayer).parameters) - {'channels', 'in_channels', 'ratio'}
    if unknown := sorted(set(se_cfg) - known):
        raise ValueError(f'se_cfg has the key {unknown[0]!r}: choose of {", ".join(sorted(known))}')


def is_own_se(path: str, module: nn.Module, stage: str) -> bool:
    """Whether a module is the SE layer of a unit of a stage, or a unit itself; and no plugin."""
    return isinstance(module, SELayer) and bool(re.fullmatch(rf'{stage}\.\d+(\.se_layer)?', path))


class Backbone(BaseModule):
    """A stem and stages, whose outputs are the feature maps; parts may be frozen, stages may have SE.

    Subclasses build the stem (and override :meth:`stem_modules` and :meth:`run_stem` if it is not one
    module named ``stem``), and call :meth:`add_stage` for every stage.

    Args:
        num_stages: number of stages.
        out_indices: stages whose outputs are returned, from 0; None for the last.
        frozen_stages: 0 freezes the stem, n also the first n stages, -1 nothing.
        norm_eval: keep batch norms in eval mode while training. Only pretrained weights make sense of it.
        with_cp: recompute blocks in backward instead of storing their activations.
        with_se: whether units have SE: one value for all, or for each stage one value or a sequence of one value for
            each of its units; False gives the plain network.
        se_ratio: reduction ratio r of SE.
        se_cfg: further arguments of :class:`SELayer`, e.g. ``dict(variant='bump')``.
        deploy: build the network as :meth:`switch_to_deploy` leaves it, for the weights of a deployed network.
        init_cfg: initialisation config, None for that of the family's paper.

    Raises:
        ValueError: an argument is outside its choices, which the message names.
    """

    # Blocks of a layer in the middle stages of so many blocks, see get_layer_depth.
    layer_blocks = {4: 2, 8: 4, 36: 4}

    default_init_cfg: list[dict] = [
        dict(type='Kaiming', layer=['Conv2d', 'Linear']),
        dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
    ]

    def __init__(
        self,
        num_stages: int,
        *,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        with_se: bool | Sequence[bool | Sequence[bool]] = True,
        se_ratio: int = 16,
        se_cfg: dict | None = None,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(self.default_init_cfg if init_cfg is None else init_cfg)
        n = num_stages
        self.num_stages, self.frozen_stages, self.norm_eval = n, frozen_stages, norm_eval
        self.out_indices = (n - 1,) if out_indices is None else tuple(out_indices)
        self.with_se = of_each_stage(with_se, n)
        self._units_with_se = Counter()  # that have been built, by stage
        self._se_paths: list[list[str]] = []  # of units, by stage; empty texts for units without SE
        self.deployed, self._deploys = False, deploy
        self.se_cfg = dict(se_cfg or {}, ratio=se_ratio)
        self.with_cp = with_cp
        self.stage_names: list[str] = []
        check_se_cfg(se_cfg or {})
        check_stages(n, n, out_indices=self.out_indices, with_se=self.with_se)
        if frozen_stages not in range(-1, n + 1):
            raise ValueError(f'frozen_stages={frozen_stages!r}: choose -1 to {n} (num_stages={n})')

    def next_has_se(self, stage: int) -> bool:
        """Whether the next unit of a stage that is being built has SE; asked once for each unit."""
        of_units = self.with_se[stage]
        number = self._units_with_se[stage]
        self._units_with_se[stage] += 1
        return of_units if isinstance(of_units, bool) else number < len(of_units) and of_units[number]

    def make_se_layer(self, stage: int, channels: int) -> nn.Module:
        """SE for the next unit of a stage; where ``with_se`` is False, Identity."""
        return SELayer(channels, **self.se_cfg) if self.next_has_se(stage) else nn.Identity()

    def add_stage(self, blocks: list[nn.Module], name: str = 'stage') -> None:
        """Append a stage of these blocks, named ``name`` and its number from 1."""
        stage = len(self.stage_names)
        of_units, units = self.with_se[stage], self._units_with_se[stage]
        if not isinstance(of_units, bool) and len(of_units) != units:
            raise ValueError(f'with_se[{stage}]={of_units} needs {units} entries, or one value for all')
        self.stage_names.append(f'{name}{len(self.stage_names) + 1}')
        self.add_module(self.stage_names[-1], Stage(*blocks, with_cp=self.with_cp))
        paths = iter([path for path, module in self.named_modules() if is_own_se(path, module, self.stage_names[-1])])
        has_se = [of_units] * units if isinstance(of_units, bool) else of_units
        self._se_paths.append([next(paths) if has else '' for has in has_se])
        self.freeze_stages()
        if self._deploys and len(self.stage_names) == self.num_stages:
            self.eval()
            self.switch_to_deploy()

    def switch_to_deploy(self, constant_gates: Mapping[str, Tensor] | None = None) -> list[Deployed]:
        """Fold batch norms into convolutions, and let SE squeeze before the last convolutions where that is the same.

        The network's outputs stay as they are, up to rounding; :mod:`se_mm.models.deploy` has the derivation. The
        network cannot be trained afterwards.

        Args:
            constant_gates: gates (C,) by path of the SE layer in this network, e.g. 'layer4.2.se_layer'. They are
                folded into the weights in place of the SE layer, which changes the outputs unless these are the gates
                that the layer gives every image. ``with_se`` then says which units have SE.

        Returns:
            What became of every norm and SE layer; nothing if the network is deployed already, or is in training mode,
            in which batch norms depend on the batch: it stays as it is, with a warning.

        Raises:
            ValueError: ``constant_gates`` names what is no SE layer, or has another number of channels.
        """
        if self.deployed:
            return []
        if self.training:
            print_log(  # no error: deployment tools of OpenMMLab call this on networks that are not in eval mode yet
                f'{type(self).__name__} is in training mode, where batch norms depend on the batch, and stays as it '
                'is: call eval() before switch_to_deploy()',
                'current',
                logging.WARNING,
            )
            return []
        with torch.no_grad():
            report = deploy(self, constant_gates or {})
        self.requires_grad_(False)
        self.with_se = of_each_stage(self._with_se_now(), self.num_stages)
        self.deployed = True
        return report

    def fold_gates(self, constant_gates: Mapping[str, Tensor]) -> list[Deployed]:
        """Multiply constant gates into weights in place of SE layers; the network can be trained afterwards.

        A gate becomes a factor of the norm or convolution before SE. :attr:`with_se` then says which units have SE.

        Args:
            constant_gates: of :meth:`switch_to_deploy`.

        Returns:
            What became of these SE layers, and why one stays.

        Raises:
            ValueError: ``constant_gates`` names what is no SE layer, or has another number of channels.
        """
        report = fold_gates(self, constant_gates)
        self.with_se = of_each_stage(self._with_se_now(), self.num_stages)
        return report

    def _with_se_now(self) -> list[bool | list[bool]]:
        """``with_se`` of the units as they are now."""
        found = []
        for paths in self._se_paths:
            units = [bool(path) and isinstance(self.get_submodule(path), SELayer) for path in paths]
            found.append(units if len(set(units)) > 1 else any(units))
        return found

    def stem_modules(self) -> list[nn.Module]:
        """The modules with parameters before the first stage."""
        return [self.stem]

    def run_stem(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to the input of the first stage."""
        return self.stem(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W) to one feature map for each of ``out_indices``."""
        x = self.run_stem(x)
        outs = []
        for i, name in enumerate(self.stage_names[: max(self.out_indices) + 1]):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Which layer a parameter belongs to, for mmpretrain's layer-wise decay of learning rates.

        As in mmpretrain's ResNet the stem is layer 0; the first and the last stage are a layer each, and the stages
        between them are cut into layers of ``layer_blocks`` blocks (3 where it does not say); a head is the last layer.

        Args:
            param_name: name of the parameter in the whole model.
            prefix: what the names of the backbone's parameters start with.

        Returns:
            The layer, and the number of layers.
        """
        first, layer_of = 1, {}  # of every block
        for i, name in enumerate(self.stage_names):
            n = len(getattr(self, name))
            size = self.layer_blocks.get(n, 3) if 0 < i < len(self.stage_names) - 1 else n
            layer_of.update({(name, str(j)): first + j // size for j in range(n)})
            first += math.ceil(n / size)
        stage, block, *_ = [*param_name.removeprefix(prefix).split('.'), '']
        in_head = not param_name.startswith(prefix) or stage == 'classifier'
        return first if in_head else layer_of.get((stage, block), 0), first + 1

    def freeze_stages(self) -> None:
        """Put what ``frozen_stages`` names into eval mode, and stop its gradients."""
        frozen = self.stem_modules() if self.frozen_stages >= 0 else []
        frozen += [getattr(self, name) for name in self.stage_names[: max(self.frozen_stages, 0)]]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; frozen stages, and with ``norm_eval`` all batch norms, stay in eval.

        Raises:
            RuntimeError: the network is deployed, and ``mode`` is True.
        """
        if mode and self.deployed:
            raise RuntimeError(
                f'this {type(self).__name__} is deployed, and cannot be trained: train without deploy=True, from the '
                'weights that were deployed'
            )
        super().train(mode)
        self.freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise, with pretrained weights by :class:`se_mm.weights.Pretrained`, which takes files of any project.

        Says so when frozen parts or batch norms will stay at random values.
        """
        cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        pretrained = [cfg for cfg in cfgs if is_pretrained(cfg)]
        first, given = not self.is_init, self.init_cfg
        self.init_cfg = [cfg for cfg in cfgs if not is_pretrained(cfg)]
        super().init_weights()
        self.init_cfg = given
        for cfg in pretrained if first else ():
            # found by its name, since models know nothing of files
            WEIGHT_INITIALIZERS.build(dict(cfg, type='se_mm.Pretrained'))(self)
            if hasattr(self, '_params_init_info'):
                update_init_info(self, init_info=f'PretrainedInit: load from {cfg["checkpoint"]}')
        if not pretrained and not self.deployed:
            frozen = [k for k, v in (('norm_eval', self.norm_eval), ('frozen_stages', self.frozen_stages >= 0)) if v]
            if frozen:
                print_log(
                    f'{type(self).__name__} has random weights and {" and ".join(frozen)} set: unless a checkpoint of '
                    'the whole model follows, frozen layers and batch norm statistics will not learn. Give init_cfg '
                    'a pretrained checkpoint, or set norm_eval=False, frozen_stages=-1.',
                    logger='current',
                    level=logging.WARNING,
                )
