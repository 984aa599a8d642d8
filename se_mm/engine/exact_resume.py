"""A training that was interrupted goes on as if it had not been, from any checkpoint."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from se_mm.registry import HOOKS
from se_mm.utils import InputError

KEY = 'exact_resume'  # in checkpoints
SAMPLE, STEP = 0, 1  # what random numbers are for


def derived_seed(*numbers: int) -> int:
    """A seed below 2**32 that depends on all numbers, and is far from those of other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Seeded(NamedTuple):
    """An index of a data set, and the seed of the sample that is made of it."""

    index: object
    seed: int


class SeededDataset(Dataset):
    """A data set whose samples depend on the seeds in their indices, and on no random numbers drawn before.

    All else that the data set has is found here too, and what is set here is set there: hooks exchange pipelines.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.__dict__['dataset'] = dataset

    def __getattr__(self, name: str) -> object:
        if name.startswith('__') or name == 'dataset':  # which is missing while an object is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, seeded: Seeded | int) -> object:
        if not isinstance(seeded, Seeded):  # not of the data loader
            return self.dataset[seeded]
        random.seed(seeded.seed)
        np.random.seed(seeded.seed)
        torch.default_generator.manual_seed(seeded.seed)  # of the CPU alone: workers have no GPU
        return self.dataset[seeded.index]


class SeededBatches:
    """Batches of a batch sampler, with seeds for their samples; the first ones may be left out.

    Attributes:
        epoch: number of the next epoch, from 0.
        skip: number of batches to leave out, over epochs if need be. Their samples are not made.
    """

    def __init__(self, batch_sampler: BatchSampler, *seeds: int) -> None:
        self.batch_sampler, self.seeds = batch_sampler, seeds
        self.epoch = self.skip = 0

    def __getattr__(self, name: str) -> object:
        if name.startswith('__') or name == 'batch_sampler':
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Seeded]]:
        epoch = self.epoch
        for number, batch in enumerate(self.batch_sampler):
            if self.skip:
                self.skip -= 1
                continue
            yield [
                Seeded(index, derived_seed(SAMPLE, *self.seeds, epoch, number, place))
                for place, index in enumerate(batch)
            ]


class EndlessBatches:
    """An endless iterator over a data loader, in place of that of MMEngine's ``IterBasedTrainLoop``.

    Args:
        dataloader: has :class:`SeededBatches`.
        unread: number of first calls of ``next`` that return None. MMEngine 0.10.7 makes these calls to leave out
            batches.

    Raises:
        InputError: on ``next``, the data give no batch.
    """

    def __init__(self, dataloader: DataLoader, unread: int) -> None:
        self.dataloader, self.unread, self.iterator = dataloader, unread, None

    def skip_iter(self, number: int) -> None:
        """Nothing: :class:`SeededBatches` leaves out what MMEngine asks for."""

    def __next__(self) -> object:
        if self.unread:
            self.unread -= 1
            return None
        if self.iterator is None:
            self.iterator = iter(self.dataloader)
        while (batch := next(self.iterator, self)) is self:  # the end of an epoch
            batches = self.dataloader.batch_sampler
            if not len(batches):
                raise InputError('the training data give no batch: lower train_dataloader.batch_size')
            batches.epoch += 1
            if hasattr(batches.sampler, 'set_epoch'):
                batches.sampler.set_epoch(batches.epoch)
            self.iterator = iter(self.dataloader)
        return batch


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """A training that is resumed from any of its checkpoints ends with the weights of a training without interruption.

    Random numbers of a sample depend on the run's seed, the process, the epoch and the sample's place in it; those of a
    training step on the seed and the number of the step, and with ``diff_rank_seed`` on the process. Batches of an
    epoch that were seen are left out without being read. Checkpoints get what MMEngine leaves out: how many batches of
    the epoch were seen, and of each process the gradients that are being accumulated and the buffers of the model.

    This needs the number of processes, the images a step and the data to stay. A transform that keeps samples for later
    ones, or draws from a generator of its own, still differs.
    """

    priority = 'LOW'  # before the hook that saves checkpoints

    def __init__(self) -> None:
        self.resumed: dict = {}
        self.batches: SeededBatches | None = None
        self.seen = 0  # batches of this epoch
        self.states: tuple[int, list[dict]] | None = None  # of all processes, after this number of steps
        self.group: dist.ProcessGroup | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember what :meth:`before_save_checkpoint` has stored."""
        self.resumed = checkpoint.get(KEY) or {}

    def before_train(self, runner: Runner) -> None:
        """Let the data loader make samples by their seeds, and take up what was stored."""
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        ordinary = type(loader) is DataLoader and loader.batch_sampler is not None
        if not ordinary or isinstance(loader.dataset, IterableDataset):
            _warn('the data loader is not one of torch with a sampler')
            return
        if runner.world_size > 1:
            self.group = dist.new_group(backend='gloo')  # states are sent by the CPU
        self.batches = SeededBatches(loader.batch_sampler, runner.seed, runner.rank)
        loop.dataloader = _with_parts(loader, SeededDataset(loader.dataset), self.batches)
        if runner.iter:
            self._take_up(runner)
        if hasattr(loop, 'dataloader_iterator'):
            unread = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else runner.iter
            loop.dataloader_iterator = EndlessBatches(loop.dataloader, unread)
            self.batches.skip = runner.iter

    def _take_up(self, runner: Runner) -> None:
        length, states = len(self.batches), self.resumed.get('processes', [])
        if self.resumed.get('batches', length) != length:
            _warn(f'an epoch had {self.resumed["batches"]} batches, and now has {length}')
        else:
            self.seen = self.resumed.get('seen', 0)
        if len(states) != runner.world_size:
            stored = f'is of {len(states)} processes' if states else 'was written without ExactResumeHook'
            _warn(f'the checkpoint {stored}, and this training has {runner.world_size} processes')
            return
        model, state = _unwrapped(runner.model), states[runner.rank]
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in state['buffers']:
                    buffer.copy_(state['buffers'][name])
        for name, gradient in state['gradients'].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        for module, size in zip(_batch_resizers(model), state['sizes']):
            module._input_size = size
        self.resumed = {}  # MMEngine has put the states of all processes on this one's GPU

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the samples their epoch, and the first epoch after an interruption what to leave out."""
        if self.batches is not None and not hasattr(runner.train_loop, 'dataloader_iterator'):
            self.batches.epoch, self.batches.skip = runner.epoch, self.seen

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed the step."""
        # By default, MMEngine gives all processes the same numbers: some models have to draw alike.
        own = runner.rank if (runner.cfg.get('randomness') or {}).get('diff_rank_seed') else 0
        seed = derived_seed(STEP, runner.seed, own, runner.iter)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Collect the states of all processes for a checkpoint within an epoch."""
        self.seen += 1
        self._collect_if_saved(runner, by_epoch=False)

    def after_train_epoch(self, runner: Runner) -> None:
        """Collect the states of all processes for a checkpoint after an epoch."""
        self.seen = 0
        self._collect_if_saved(runner, by_epoch=True)

    def _collect_if_saved(self, runner: Runner, by_epoch: bool) -> None:
        """Collect if a CheckpointHook saves next, by its own conditions: only process 0 will hear of the checkpoint."""
        if runner.world_size == 1:
            return
        every = self.every_n_epochs if by_epoch else self.every_n_train_iters
        is_last = self.is_last_train_epoch if by_epoch else self.is_last_train_iter
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.by_epoch == by_epoch:
                if every(runner, hook.interval, hook.save_begin) or (hook.save_last and is_last(runner)):
                    self.collect(runner)
                    return

    def collect(self, runner: Runner) -> None:
        """Gather what the next checkpoint stores of each process in process 0; all processes have to call it."""
        if self.batches is None:
            return
        model, buffers = _unwrapped(runner.model), {}
        if runner.world_size > 1:  # those of the only process are among its weights
            kept = model.state_dict()
            buffers = {name: x.cpu() for name, x in model.named_buffers() if name in kept}
        state = dict(
            buffers=buffers,
            gradients={name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None},
            sizes=[module._input_size for module in _batch_resizers(model)],
        )
        states = [state]
        if runner.world_size > 1:
            states = [None] * runner.world_size if runner.rank == 0 else None
            dist.gather_object(state, states, group=self.group)
        self.states = runner.iter, states

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the states of all processes, if they were collected after this step, and the place in the epoch."""
        if self.batches is None:
            return
        if runner.world_size == 1:
            self.collect(runner)
        at, states = self.states or (None, [])
        by_epoch = not hasattr(runner.train_loop, 'dataloader_iterator')
        within_epoch = checkpoint['meta']['epoch'] == runner.epoch
        checkpoint[KEY] = dict(
            batches=len(self.batches),
            seen=self.seen if by_epoch and within_epoch else 0,
            processes=states if at == runner.iter else [],
        )


def _warn(why: str) -> None:
    print_log(f'The training may differ from one without interruption: {why}', logger='current', level=logging.WARNING)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _batch_resizers(model: nn.Module) -> list[nn.Module]:
    """mmdet's BatchSyncRandomResize, which keeps the size of images for several steps and not among its buffers."""
    return [module for module in model.modules() if hasattr(module, '_input_size')]


def _with_parts(loader: DataLoader, dataset: Dataset, batch_sampler: SeededBatches) -> DataLoader:
    """A data loader that differs from another in these parts."""
    kept = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'multiprocessing_context')
    kept += ('generator', 'prefetch_factor', 'persistent_workers', 'pin_memory_device')
    kept += ('in_order',) if hasattr(loader, 'in_order') else ()  # from torch 2.6 on
    new = DataLoader(dataset, batch_sampler=batch_sampler, **{name: getattr(loader, name) for name in kept})
    # Hooks read these, such as mmpretrain's PreciseBNHook. DataLoader lets nobody set them beside a batch sampler.
    vars(new).update(batch_size=loader.batch_size, drop_last=loader.drop_last)
    return new
