import itertools

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import carafe, carafe_naive, deform_conv2d, masked_conv2d, modulated_deform_conv2d
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from torch.testing import assert_close

SIZES = [(1, 1, 1, 1, 1), (2, 1, 1, 2, 1), (1, 2, 2, 1, 2), ((2, 1), (0, 1), (1, 2), 2, 4)]


def deformable(stride, padding, dilation, groups, deform_groups, dtype=torch.float32):
    """input, offset, mask, weight, bias of a 3 x 3 convolution; points fall outside too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 9, 11, generator=generator)
    weight = torch.randn(4, 8 // groups, 3, 3, generator=generator)
    size = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    offset = torch.randn(3, 18 * deform_groups, *size, generator=generator) * 3
    mask = torch.rand(3, 9 * deform_groups, *size, generator=generator)
    return [t.to(dtype) for t in (x, offset, mask, weight, torch.randn(4, generator=generator))]


def with_larger_offsets(sizes, dtype=torch.float32):
    """As deformable, but offsets and masks are those of a map of four times the pixels, less a row and a column."""
    x, *points, weight, bias = deformable(*sizes, dtype)
    return [x, *(t.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., 1:, 1:] for t in points), weight, bias]


def with_gradients(operator, inputs, *arguments):
    inputs = [x.clone().requires_grad_() for x in inputs]
    result = operator(*inputs, *arguments)
    result.backward(torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype))
    return [result.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
class TestDeformableAsCompiled:
    def test_deform_conv(self, both, sizes, dtype):
        x, offset, _, weight, _ = deformable(*sizes, dtype)
        compiled, stand_in = both(lambda: with_gradients(deform_conv2d, [x, offset, weight], *sizes))
        assert_close(stand_in, compiled, rtol=1e-4, atol=1e-4)

    def test_modulated_deform_conv(self, both, sizes, dtype):
        *inputs, bias = deformable(*sizes, dtype)
        for arguments in ([inputs, None], [[*inputs, bias]]):
            compiled, stand_in = both(lambda a=arguments: with_gradients(modulated_deform_conv2d, *a, *sizes))
            assert_close(stand_in, compiled, rtol=1e-4, atol=1e-4)

    def test_offsets_and_masks_of_a_larger_map(self, both, sizes, dtype):
        inputs = with_larger_offsets(sizes, dtype)
        compiled, stand_in = both(lambda: with_gradients(modulated_deform_conv2d, inputs, *sizes))
        assert_close(stand_in, compiled, rtol=1e-4, atol=1e-4)


def test_dyhead_as_compiled(both):
    """mmdet's DyHead gives the offsets of a level to the convolutions of the next smaller and larger level too."""
    from mmdet.models import DyHead

    torch.manual_seed(0)
    neck = DyHead(16, 16, 2, zero_init_offset=False)
    levels = [torch.randn(2, 16, *size) for size in ((13, 18), (7, 9), (4, 5))]

    def run():
        return with_gradients(lambda *maps: torch.cat([level.flatten() for level in neck(maps)]), levels)

    compiled, stand_in = both(run)
    assert_close(stand_in, compiled, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures('stand_in')
class TestDeformable:
    @pytest.mark.parametrize('sizes', SIZES, ids=str)
    def test_without_offsets_is_a_convolution(self, sizes):
        x, offset, mask, weight, bias = deformable(*sizes)
        expected = F.conv2d(x, weight, None, *sizes[:4])
        assert_close(deform_conv2d(x, 0 * offset, weight, *sizes), expected, rtol=1e-4, atol=1e-4)
        result = modulated_deform_conv2d(x, 0 * offset, 0 * mask + 0.5, weight, bias, *sizes)
        assert_close(result, 0.5 * expected + bias.view(-1, 1, 1), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize('sizes', SIZES[1:3], ids=str)
    def test_gradients(self, sizes):
        x, offset, mask, weight, bias = (t.requires_grad_() for t in deformable(*sizes, torch.float64))
        pick = [1, 5]  # of the channels of the result: it saves time
        assert torch.autograd.gradcheck(
            lambda o, w: deform_conv2d(x[:1], o, w, *sizes)[..., pick], (offset[:1], weight), fast_mode=True
        )
        assert torch.autograd.gradcheck(
            lambda x, m, b: modulated_deform_conv2d(x, offset[:1], m, weight, b, *sizes)[..., pick],
            (x[:1], mask[:1], bias),
            fast_mode=True,
        )

    def test_the_weights_gradient_alone(self):
        """mmcv asks for it separately; the answer is that of the last gradient, not of an earlier one."""
        x, offset, _, weight, _ = deformable(*SIZES[0])
        inputs = [t.requires_grad_() for t in (x, offset, weight)]
        result = deform_conv2d(*inputs, *SIZES[0])
        full = torch.autograd.grad(result.square().sum(), inputs, retain_graph=True)
        torch.autograd.grad(result.sum(), inputs[:1], retain_graph=True)
        (alone,) = torch.autograd.grad(result.square().sum(), inputs[2:], retain_graph=True)
        assert_close(alone, full[2])
        assert not torch.allclose(torch.autograd.grad(result.sum(), inputs[2:])[0], alone)

    @pytest.mark.parametrize('sizes', SIZES, ids=str)
    def test_of_larger_offsets_and_masks_the_first_numbers_count(self, sizes):
        x, offset, mask, weight, bias = with_larger_offsets(sizes)
        size = F.conv2d(x, weight, None, *sizes[:4]).shape[2:]
        first = [t.flatten(1)[:, : t.shape[1] * size.numel()].view(*t.shape[:2], *size) for t in (offset, mask)]
        expected = with_gradients(modulated_deform_conv2d, [x, *first, weight, bias], *sizes)
        result = with_gradients(modulated_deform_conv2d, [x, offset, mask, weight, bias], *sizes)
        for i, counted in enumerate(first, 2):
            flat = result[i].flatten(1)
            result[i] = flat[:, : counted[0].numel()].view(counted.shape)
            assert not flat[:, counted[0].numel() :].any()
        assert_close(result, expected)

    def test_too_few_offsets(self):
        x, offset, mask, weight, bias = deformable(*SIZES[0])
        with pytest.raises(RuntimeError, match='offset output dims'):
            modulated_deform_conv2d(x, offset[..., 1:], mask, weight, bias, *SIZES[0])

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision_offsets_of_autocast(self, dtype):
        x, offset, mask, weight, bias = deformable(*SIZES[0])
        with torch.autocast('cpu', dtype):
            results = (
                deform_conv2d(x, offset.to(dtype), weight, *SIZES[0]),
                modulated_deform_conv2d(x, offset.to(dtype), mask, weight, bias, *SIZES[0]),
            )
        expected = modulated_deform_conv2d(x, offset.to(dtype).float(), mask, weight, bias, *SIZES[0])
        assert {result.dtype for result in results} == {dtype}
        assert_close(results[1].float(), expected, rtol=0.05, atol=0.2)


@pytest.mark.usefixtures('stand_in')
@pytest.mark.parametrize('share', [0, 0.3, 1])
def test_masked_convolution_is_a_convolution_where_the_mask_is(share):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((1, 4, 7, 9), (5, 4, 3, 3), (5,)))
    mask = torch.rand(1, 7, 9, generator=generator) < share
    assert_close(masked_conv2d(x, mask, weight, bias, 1), F.conv2d(x, weight, bias, 1, 1) * mask)


def reassembled(features, masks, kernel, groups, scale):
    """CARAFE by unfolding: every pixel of the larger map weighs the neighbourhood of the one that it lies in."""
    n, channels, height, width = features.shape
    parts = F.unfold(features, kernel, padding=kernel // 2).view(n, -1, height, width)
    parts = F.interpolate(parts, scale_factor=scale).view(n, groups, channels // groups, kernel**2, *masks.shape[2:])
    return (parts * masks.view(n, groups, 1, kernel**2, *masks.shape[2:])).sum(3).flatten(1, 2)


@pytest.mark.usefixtures('stand_in')
@pytest.mark.parametrize('kernel, groups, scale', [(5, 1, 2), (3, 2, 3), (1, 1, 1)])
def test_carafe(kernel, groups, scale):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 5, 6, generator=generator)
    masks = torch.randn(2, groups * kernel**2, 5 * scale, 6 * scale, generator=generator)
    expected = with_gradients(reassembled, [features, masks], kernel, groups, scale)
    assert_close(with_gradients(carafe, [features, masks], kernel, groups, scale), expected)
    assert_close(carafe_naive(features, masks, kernel, groups, scale), expected[0])


@pytest.mark.usefixtures('stand_in')
class TestAttention:
    shapes = torch.tensor([[6, 5], [3, 2]])
    starts = torch.tensor([0, 30])

    def inputs(self):
        generator = torch.Generator().manual_seed(0)
        value = torch.randn(2, 36, 3, 4, generator=generator)
        locations = torch.rand(2, 7, 3, 2, 4, 2, generator=generator) * 1.4 - 0.2
        weights = torch.rand(2, 7, 3, 2, 4, generator=generator)
        return value, locations, weights

    def attend(self, value, locations, weights):
        return MultiScaleDeformableAttnFunction.apply(value, self.shapes, self.starts, locations, weights, 64)

    def test_is_mmcvs_form_for_cpus(self):
        def reference(value, locations, weights):
            return multi_scale_deformable_attn_pytorch(value, self.shapes, locations, weights)

        assert_close(with_gradients(self.attend, self.inputs()), with_gradients(reference, self.inputs()))

    def test_attends_to_the_pixels_that_points_fall_on(self):
        value, locations, weights = self.inputs()
        levels = value.split([30, 6], 1)
        for (level, (height, width)), head in itertools.product(enumerate(self.shapes.tolist()), range(3)):
            row, column = height - 1, 1
            locations[:, 0] = torch.tensor([(column + 0.5) / width, (row + 0.5) / height])
            weights[:] = 0
            weights[:, :, head, level, 2] = 1
            result = self.attend(value, locations, weights)[:, 0].view(2, 3, 4)
            assert_close(result[:, head], levels[level][:, row * width + column, head])
