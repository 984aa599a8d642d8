"""Loading a checkpoint into a backbone or into a whole model, with nothing silently lost."""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from mmengine.logging import print_log
from torch import Tensor, nn

from se_mm.models.fresh_se import identity_layers, start_as_identity
from se_mm.utils import InputError

from .comparison import Comparison, compare
from .download import check_digest, fetch
from .formats import Format
from .reading import read_checkpoint
from .recognition import Weights, recognise
from .tensor_checks import check_tensors

# A convolution with a bias, which residual units have in deployed networks alone.
DEPLOYED = re.compile(r'(^|\.)(layer|stage)\d+\.\d+\.conv1\.bias$')


class LoadReport(NamedTuple):
    """What became of a checkpoint's tensors.

    Attributes:
        source: the checkpoint.
        format: the :class:`Format` of its names.
        loaded: number of the model's tensors that were loaded.
        renamed, transposed: of these, how many had another name, or another shape or order of channels.
        fresh: the model's tensors that keep their initial values.
        left_over: the checkpoint's tensors that the model has no place for.
        identity: whether fresh SE layers change nothing, see :func:`start_as_identity`; otherwise they are random.
        frozen: stages with fresh SE layers that cannot learn.
    """

    source: str
    format: Format
    loaded: int
    renamed: int
    transposed: int
    fresh: list[str]
    left_over: list[str]
    identity: bool = False
    frozen: tuple[str, ...] = ()

    @property
    def fresh_se(self) -> bool:
        """Whether SE layers of the model keep their initial values."""
        return any('se_layer' in name for name in self.fresh)

    @property
    def remedy_for_frozen(self) -> str:
        """What to set so that all fresh SE layers learn."""
        identity = '' if self.identity else " and init_cfg.fresh_se='identity'"
        return (
            f'{self.source} has no SE, and the SE layers of {", ".join(self.frozen)} are frozen, so that these layers '
            f'never learn: set frozen_stages=0{identity}'
        )

    def __str__(self) -> str:
        lines = [
            f'{self.source} (format: {self.format.name}): {self.loaded} tensors loaded, of them {self.renamed} renamed '
            f'and {self.transposed} transposed; {examples(self.fresh)} start afresh; '
            f'{examples(self.left_over)} left over'
        ]
        if self.fresh_se:
            lines.append(
                'The SE layers have initial values that change nothing until they are trained.'
                if self.identity
                else 'The SE layers have initial values: train the network before you use it.'
            )
        if self.frozen:
            lines.append(self.remedy_for_frozen)
        if self.format.normalisation:
            n = self.format.normalisation
            lines.append(f'The weights expect RGB images with mean={n["mean"]}, std={n["std"]} (data_preprocessor).')
        return '\n'.join(lines)


def examples(names: list[str]) -> str:
    """Their number, with a few of them."""
    if not names:
        return 'none'
    return f'{len(names)} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'


def load_backbone(
    model: nn.Module,
    checkpoint: str,
    *,
    prefix: str | None = None,
    strict: bool = True,
    fresh_se: str = 'random',
    unsafe_pickle: bool = False,
    sha256: str | None = None,
) -> LoadReport:
    """Load weights of any format that this package reads into a backbone.

    Tensors of a plain network are all loaded; SE then starts afresh. Deformable convolutions'
    offsets and plugins may be missing, stages that the model does not have may be left over.

    Args:
        model: one of the backbones here.
        checkpoint: see :func:`fetch`.
        prefix: of the backbone's names in the checkpoint; None to find it.
        strict: whether every other tensor has to match, on both sides.
        fresh_se: 'random', or 'identity' to let SE that starts afresh leave the network's results as they
            are, see :func:`start_as_identity`.
        unsafe_pickle: let a torch file run whatever code it holds.
        sha256: hexadecimal SHA-256 of the file, or its first digits, at least 8; None not to compare.

    Raises:
        InputError: no such checkpoint; it has another SHA-256; it is damaged or would run code; its tensors do not
            fit, with the arguments of the model to set; see :func:`check_tensors`.
    """
    path = fetch(checkpoint)
    if sha256 is not None:
        check_digest(path, sha256, checkpoint)
    content = read_checkpoint(path, unsafe_pickle)
    weights = recognise(content['state_dict'], checkpoint, prefix, content.get('meta'))
    return load_weights(model, weights, checkpoint, strict=strict, fresh_se=fresh_se)


