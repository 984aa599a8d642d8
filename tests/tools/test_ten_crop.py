"""Evaluation over ten crops of each image."""

import json
import pickle
import sys

import pytest
import torch
from mmcv import imread, imresize
from torchvision.transforms.functional import ten_crop

from conftest import CONFIGS, TOOLS
from se_mm.utils.config import build_model, load_config, use_scope

CLASSIFIER = CONFIGS / 'quickstart' / 'se_r18_scenes.py'
TEST = [sys.executable, TOOLS / 'test.py']


def test_scores_are_averaged_over_ten_crops(run, scenes, tmp_path):
    cfg = load_config(CLASSIFIER)
    use_scope(cfg)
    cfg.model.data_preprocessor = cfg.data_preprocessor  # as Runner does
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.fc.weight)  # else all crops get nearly equal scores
    torch.save(model.eval().state_dict(), tmp_path / 'a.pth')
    out = ['--out', 'all.pkl', '--cfg-options', f'data_root={scenes}', 'test_dataloader.batch_size=5']
    code, output = run(*TEST, CLASSIFIER, 'a.pth', '--tta', 'ten-crop', *out)
    assert code == 0, output
    samples = pickle.loads((tmp_path / 'all.pkl').read_bytes())
    logits = []
    for sample in samples:
        image = imread(sample['img_path'])
        short = min(image.shape[:2])
        image = imresize(image, tuple(round(side * 108 / short) for side in image.shape[1::-1]))
        crops = ten_crop(torch.from_numpy(image).permute(2, 0, 1), 96)
        with torch.no_grad():
            logits.append(model(model.data_preprocessor(dict(inputs=list(crops)))['inputs'], mode='tensor'))
    logits = torch.stack(logits)
    written, scores = torch.stack([sample['pred_score'] for sample in samples]), logits.softmax(2).mean(1)
    torch.testing.assert_close(written, scores, rtol=1e-4, atol=1e-5)
    for other in (logits[:, 4].softmax(1), logits.mean(1).softmax(1)):  # the centre alone, the mean of logits
        assert (written - other).abs().max() > 1e-3
    wrong = scores.argmax(1) != torch.cat([sample['gt_label'] for sample in samples])
    metrics = json.loads((tmp_path / 'work_dirs' / CLASSIFIER.stem / 'metrics_ten-crop.json').read_text())
    assert metrics['metrics']['scene_error/top1'] == pytest.approx(100 * wrong.float().mean().item())
    assert len(samples) == 16


def test_what_has_no_crops_is_refused_at_once(run):
    """Before the checkpoint, which is missing, and the data."""
    for config in ('faster_rcnn_se_r50_coco', 'cifar/se_r110_cifar10'):
        code, output = run(*TEST, CONFIGS / f'{config}.py', 'missing.pth', '--tta', 'ten-crop')
        assert code != 0 and 'set --tta flip' in output and 'Traceback' not in output
    code, output = run(*TEST, CLASSIFIER, 'missing.pth', '--tta', 'five-crop')
    assert code != 0 and "invalid choice: 'five-crop'" in output
