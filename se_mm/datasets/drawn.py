"""Two small drawn data sets, for demonstrations and tests.

Shapes: circles, squares and triangles on cluttered backgrounds, 128x128, in COCO format.
Scenes: eight kinds of landscape and town, 256x256, in the layout of Places365-Standard.

The same seed draws the same images. Colours vary within every class, so that neither shape nor
scene can be told by colour alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from se_mm.utils import errors_name

SHAPES = ('circle', 'square', 'triangle')
SHAPE_SIZE, SCENE_SIZE = 128, 256


def _colour(rng: Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    return tuple(int(c) for c in rng.integers(low, high, 3))


def _noise(rng: Generator, image: np.ndarray, deviation: float) -> np.ndarray:
    return np.clip(image + rng.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)


def _shape_points(rng: Generator, name: str, x: float, y: float, size: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    corners = dict(circle=32, square=4, triangle=3)[name]
    angles = angle + np.arange(corners) * 2 * np.pi / corners
    return np.stack([x + size / 2 * np.cos(angles), y + size / 2 * np.sin(angles)], 1)


def _draw_shapes(rng: Generator) -> tuple[np.ndarray, list[tuple[int, list[float], float]]]:
    image = np.full((SHAPE_SIZE, SHAPE_SIZE, 3), _colour(rng, 0, 128), np.uint8)
    for _ in range(6):  # clutter: thin lines, which are no objects
        p, q = (tuple(int(v) for v in rng.integers(0, SHAPE_SIZE, 2)) for _ in range(2))
        cv2.line(image, p, q, _colour(rng, 0, 160), 1, cv2.LINE_AA)
    objects, taken = [], []
    for _ in range(int(rng.integers(1, 5))):
        for _ in range(20):
            size = rng.uniform(24, 56)
            x, y = rng.uniform(size / 2, SHAPE_SIZE - size / 2, 2)
            if all(np.hypot(x - a, y - b) > 0.6 * (size + s) for a, b, s in taken):
                break
        else:
            continue
        taken.append((x, y, size))
        label = int(rng.integers(len(SHAPES)))
        points = _shape_points(rng, SHAPES[label], x, y, size).round().astype(np.int32)
        cv2.fillPoly(image, [points], _colour(rng, 96, 256), cv2.LINE_AA)
        low, high = points.min(0).clip(0), points.max(0).clip(max=SHAPE_SIZE - 1)
        box = [float(v) for v in (*low, *(high - low + 1))]
        objects.append((label + 1, box, float(cv2.contourArea(points))))
    return _noise(rng, image, 6), objects


def _write_image(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode('.jpg', image)[1])  # cv2.imwrite says nothing of a full disk


def _write_shapes(root: Path, rng: Generator, train: int, val: int) -> None:
    (root / 'annotations').mkdir(parents=True)
    for split, count in (('train', train), ('val', val)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(1, count + 1):
            image, objects = _draw_shapes(rng)
            name = f'{i:06d}.jpg'
            _write_image(root / split / name, image)
            images.append(dict(id=i, file_name=name, width=SHAPE_SIZE, height=SHAPE_SIZE))
            for category, box, area in objects:
                annotations.append(
                    dict(id=len(annotations) + 1, image_id=i, category_id=category, bbox=box, area=area, iscrowd=0)
                )
        categories = [dict(id=i, name=name) for i, name in enumerate(SHAPES, 1)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def _sky(rng: Generator, image: np.ndarray, horizon: int) -> None:
    top, bottom = np.array(_colour(rng, 100, 256)), np.array(_colour(rng, 100, 256))
    mix = np.linspace(0, 1, horizon)[:, None, None]
    image[:horizon] = top * (1 - mix) + bottom * mix


def _clouds(rng: Generator, image: np.ndarray) -> None:
    for _ in range(int(rng.integers(5, 10))):
        x, y = (int(v) for v in rng.integers(0, SCENE_SIZE, 2))
        colour = tuple([int(rng.integers(200, 256))] * 3)
        cv2.ellipse(image, (x, y), tuple(int(v) for v in rng.integers(12, 45, 2)), 0, 0, 360, colour, -1)


def _waves(rng: Generator, image: np.ndarray, horizon: int) -> None:
    colour = _colour(rng, 150, 256)
    for y in range(horizon + 6, SCENE_SIZE, 12):
        x = np.arange(0, SCENE_SIZE, 4)
        points = np.stack([x, y + 4 * np.sin(x / rng.uniform(6, 12) + rng.uniform(0, 6))], 1)
        cv2.polylines(image, [points.astype(np.int32)], False, colour, 2)


def _dunes(rng: Generator, image: np.ndarray, horizon: int) -> None:
    for y in np.linspace(horizon, SCENE_SIZE, 4)[:3]:
        x = np.arange(0, SCENE_SIZE + 8, 8)
        crest = y + 14 * np.sin(x / rng.uniform(25, 45) + rng.uniform(0, 6))
        points = np.concatenate([np.stack([x, crest], 1), [[SCENE_SIZE, SCENE_SIZE], [0, SCENE_SIZE]]])
        cv2.fillPoly(image, [points.astype(np.int32)], _colour(rng, 60, 230))


def _peaks(rng: Generator, image: np.ndarray, horizon: int) -> None:
    for _ in range(int(rng.integers(3, 6))):
        x, half = int(rng.integers(0, SCENE_SIZE)), int(rng.integers(35, 80))
        top = int(rng.integers(20, horizon - 40))
        cv2.fillPoly(image, [np.array([[x - half, horizon], [x, top], [x + half, horizon]])], _colour(rng, 20, 160))


def _trees(rng: Generator, image: np.ndarray, horizon: int) -> None:
    for x in range(0, SCENE_SIZE, int(rng.integers(18, 28))):
        x, base = x + int(rng.integers(-6, 6)), int(rng.integers(horizon, SCENE_SIZE))
        cv2.rectangle(image, (x - 3, base - 90), (x + 3, base), _colour(rng, 10, 90), -1)
        cv2.circle(image, (x, base - 95), int(rng.integers(16, 28)), _colour(rng, 20, 160), -1)


def _rows(rng: Generator, image: np.ndarray, horizon: int) -> None:
    vanishing = (int(rng.integers(60, SCENE_SIZE - 60)), horizon)
    colour = _colour(rng, 0, 200)
    for x in range(-2 * SCENE_SIZE, 3 * SCENE_SIZE, 40):
        cv2.line(image, vanishing, (x, SCENE_SIZE), colour, 5)


def _road(rng: Generator, image: np.ndarray, horizon: int) -> None:
    x = int(rng.integers(90, SCENE_SIZE - 90))
    road = np.array([[x - 6, horizon], [x + 6, horizon], [x + 110, SCENE_SIZE], [x - 110, SCENE_SIZE]])
    cv2.fillPoly(image, [road], _colour(rng, 30, 110))
    for y in range(horizon + 8, SCENE_SIZE, 24):
        cv2.line(image, (x, y), (x, y + 10), (240, 240, 240), 1 + (y - horizon) // 30)


def _towers(rng: Generator, image: np.ndarray, horizon: int) -> None:
    x = int(rng.integers(-20, 10))
    while x < SCENE_SIZE:
        width, top = int(rng.integers(26, 50)), int(rng.integers(10, horizon - 30))
        cv2.rectangle(image, (x, top), (x + width, SCENE_SIZE), _colour(rng, 20, 170), -1)
        window = _colour(rng, 170, 256)
        for wy in range(top + 8, SCENE_SIZE - 8, 14):
            for wx in range(x + 5, x + width - 6, 10):
                cv2.rectangle(image, (wx, wy), (wx + 4, wy + 6), window, -1)
        x += width + int(rng.integers(2, 10))


SCENES: dict[str, Callable | None] = {
    '/d/desert/sand': _dunes,
    '/f/field/cultivated': _rows,
    '/f/forest/broadleaf': _trees,
    '/h/highway': _road,
    '/m/mountain': _peaks,
    '/o/ocean': _waves,
    '/s/sky': None,
    '/s/skyscraper': _towers,
}


def _draw_scene(rng: Generator, category: str) -> np.ndarray:
    image = np.zeros((SCENE_SIZE, SCENE_SIZE, 3), np.uint8)
    draw = SCENES[category]
    if draw is None:
        _sky(rng, image, SCENE_SIZE)
        _clouds(rng, image)
    else:
        horizon = int(rng.integers(100, 150))
        _sky(rng, image, horizon)
        image[horizon:] = _colour(rng, 40, 220)
        draw(rng, image, horizon)
    return _noise(rng, image, 8)


def _write_scenes(root: Path, rng: Generator, train: int, val: int) -> None:
    (root / 'val_256').mkdir(parents=True)
    categories = list(SCENES)
    (root / 'categories_places365.txt').write_text(''.join(f'{name} {i}\n' for i, name in enumerate(categories)))
    lines = []
    for label, category in enumerate(categories):
        (root / f'data_256{category}').mkdir(parents=True)
        for i in range(1, train + 1):
            name = f'{category}/{i:08d}.jpg'
            _write_image(Path(f'{root}/data_256{name}'), _draw_scene(rng, category))
            lines.append(f'{name} {label}\n')
    (root / 'places365_train_standard.txt').write_text(''.join(lines))
    lines = []
    for i in range(val * len(categories)):
        label = int(rng.integers(len(categories)))
        name = f'Places365_val_{i + 1:08d}.jpg'
        _write_image(root / 'val_256' / name, _draw_scene(rng, categories[label]))
        lines.append(f'{name} {label}\n')
    (root / 'places365_val.txt').write_text(''.join(lines))


def _write(write: Callable, root: str | Path, seed: int, train: int, val: int) -> Path:
    root = Path(root)
    if not root.exists():
        partial = root.with_name(f'.{root.name}.partial')
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with errors_name(root):
                write(partial, np.random.default_rng(seed), train, val)
            partial.rename(root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return root


def write_shapes(root: str | Path, seed: int = 0, train: int = 400, val: int = 100) -> Path:
    """Draw shapes into ``root`` unless it is there: ``train`` and ``val`` images with 1 to 4 objects."""
    return _write(_write_shapes, root, seed, train, val)


def write_scenes(root: str | Path, seed: int = 0, train: int = 60, val: int = 25) -> Path:
    """Draw scenes into ``root`` unless it is there: ``train`` images of each category and, over all
    categories at random, ``val`` times as many as there are categories."""
    return _write(_write_scenes, root, seed, train, val)
