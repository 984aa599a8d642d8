import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv.ops import deform_roi_pool, prroi_pool, roi_align, roi_pool
from torch.testing import assert_close

from se_mm import mmcv_ext


def random_maps(dtype=torch.float32):
    return torch.randn(2, 3, 12, 15, generator=torch.Generator().manual_seed(0)).to(dtype)


def random_rois(number, dtype=torch.float32):
    """In pixels of an image four times as wide: inside, across the border, outside and empty."""
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(number, 2, generator=generator) * 60 - 10
    rois = torch.cat(
        [torch.arange(number)[:, None] % 2, start, start + torch.rand(number, 2, generator=generator) * 40], 1
    )
    if number > 3:
        rois[1, 3:] = rois[1, 1:3]
        rois[2, 1:] = torch.tensor([400, 400, 440, 440])
        rois[3, 1:] = torch.tensor([-8, -8, 200, 300])
    return rois.to(dtype)


def with_gradients(operator, maps, *arguments):
    """The result, and the gradient of the maps."""
    maps = maps.clone().requires_grad_()
    result = operator(maps, *arguments)
    factors = torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype)
    result.backward(factors)
    return result.detach(), maps.grad


@pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'legacy'])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 2, 3])
@pytest.mark.parametrize('mode', ['avg', 'max'])
class TestRoIAlignAsCompiled:
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize('number', [0, 1, 20])
    def test_results_and_gradients(self, both, mode, sampling_ratio, aligned, number, dtype):
        rois = random_rois(number, dtype)
        for size in ((7, 7), (1, 1), (3, 5)):
            compiled, stand_in = both(
                lambda s=size: with_gradients(
                    roi_align, random_maps(dtype), rois, s, 0.25, sampling_ratio, mode, aligned
                )
            )
            assert_close(stand_in, compiled, rtol=1e-5, atol=1e-6)

    def test_half_precision_is_as_exact(self, both, mode, sampling_ratio, aligned):
        maps, rois = random_maps(torch.float16), random_rois(20, torch.float16)
        exact = roi_align(maps.double(), rois.double(), (7, 7), 0.25, sampling_ratio, mode, aligned)
        compiled, stand_in = both(lambda: roi_align(maps, rois, (7, 7), 0.25, sampling_ratio, mode, aligned))
        assert stand_in.dtype == torch.float16
        assert (stand_in - exact).abs().max() <= (compiled - exact).abs().max()


@pytest.mark.usefixtures('stand_in')
class TestRoIAlign:
    @pytest.mark.parametrize('aligned', [True, False])
    @pytest.mark.parametrize('sampling_ratio', [0, 2])
    def test_average_is_torchvisions(self, sampling_ratio, aligned):
        maps, rois = random_maps(), random_rois(20)

        def reference(maps):
            return torchvision.ops.roi_align(maps, rois, (3, 4), 0.25, sampling_ratio or -1, aligned)

        result = with_gradients(roi_align, maps, rois, (3, 4), 0.25, sampling_ratio, 'avg', aligned)
        assert_close(result, with_gradients(reference, maps))

    def test_maximum_and_average_of_one_point_are_equal(self):
        maps, rois = random_maps(), random_rois(20)
        average = with_gradients(roi_align, maps, rois, (3, 4), 0.25, 1, 'avg', True)
        assert_close(with_gradients(roi_align, maps, rois, (3, 4), 0.25, 1, 'max', True), average)

    def test_maximum_is_that_of_the_points_averaged(self):
        maps, rois = random_maps(), random_rois(20)
        points = roi_align(maps, rois, (6, 6), 0.25, 1, 'avg', True)  # a point for each of 2 x 2 in 3 x 3 bins
        assert_close(roi_align(maps, rois, (3, 3), 0.25, 2, 'max', True), F.max_pool2d(points, 2))

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_under_autocast(self, mode, dtype):
        maps, rois = random_maps(dtype), random_rois(20, dtype)
        with torch.autocast('cpu', dtype):
            result, grad = with_gradients(roi_align, maps, rois, (7, 7), 0.25, 0, mode, True)
        expected = with_gradients(roi_align, maps.float(), rois.float(), (7, 7), 0.25, 0, mode, True)
        assert result.dtype == grad.dtype == dtype
        assert_close(result.float(), expected[0], rtol=0.02, atol=0.02)
        if mode == 'avg':  # mmcv stores where a maximum was in the maps' precision
            assert_close(grad.float(), expected[1], rtol=0.02, atol=0.02)


