"""A tail with random parameters, and what comes out of it, for the tests of this folder."""

import copy

import torch
from torch import nn

from se_mm.ops import se_tail

FUSED = ('torch', 'triton')  # on a machine without a GPU the kernels run in Triton's interpreter
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class Tail(nn.Module):
    """Batch norm and gate with random weights and statistics; ``mode`` is train, eval or frozen."""

    def __init__(self, channels, mode='train', bias=True, **kwargs):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, **kwargs)
        if not bias:
            self.norm.register_parameter('bias', None)
        self.gate = nn.Sequential(nn.Linear(channels, 5), nn.ReLU(), nn.Linear(5, channels), nn.Sigmoid())
        for tensor in self.norm.state_dict().values():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)
        self.norm.train(mode == 'train')
        self.norm.requires_grad_(mode != 'frozen')

    def forward(self, x, identity, backend=None):
        return se_tail(x, identity, self.norm, self.gate, backend)


def maps(shape, dtype=torch.float64, layout='contiguous', offset=0.0, seed=0):
    """x, identity and gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    if layout == 'strided':
        shape = (*shape[:2], 2 * shape[2], shape[3])
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE) for _ in range(3)]
    tensors[0] += offset
    tensors = [t.to(dtype) for t in tensors]
    if layout == 'strided':
        tensors = [t[:, :, ::2] for t in tensors]
    if layout == 'channels_last':
        tensors = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    return tensors


def results(tail, x, identity, grad, backend, dtype=None):
    """Output, gradients of x, identity and all parameters, and running statistics; the tail is left as it was."""
    tail = copy.deepcopy(tail)
    if dtype is not None:
        tail, x, identity, grad = tail.to(dtype), x.to(dtype), identity.to(dtype), grad.to(dtype)
    x, identity = x.detach().requires_grad_(), identity.detach().requires_grad_()
    out = tail(x, identity, backend)
    out.backward(grad)
    named = dict(out=out.detach(), x=x.grad, identity=identity.grad)
    named |= {name: p.grad for name, p in tail.named_parameters() if p.requires_grad}
    named |= {name: b.double() for name, b in tail.named_buffers()}
    return named


def tail_for(shape, mode='train', **kwargs):
    torch.manual_seed(0)
    return Tail(shape[1], mode, **kwargs).to(DEVICE)
