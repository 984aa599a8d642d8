"""Focal losses, https://arxiv.org/abs/1708.02002, equation 5: scores (N, C), targets (N,) int64, class weights (C,).

No weights are an empty tensor. ``mmcv.ops`` reduces the losses and multiplies the gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import wide

TINY = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """output (N, C): the losses of logits; the target C is the background."""
    p = wide(input).sigmoid()
    positive = -alpha * (1 - p) ** gamma * log(p)
    negative = -(1 - alpha) * p**gamma * log(1 - p)
    output.copy_(torch.where(one_hot(target, input), positive, negative) * of_target(weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    p = wide(input).sigmoid()
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * log(p))
    negative = -(1 - alpha) * p**gamma * (gamma * (1 - p) * log(1 - p) - p)
    grad_input.copy_(torch.where(one_hot(target, input), positive, negative) * of_target(weight, target))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """output (N,): the losses of probabilities, 0 for a negative target."""
    p = wide(input).gather(1, target.clamp(min=0)[:, None])
    loss = -alpha * (1 - p) ** gamma * log(p) * of_target(weight, target)
    output.copy_(torch.where(target < 0, 0, loss[:, 0]))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The gradient of the logits; buff (N,) is room that the compiled operator needs."""
    softmax = wide(input)
    p = softmax.gather(1, target.clamp(min=0)[:, None])
    slope = alpha * (gamma * (1 - p) ** (gamma - 1) * p * log(p) - (1 - p) ** gamma) * of_target(weight, target)
    grad_input.copy_(torch.where(target[:, None] < 0, 0, slope * (one_hot(target, input).float() - softmax)))


def log(p: Tensor) -> Tensor:
    return p.clamp(min=TINY).log()


def one_hot(target: Tensor, input: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def of_target(weight: Tensor, target: Tensor) -> Tensor | int:
    """The weight of each target's class, (N, 1)."""
    return weight[target][:, None] if weight.numel() else 1