def pooled_by_loops(maps, rois, size, scale):
    """Girshick's definition with mmcv's rounding: each bin from floor to ceil of its edges."""
    result = maps.new_zeros(len(rois), maps.shape[1], *size) + 0 * maps.sum()
    for i, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = box[0] * scale, box[1] * scale, (box[2] + 1) * scale, (box[3] + 1) * scale
        for row in range(size[0]):
            for column in range(size[1]):
                height, width = (y2 - y1) / size[0], (x2 - x1) / size[1]
                top, bottom = int((y1 + row * height) // 1), -int(-(y1 + (row + 1) * height) // 1)
                left, right = int((x1 + column * width) // 1), -int(-(x1 + (column + 1) * width) // 1)
                part = maps[int(image), :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
                if part.numel():
                    result[i, :, row, column] = part.amax((1, 2))
    return result


@pytest.mark.usefixtures('stand_in')
class TestRoIPool:
    @pytest.mark.parametrize('number', [0, 1, 20])
    def test_by_definition(self, number):
        maps, rois = random_maps(), random_rois(number)
        result = with_gradients(roi_pool, maps, rois, (3, 4), 0.25)
        assert_close(result, with_gradients(pooled_by_loops, maps, rois, (3, 4), 0.25))

    def test_of_the_whole_map_is_max_pooling(self):
        maps = random_maps()
        rois = torch.tensor([[0.0, 0, 0, 14, 11], [1, 0, 0, 14, 11]])
        assert_close(roi_pool(maps, rois, (3, 5), 1.0), F.max_pool2d(maps, (4, 3)))

    def test_a_turned_round_box_gives_nothing(self):
        result, grad = with_gradients(roi_pool, random_maps(), torch.tensor([[0.0, 9, 9, 2, 2]]), (2, 2), 1.0)
        assert not result.any() and not grad.any()


@pytest.mark.usefixtures('stand_in')
class TestPrRoIPool:
    rois = torch.tensor([[0, 8.3, 4.1, 37.7, 40.2], [1, 0.0, 0, 56, 44], [1, 20, 20, 20, 40]])

    def test_is_what_many_points_come_near(self):
        maps = random_maps()
        dense = torchvision.ops.roi_align(maps, self.rois, (3, 4), 0.25, sampling_ratio=200)
        dense[2] = 0  # an empty box; RoIAlign takes one of a pixel
        result = prroi_pool(maps, self.rois, (3, 4), 0.25)
        assert_close(result, dense, rtol=0, atol=1e-3)

    def test_gradients(self):
        maps, rois = random_maps().requires_grad_(), self.rois.clone().requires_grad_()
        prroi_pool(maps, rois, (3, 4), 0.25).square().sum().backward()

        def loss(maps, rois):
            output = maps.new_zeros(3, 3, 3, 4)
            mmcv_ext.prroi_pool_forward(maps, rois, output, 3, 4, 0.25)
            return output.square().sum()

        for x, others in ((maps, lambda x: (x, rois.double())), (rois, lambda x: (maps.double(), x))):
            direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            if x is rois:
                direction[:, 0] = direction[2] = 0  # the index of the image; an empty box
            step = 1e-5 * direction
            with torch.no_grad():
                slope = (loss(*others(x.double() + step)) - loss(*others(x.double() - step))) / 2e-5
            assert_close((x.grad.double() * direction).sum(), slope, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures('stand_in')
class TestDeformRoIPool:
    def test_without_offsets_is_roi_align(self):
        maps, rois = random_maps(), random_rois(20)
        expected = with_gradients(roi_align, maps, rois, (3, 4), 0.25, 2, 'avg', True)
        assert_close(with_gradients(deform_roi_pool, maps, rois, None, (3, 4), 0.25, 2), expected)

    def test_equal_offsets_move_the_box(self):
        maps, rois = random_maps(), random_rois(20)
        size = rois[:, 3:] - rois[:, 1:3]
        moved = rois.clone()
        moved[:, 1:] += (size * torch.tensor([0.2, -0.1])).repeat(1, 2)
        offset = torch.tensor([2.0, -1]).view(1, 2, 1, 1).expand(20, 2, 3, 4)
        result = deform_roi_pool(maps, rois, offset, (3, 4), 0.25, 0, 0.1)
        assert_close(result, roi_align(maps, moved, (3, 4), 0.25, 0, 'avg', True), rtol=1e-4, atol=1e-4)

    def test_gradients(self):
        maps, rois = random_maps(torch.float64), random_rois(3, torch.float64)
        rois[1, 3:] += 20
        offset = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        inputs = (maps.requires_grad_(), offset.requires_grad_())
        assert torch.autograd.gradcheck(lambda m, o: deform_roi_pool(m, rois, o, (2, 2), 0.25, 2), inputs)
