"""Whether a training can go on where a checkpoint was written: its counters, log and optimizer."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn

from se_mm.utils import InputError

from .exact_resume import KEY

# These keep tensors of a parameter's shape, or numbers.
ELEMENTWISE = {
    getattr(torch.optim, name)
    for name in ('SGD', 'Adam', 'AdamW', 'NAdam', 'RAdam', 'Adamax', 'Adagrad', 'Adadelta', 'RMSprop', 'Rprop', 'ASGD')
}
REMEDY = 'start from its weights with --cfg-options load_from={} resume=False and another --work-dir'


def check_resumable(path: str, checkpoint: dict, cfg: Config, model: nn.Module) -> None:
    """Check what MMEngine takes from a checkpoint besides the weights.

    Args:
        path: of the checkpoint, for the error.
        checkpoint: its content.
        cfg: of the training.
        model: built of the config.

    Raises:
        InputError: something is missing, of another kind, after the training's end, or of another optimizer.
    """
    check_parts(path, checkpoint)
    fault = (
        _fault_of_meta(checkpoint['meta'], cfg)
        or _fault_of_log(checkpoint['message_hub'])
        or _fault_of_schedules(checkpoint.get('param_schedulers', []))
        or _fault_of_optimizer(checkpoint['optimizer'], cfg, model)
        or _fault_of_place(checkpoint.get(KEY), model)
    )
    if fault:
        raise InputError(
            f'checkpoint {path} cannot be resumed: {fault}. Resume an earlier checkpoint, or {REMEDY.format(path)}'
        )


def check_parts(path: str, checkpoint: dict) -> None:
    """Raise InputError if a checkpoint has not all the parts that a training goes on with, or one that would be run."""
    missing = sorted({'meta', 'message_hub', 'optimizer'} - set(checkpoint))
    if missing:
        raise InputError(f'checkpoint {path} cannot be resumed, it has no {", ".join(missing)}: {REMEDY.format(path)}')
    if isinstance(checkpoint['meta'], dict) and 'config' in checkpoint['meta']:  # MMEngine would run it; it writes cfg
        raise InputError(f'checkpoint {path} is refused: its meta.config would be run as a program')


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else f'{text[:36]}...'


def _fault_of_meta(meta: object, cfg: Config) -> str | None:
    if not isinstance(meta, dict):
        return f'its meta is no dict but a {type(meta).__name__}'
    for key, limit in (('epoch', 'max_epochs'), ('iter', 'max_iters')):
        if not _is_count(meta.get(key)):
            return f'its meta.{key} is {_short(meta.get(key))}, no number from 0'
        last = (cfg.get('train_cfg') or {}).get(limit)
        if last is not None and meta[key] > last:
            return f'its meta.{key} is {_short(meta[key])}, and the training ends at train_cfg.{limit}={last}'
    seed = meta.get('seed')
    if seed is not None and not (_is_count(seed) and seed < 2**32):
        return f'its meta.seed is {_short(seed)}, no number from 0 to 2**32 - 1'
    return None


def _fault_of_log(hub: object) -> str | None:
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub, dict) or not isinstance(hub.get(key), dict):
            return f'its message_hub has no dict {key}'
        if not all(isinstance(name, str) for name in hub[key]):
            return f'its message_hub.{key} has names that are no text'
    for name, buffer in hub['log_scalars'].items():
        if isinstance(buffer, HistoryBuffer) and not _is_whole(buffer):
            return f'its message_hub.log_scalars has a broken log of {_short(name)}'
    if not all(isinstance(value, bool) for value in hub['resumed_keys'].values()):
        return 'its message_hub.resumed_keys has values other than True and False'
    return None


def _is_whole(buffer: HistoryBuffer) -> bool:
    state = vars(buffer)
    parts = [state.get('_log_history'), state.get('_count_history')]
    arrays = all(isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind in 'biuf' for part in parts)
    return arrays and len(parts[0]) == len(parts[1]) and _is_count(state.get('max_length'))


def _fault_of_schedules(schedules: object) -> str | None:
    groups = list(schedules.values()) if isinstance(schedules, dict) else [schedules]
    if all(isinstance(group, list) and all(isinstance(one, dict) for one in group) for group in groups):
        return None
    return 'its param_schedulers are no list of dicts'


def _fault_of_place(state: object, model: nn.Module) -> str | None:
    """What is wrong with what ExactResumeHook has stored."""
    if state is None:
        return None
    if not isinstance(state, dict) or not all(_is_count(state.get(key)) for key in ('batches', 'seen')):
        return f'its {KEY} is no dict with numbers from 0 as batches and seen'
    processes = state.get('processes')
    named = dict(buffers=dict(model.named_buffers()), gradients=dict(model.named_parameters()))
    if state['seen'] > state['batches'] or not isinstance(processes, list):
        return f'its {KEY} says that {_short(state["seen"])} of {_short(state["batches"])} batches were seen'
    for process in processes:
        tensors = {key: process.get(key) if isinstance(process, dict) else None for key in named}
        if not all(isinstance(part, dict) for part in tensors.values()) or not _are_sizes(process.get('sizes')):
            return f'its {KEY} has processes that are no dicts of buffers, gradients and sizes'
        for key, name, tensor in [(key, *pair) for key, part in tensors.items() for pair in part.items()]:
            own = named[key].get(name)
            if own is None or not isinstance(tensor, Tensor) or tensor.shape != own.shape:
                return f'its {KEY} has a tensor {_short(name)} that does not fit the model'
            if tensor.dtype != own.dtype or tensor.layout is not torch.strided or tensor.is_meta:
                return f'its {KEY} has a tensor {_short(name)} of another kind than the model'
    return None


def _are_sizes(sizes: object) -> bool:
    return isinstance(sizes, list) and all(
        size is None or (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_count, size)) and all(size))
        for size in sizes
    )


def _fault_of_optimizer(state: object, cfg: Config, model: nn.Module) -> str | None:
    if not isinstance(state, dict):
        return f'its optimizer is no dict but a {type(state).__name__}'
    # Mixed precision and accumulation do not change what an optimizer keeps.
    keys = ('optimizer', 'constructor', 'paramwise_cfg')
    given = {key: value for key, value in cfg.optim_wrapper.items() if key in keys}
    if 'optimizer' not in given:  # several optimizers, with a constructor of their own
        return None
    wrapper = build_optim_wrapper(model, Config(dict(type='OptimWrapper', **given))._cfg_dict)
    if type(wrapper) is not OptimWrapper:
        return None
    optimizer, name = wrapper.optimizer, type(wrapper.optimizer).__name__
    options = [set(group) for group in optimizer.param_groups]  # an older torch's are completed, another kind's are not
    try:
        optimizer.load_state_dict({key: value for key, value in state.items() if key != 'base_param_settings'})
        lost = sorted(set.union(*(old - set(new) for old, new in zip(options, optimizer.param_groups))))
        if lost:
            return f"its optimizer is of another kind than the config's {name}, it has no {', '.join(lost)}"
        for group in optimizer.param_groups:
            for fault in (_fault_of_state(optimizer.state.get(p), p, _kept(optimizer, group)) for p in group['params']):
                if fault:
                    return f"its optimizer does not fit the config's {name}: {fault}"
    except Exception as error:  # torch looks at few of the values that it gets
        reason = (str(error) or type(error).__name__).partition('\n')[0]
        return f"its optimizer does not fit the config's {name} ({reason})"
    return None


def _kept(optimizer: torch.optim.Optimizer, group: dict) -> dict:
    """What an optimizer of torch keeps of a parameter with one number, after a step with a group's options.

    Raises:
        ValueError: the options make the number NaN or infinite.
    """
    if type(optimizer) not in ELEMENTWISE:
        return {}
    number = torch.zeros(1, requires_grad=True)
    number.grad = torch.zeros(1)
    left_out = dict(capturable=False, fused=None, foreach=None)  # which only some devices have
    options = {key: left_out.get(key, value) for key, value in group.items() if key not in ('params', 'param_names')}
    probe = type(optimizer)([dict(options, params=[number])], lr=optimizer.defaults['lr'])
    probe.step()
    if not number.isfinite():
        raise ValueError('a step with its options gives NaN or infinite weights')
    return probe.state[number]


def _fault_of_state(state: dict | None, parameter: Tensor, kept: dict) -> str | None:
    if state is None or len(state) == 0:  # the parameter has had no gradient
        return None
    if not isinstance(state, dict):
        return f'a state is a {type(state).__name__}'
    if missing := sorted(key for key, value in kept.items() if isinstance(value, Tensor) and key not in state):
        return f'it keeps no {", ".join(missing)}'
    for key, expected in kept.items():
        value = state.get(key)
        if value is None or not isinstance(expected, Tensor):
            continue
        shape = parameter.shape if expected.shape == (1,) else expected.shape
        if not isinstance(value, Tensor) or value.shape != shape:
            return f'{key} is no tensor of shape {tuple(shape)}'
        if not value.isfinite().all():
            return f'{key} has NaN or infinite values'
    return None
