import hashlib

import numpy as np
from mmcv import imread
from pycocotools.coco import COCO

from se_mm.datasets.drawn import SHAPES, write_shapes


def digest(root):
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return [(str(path.relative_to(root)), hashlib.md5(path.read_bytes()).hexdigest()) for path in files]


def test_same_seed_same_images(tmp_path):
    a, b, c = (write_shapes(tmp_path / name, seed, train=3, val=2) for name, seed in (('a', 0), ('b', 0), ('c', 1)))
    assert digest(a) == digest(b) != digest(c)


def test_shapes_are_where_the_annotations_say(shapes):
    coco = COCO(str(shapes / 'annotations' / 'train.json'))
    assert [c['name'] for c in coco.dataset['categories']] == list(SHAPES)
    inside, outside = [], []
    for image in coco.dataset['images']:
        pixels = imread(str(shapes / 'train' / image['file_name'])).astype(float)
        background = np.median(pixels.reshape(-1, 3), 0)
        distance = np.abs(pixels - background).sum(2)
        covered = np.zeros(distance.shape, bool)
        for annotation in coco.imgToAnns[image['id']]:
            x, y, w, h = (int(v) for v in annotation['bbox'])
            assert x >= 0 and y >= 0 and x + w <= image['width'] and y + h <= image['height']
            assert 0.3 * w * h < annotation['area'] <= w * h
            covered[y : y + h, x : x + w] = True
            inside.append(distance[y + h // 2, x + w // 2])
        outside.append(distance[~covered].mean())
    assert np.mean(inside) > 4 * np.mean(outside)


def test_finished_data_is_kept_and_unfinished_is_drawn_again(tmp_path):
    root = write_shapes(tmp_path / 'a', train=2, val=1)
    (root / 'mark').touch()
    write_shapes(root, train=2, val=1)
    assert (root / 'mark').exists()
    (tmp_path / '.b.partial' / 'annotations').mkdir(parents=True)
    assert len(digest(write_shapes(tmp_path / 'b', train=2, val=1))) == 5
