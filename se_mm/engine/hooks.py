"""What the tools add to a run of MMEngine."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from se_mm.registry import HOOKS
from se_mm.utils import InputError


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Store the weights of convolutions with the channels as the last dimension in memory.

    Convolutions then compute in that layout and return maps in it, whatever the layout of their input: faster on GPUs
    with half precision and on CPUs. The numbers are those of the usual layout up to rounding. Checkpoints can be read
    with and without.
    """

    priority = 'VERY_HIGH'  # before hooks that look at the model

    def before_train(self, runner: Runner) -> None:
        """Change the layout, after random weights were drawn and checkpoints loaded: both are filled in its order."""
        runner.model.to(memory_format=torch.channels_last)

    before_val = before_test = before_train


@HOOKS.register_module()
class EagerOptimizerHook(Hook):
    """Leave the steps of optimizers out of what torch.compile compiles.

    MMEngine 0.10 compiles the whole training step. torch then compiles the step of the optimizer anew for each learning
    rate, so for each iteration of a warm-up, until it gives up after eight.
    """

    def before_train(self, runner: Runner) -> None:
        """The training step is compiled when it runs for the first time, after this."""
        wrapper = runner.optim_wrapper
        for part in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            part.optimizer.step = torch.compiler.disable(part.optimizer.step)


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Stop a training whose loss or weights are no finite numbers. Such weights never recover, and are not saved.

    Args:
        patience: number of iterations in a row whose loss may be NaN or infinite.
        interval: number of iterations between two looks at the losses. Each look waits for the GPU.

    Raises:
        InputError: with the iteration and what to try.
    """

    priority = 'LOW'  # before the hook that saves checkpoints

    def __init__(self, patience: int = 10, interval: int = 10) -> None:
        if patience < 0 or interval < 1:
            raise InputError(f'CheckFiniteHook: patience={patience} and interval={interval} have to be 0 and 1 or more')
        self.patience, self.interval = patience, interval
        self.in_a_row = 0  # a tensor beside the loss from the first iteration on

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Count losses that are not finite, on their device."""
        if not isinstance(outputs, dict) or 'loss' not in outputs:
            return
        finite = torch.as_tensor(outputs['loss']).detach().isfinite().all()
        self.in_a_row = torch.where(finite, 0, self.in_a_row + 1)
        if self.every_n_train_iters(runner, self.interval) and self.in_a_row > self.patience:
            self._stop(runner, f'the loss was NaN or infinite in {int(self.in_a_row)} iterations in a row')

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the weights before they are saved."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._check(runner, model.state_dict())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Look at the weights that are saved within an epoch, and at averages of weights."""
        self._check(runner, checkpoint['state_dict'])

    def _check(self, runner: Runner, state: dict[str, torch.Tensor]) -> None:
        wrong = [name for name, x in state.items() if x.is_floating_point() and not x.isfinite().all()]
        if wrong:
            self._stop(runner, f'{len(wrong)} tensors of the model are NaN or infinite, such as {wrong[0]}')

    def _stop(self, runner: Runner, why: str) -> None:
        saved = runner.message_hub.runtime_info.get('last_ckpt')
        kept = f'{saved} is the last checkpoint' if saved else 'no checkpoint was written before'
        raise InputError(
            f'training stopped at epoch {runner.epoch + 1}, iteration {runner.iter + 1}: {why}. {kept}. Try a lower '
            'learning rate (optim_wrapper.optimizer.lr), a longer warm-up, clipped gradients '
            '(optim_wrapper.clip_grad.max_norm=35), or without --amp'
        )
