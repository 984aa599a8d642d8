import math

import numpy as np
import pytest
import torch
import torchvision
from mmcv.ops import batched_nms, bbox_overlaps, nms, nms_match, soft_nms
from torch.testing import assert_close


def random_boxes(number, whole=False, seed=0):
    """Boxes that overlap often; whole ones have many equal overlaps, scores and corners, some are empty."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(number, 2, generator=generator) * 60 - 10
    boxes = torch.cat([start, start + torch.rand(number, 2, generator=generator) * 30], 1)
    scores = torch.rand(number, generator=generator)
    return (boxes.div(5).round() * 5, (scores * 7).round() / 7) if whole else (boxes, scores)


@pytest.mark.parametrize('whole', [False, True], ids=['floats', 'ties'])
@pytest.mark.parametrize('number', [0, 1, 2, 40, 700])
class TestAsCompiled:
    @pytest.mark.parametrize('offset', [0, 1])
    def test_nms(self, both, number, whole, offset):
        boxes, scores = random_boxes(number, whole)
        for threshold in (0.0, 0.3, 0.5, 0.6, 0.7, 1.0):
            compiled, stand_in = both(lambda t=threshold: nms(boxes, scores, t, offset))
            assert_close(stand_in, compiled, rtol=0, atol=0)

    @pytest.mark.parametrize('split_thr', [10000, 10])
    def test_batched_nms(self, both, number, whole, split_thr):
        boxes, scores = random_boxes(number, whole)
        labels = torch.arange(number) % 3
        cfg = dict(type='nms', iou_threshold=0.5, split_thr=split_thr, score_threshold=0.2, max_num=30)
        compiled, stand_in = both(lambda: batched_nms(boxes, scores, labels, cfg, class_agnostic=number == 0))
        assert_close(stand_in, compiled, rtol=0, atol=0)

    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
    def test_soft_nms(self, both, number, whole, method, offset):
        boxes, scores = random_boxes(number, whole)
        if method == 'gaussian':  # equal empty boxes make NaN
            boxes[:, 2:] += 1
        for threshold, least in ((0.3, 0.0), (0.5, 0.2)):
            run = dict(iou_threshold=threshold, min_score=least, method=method, offset=offset)
            compiled, stand_in = both(lambda run=run: soft_nms(boxes, scores, **run))
            # exp of torch and of the C library round differently
            assert_close(stand_in, compiled, rtol=0, atol=1e-6 if method == 'gaussian' else 0)

    def test_nms_match(self, both, number, whole):
        dets = torch.cat([random_boxes(number, whole)[0], random_boxes(number, whole)[1][:, None]], 1)
        for threshold in (0.3, 0.5, 0.6):
            compiled, stand_in = both(lambda t=threshold: nms_match(dets, t))
            assert_close(stand_in, compiled)

    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('mode', ['iou', 'iof'])
    def test_bbox_overlaps(self, both, number, whole, mode, offset):
        boxes, others = random_boxes(number, whole)[0], random_boxes(number, whole, seed=1)[0]
        for aligned in (False, True):
            compiled, stand_in = both(lambda a=aligned: bbox_overlaps(boxes, others, mode, a, offset))
            assert_close(stand_in, compiled, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures('stand_in')
class TestByDefinition:
    @pytest.mark.parametrize('offset', [0, 1])
    def test_nms_keeps_boxes_that_overlap_no_better_one(self, offset):
        boxes, scores = random_boxes(100)
        left = scores.argsort(descending=True).tolist()
        shifted = boxes + torch.tensor([0, 0, offset, offset])
        iou, kept = torchvision.ops.box_iou(shifted, shifted), []
        for i in left:
            if not (iou[i, kept] > 0.4).any():
                kept.append(i)
        assert 10 < len(kept) < 90
        assert nms(boxes, scores, 0.4, offset)[1].tolist() == kept

    @pytest.mark.parametrize('threshold', [0.3, 0.6])
    def test_an_overlap_equal_to_the_threshold_is_not_above_it(self, threshold):
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10 * threshold]])
        assert len(nms(boxes, torch.tensor([0.9, 0.8]), threshold)[1]) == 2

    def test_nms_of_half_precision_scores_and_of_arrays(self):
        boxes, scores = random_boxes(50)
        scores = scores.half()
        expected = nms(boxes, scores.float(), 0.5)[1]
        assert torch.equal(nms(boxes, scores, 0.5)[1], expected)
        dets, indices = nms(boxes.numpy(), scores.float().numpy(), 0.5)
        assert isinstance(dets, np.ndarray) and indices.tolist() == expected.tolist()

    def test_soft_nms_lowers_scores_by_the_overlap(self):
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60]])
        scores = torch.tensor([0.9, 0.8, 0.7])
        for method, second in (('naive', 0), ('linear', 0.8 * 0.4), ('gaussian', 0.8 * math.exp(-0.36 / 0.5))):
            dets, indices = soft_nms(boxes, scores, 0.5, min_score=0.1, method=method)
            assert indices.tolist() == ([0, 2] if method == 'naive' else [0, 2, 1])
            assert_close(dets[:, 4], torch.tensor([0.9, 0.7, second])[: len(indices)])

    def test_nms_match_groups_all_boxes_around_those_that_nms_keeps(self):
        boxes, scores = random_boxes(100)
        groups = nms_match(torch.cat([boxes, scores[:, None]], 1), 0.4)
        assert [int(group[0]) for group in groups] == nms(boxes, scores, 0.4)[1].tolist()
        assert sorted(torch.cat(groups).tolist()) == list(range(100))

    def test_bbox_overlaps(self):
        boxes, others = random_boxes(20)[0], random_boxes(30, seed=1)[0]
        assert_close(bbox_overlaps(boxes, others), torchvision.ops.box_iou(boxes, others))
