"""What the tools add to a run of MMEngine."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from se_mm.registry import HOOKS


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