def load_weights(
    model: nn.Module, weights: Weights, checkpoint: str, *, strict: bool = True, fresh_se: str = 'random'
) -> LoadReport:
    """The second half of :func:`load_backbone`: load what was read of ``checkpoint`` and recognised."""
    if fresh_se not in ('random', 'identity'):
        raise InputError(f"init_cfg.fresh_se={fresh_se!r}: choose 'random' or 'identity'")
    found = compare(weights, model)
    _check(found, weights, model, checkpoint, strict)
    check_tensors(weights.tensors, model, checkpoint)
    if fresh_se == 'identity':
        if weights.have_se:
            raise InputError(f"init_cfg.fresh_se='identity': checkpoint {checkpoint} has SE layers: leave out fresh_se")
        if not any('se_layer' in name for name in found.fresh):
            raise InputError(
                f"init_cfg.fresh_se='identity': this {type(model).__name__} has no SE layers: set with_se, or leave "
                'out fresh_se'
            )
        identity_layers(model)  # raises before anything is loaded
    model.load_state_dict(weights.tensors, strict=False)
    if fresh_se == 'identity':
        start_as_identity(model)
    stuck = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    stuck = [name for name in stuck if 'se_layer' in name and name in found.fresh]
    return LoadReport(
        source=checkpoint,
        format=weights.format,
        loaded=len(model.state_dict()) - len(found.fresh),
        renamed=weights.renamed,
        transposed=weights.transposed,
        fresh=found.fresh,
        left_over=found.left_over,
        identity=fresh_se == 'identity',
        frozen=() if getattr(model, 'deployed', False) else tuple(dict.fromkeys(n.split('.')[0] for n in stuck)),
    )


def _check(found: Comparison, weights: Weights, model: nn.Module, checkpoint: str, strict: bool) -> None:
    """Raise InputError, or warn if not ``strict``, about what does not fit."""
    name, own = type(model).__name__, len(model.state_dict())
    if found.misfits:
        message = (
            f'checkpoint {checkpoint} ({weights.format.name}) does not fit this {name}: set {", ".join(found.misfits)}'
        )
        if strict:
            raise InputError(message)
        print_log(message, logger='current', level=logging.WARNING)
    lost = found.missing or found.unexpected
    if found.shapes or (strict and lost) or len(found.fresh) == own:
        raise InputError(
            f'checkpoint {checkpoint} does not fit this {name}: of its {own} tensors {examples(found.missing)} are '
            f'missing, {examples(found.shapes)} have another shape; {examples(found.unexpected)} of the checkpoint '
            'have no place. Check type, depth and the other arguments, or allow it with '
            'init_cfg.strict=False (other shapes are never allowed)'
        )
    if lost:
        print_log(
            f'checkpoint {checkpoint} does not fit this {name}, which strict=False allows: of its {own} tensors '
            f'{examples(found.missing)} are missing and start afresh; {examples(found.unexpected)} of the checkpoint '
            'have no place',
            logger='current',
            level=logging.WARNING,
        )


def load_model(
    model: nn.Module,
    weights: dict[str, Tensor],
    path: str,
    *,
    strict: bool = True,
    remedy: str = 'Use the config it was trained with',
) -> None:
    """Load weights of a whole model, or of a module, which have its own names.

    Args:
        model: a detector, classifier or other model.
        weights: tensors by name.
        path: of their file, for the error.
        strict: every tensor must fit; otherwise one is enough.
        remedy: end of the error.

    Raises:
        InputError: saying how many tensors do not fit, with examples; see :func:`check_tensors`.
    """
    if any(name.startswith('module.') for name in weights):
        weights = {name.removeprefix('module.'): tensor for name, tensor in weights.items()}
    expected, shapes, failed = model.state_dict(), [], []
    check_tensors(weights, model, path)
    try:
        # Modules may rename old weights while they load, so names alone do not tell.
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shapes = [line for line in lines if 'size mismatch' in line]
        failed = [line for line in lines if line.startswith('While copying')]
        missing = [name for name in expected if name not in weights]
        unexpected = [name for name in weights if name not in expected]
    fitting = len(weights) - len(unexpected) - len(shapes)
    if fitting > 0 and not failed and not (strict and (missing or unexpected or shapes)):
        return
    deployed = [any(DEPLOYED.search(name) for name in names) for names in (weights, expected)]
    if deployed == [True, False]:
        remedy = 'The checkpoint is of a deployed model: use the config that tools/deploy.py wrote beside it'
    elif deployed == [False, True]:
        remedy = 'The config is of a deployed model, the checkpoint is not: use the config it was trained with'
    parts = [
        f'{len(names)} {what} (e.g. {names[0]})'
        for what, names in (
            ('missing', missing),
            ('unexpected', unexpected),
            ('of another shape', shapes),
            ('not copied', failed),
        )
        if names
    ]
    raise InputError(
        f'checkpoint {path} is for another architecture than the config: of {len(expected)} tensors '
        f'{", ".join(parts)}. {remedy}.'
    )
