"""What several operators need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32 if half precision, in which box coordinates and logarithms are too coarse."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def vjp(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the inputs, with grad the gradient of the function's result, by computing the function again."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*inputs), inputs, grad)


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values between the pixels of a map (C, H, W), at points y and x, both (P,) or (C, P): (C, P).

    As in RoIAlign, a point up to one pixel outside has the value of the border, one further away has 0.
    """
    channels, height, width = image.shape
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    top, left = top.long(), left.long()
    bottom, far = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return image.flatten(1).gather(1, (row * width + column).expand(channels, -1))

    return inside * (
        (1 - down) * (1 - right) * at(top, left)
        + (1 - down) * right * at(top, far)
        + down * (1 - right) * at(bottom, left)
        + down * right * at(bottom, far)
    )
