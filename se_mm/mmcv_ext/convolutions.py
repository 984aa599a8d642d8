"""Convolutions at moved or chosen points of maps (N, C, H, W), upsampling, and attention to points.

Results and gradients are written into given tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import vjp, wide


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **sizes: int
) -> None:
    """Deformable convolution, https://arxiv.org/abs/1703.06211; offset (N, groups x kernel x 2, H, W) as y and x.

    columns and ones are room for the compiled operators. sizes are kW, kH, dW, dH (strides), padW, padH, dilationW,
    dilationH, group, deformable_group, and im2col_step, the images that the compiled operators take at a time.
    """
    output.copy_(torch.ops.torchvision.deform_conv2d(*unmodulated(input, weight, offset, sizes)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    arguments = unmodulated(input, weight, offset, sizes)
    grad_input, grad_weight, grad_offset, *_ = torch.ops.torchvision._deform_conv2d_backward(
        wide(gradOutput), *arguments
    )
    gradInput.copy_(grad_input)
    gradOffset.copy_(grad_offset)
    # mmcv asks for the weight's gradient next, with the same tensor: it takes no second computation.
    gradOutput.grad_weight = grad_weight


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **sizes: int,
) -> None:
    """Adds scale times the gradient of the weight to gradWeight."""
    grad_weight = gradOutput.__dict__.pop('grad_weight', None)
    if grad_weight is None:
        arguments = unmodulated(input, gradWeight, offset, sizes)
        grad_weight = torch.ops.torchvision._deform_conv2d_backward(wide(gradOutput), *arguments)[1]
    gradWeight += scale * grad_weight


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Deformable convolution with a factor for each point, https://arxiv.org/abs/1811.11168; mask (N, kernel, H, W).

    offset and mask may be larger than the result. mmdet's DyHead moves the points of a small map by the offsets of the
    next larger map. Then the first numbers of each image count, as in the compiled operator.

    sizes are kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group and
    with_bias.
    """
    offset, mask = (first_numbers(x, output.shape[2:]) for x in (offset, mask))
    output.copy_(torch.ops.torchvision.deform_conv2d(*modulated(input, weight, bias, offset, mask, sizes)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **sizes: int,
) -> None:
    offset, mask = (first_numbers(x, grad_output.shape[2:]) for x in (offset, mask))
    arguments = modulated(input, weight, bias, offset, mask, sizes)
    grads = torch.ops.torchvision._deform_conv2d_backward(wide(grad_output), *arguments)
    for target, grad in zip((grad_input, grad_weight, grad_offset, grad_mask, grad_bias), grads, strict=True):
        if target is grad_bias and not sizes['with_bias']:
            continue
        if target.shape != grad.shape:  # zeros for the numbers that do not count
            grad = F.pad(grad.flatten(1), (0, target[0].numel() - grad[0].numel())).view(target.shape)
        target.copy_(grad)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """The neighbourhoods (C x kernel, P) of the points (P,) of one image (1, C, H, W)."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Puts values (C, P) at the points of one image."""
    im[0, :, mask_h_idx, mask_w_idx] = col


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """CARAFE, https://arxiv.org/abs/1905.02188, equation 2: each pixel of the larger maps has a kernel of its own.

    masks (N, groups x kernel, scale H, scale W).
    """
    output.zero_()
    padded = F.pad(features, [kernel_size // 2] * 4)
    for pixels, factors in neighbours(padded, masks, kernel_size, group_size, scale_factor):
        split(output, group_size, scale_factor).addcmul_(pixels, factors)


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    grad = split(top_grad, group_size, scale_factor)
    border, sizes = kernel_size // 2, (kernel_size, group_size, scale_factor)
    padded = F.pad(features, [border] * 4)
    padded_grad = torch.zeros_like(padded)
    gradients = neighbours(padded_grad, mask_grad, *sizes)
    for (pixels, factors), (pixels_grad, factors_grad) in zip(
        neighbours(padded, masks, *sizes), gradients, strict=True
    ):
        pixels_grad += (grad * factors).sum((4, 6), keepdim=True)
        factors_grad.copy_((grad * pixels).sum(2, keepdim=True))
    bottom_grad.copy_(F.pad(padded_grad, [-border] * 4))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As :func:`carafe_naive_forward`; the tensors with r are room, and backward gets rfeatures."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention, https://arxiv.org/abs/2010.04159, by mmcv's form of it for CPUs."""
    return attend(value_spatial_shapes)(value, sampling_locations, attention_weights).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    inputs = (value, sampling_locations, attention_weights)
    grads = vjp(attend(value_spatial_shapes), inputs, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


def unmodulated(input: Tensor, weight: Tensor, offset: Tensor, sizes: dict[str, int]) -> list:
    """The arguments of torchvision's deform_conv2d after the gradient."""
    mask, bias = input.new_zeros(len(input), 1), input.new_zeros(len(weight))  # not used
    names = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
    return [*map(wide, (input, weight, offset, mask, bias)), *(sizes[name] for name in names), False]


def modulated(input: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, mask: Tensor, sizes: dict[str, int]) -> list:
    if not sizes['with_bias']:
        bias = input.new_zeros(len(weight))
    names = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group')
    return [*map(wide, (input, weight, offset, mask, bias)), *(sizes[name] for name in names), True]


def first_numbers(x: Tensor, size: torch.Size) -> Tensor:
    """The first numbers of each image of maps (N, C, H, W), as maps (N, C, *size); maps with too few stay."""
    few = x.shape[2:].numel() < size.numel()  # torchvision says what fits
    return x if few else x.flatten(1)[:, : x.shape[1] * size.numel()].view(*x.shape[:2], *size)


def split(x: Tensor, groups: int, scale: int) -> Tensor:
    """A view (N, groups, C / groups, H, scale, W, scale) of maps (N, C, scale H, scale W)."""
    return x.unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).unflatten(1, (groups, -1))


def neighbours(
    padded: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each place in the kernel, views of the pixels there, and of the factors for them, as by :func:`split`."""
    factors = split(masks, groups, scale)
    height, width = factors.shape[3], factors.shape[5]
    for place in range(kernel_size**2):
        top, left = divmod(place, kernel_size)
        pixels = padded[:, :, top : top + height, left : left + width]
        yield split(pixels, groups, 1), factors[:, :, place : place + 1]


def attend(shapes: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    sizes = shapes.tolist()
    return lambda value, locations, weights: multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)
