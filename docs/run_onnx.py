"""Run a file of tools/export_onnx.py on an image: python run_onnx.py FILE.onnx IMAGE

Needs onnxruntime, OpenCV and NumPy, and Pillow where the pipeline resizes by Pillow.
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

INTERPOLATIONS = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    bicubic=cv2.INTER_CUBIC,
    area=cv2.INTER_AREA,
    lanczos=cv2.INTER_LANCZOS4,
)


def resize(image, step):
    """A step of the pipeline that the file was evaluated with."""
    height, width = image.shape[:2]
    if step['type'] == 'CenterCrop':
        size = step['crop_size']
        columns, rows = (size, size) if isinstance(size, int) else size
        top, left = max(0, round((height - rows) / 2)), max(0, round((width - columns) / 2))
        return image[top : top + rows, left : left + columns]
    if step['type'] == 'ResizeEdge':  # a classifier's: the shorter edge
        scale = step['scale']
        size = (scale, int(scale * height / width)) if width < height else (int(scale * width / height), scale)
    elif step['type'] != 'Resize':
        sys.exit(f'this program does not know the step {step}')
    elif step.get('keep_ratio'):  # a detector's: as large as fits into the scale
        factor = min(max(step['scale']) / max(height, width), min(step['scale']) / min(height, width))
        size = int(width * factor + 0.5), int(height * factor + 0.5)
    else:
        size = tuple(step['scale'])
    name = step.get('interpolation', 'bilinear')
    if step.get('backend') == 'pillow':
        from PIL import Image

        return np.array(Image.fromarray(image).resize(size, getattr(Image.Resampling, name.upper())))
    return cv2.resize(image, size, interpolation=INTERPOLATIONS[name])


session = onnxruntime.InferenceSession(sys.argv[1])
known = session.get_modelmeta().custom_metadata_map
original = image = cv2.imread(sys.argv[2])
for step in json.loads(known['pipeline']):
    image = resize(image, step)
pixels = image[:, :, ::-1] if known['channels'] == 'RGB' else image
pixels = (pixels - np.array(json.loads(known['mean']))) / json.loads(known['std'])
outputs = session.run(None, {'images': pixels.transpose(2, 0, 1)[None].astype(np.float32)})

classes = dict(enumerate(json.loads(known.get('classes', '[]'))))
if len(outputs) == 1:
    odds = np.exp(outputs[0][0] - outputs[0].max())
    for label in odds.argsort()[::-1][:5]:
        print(f'{classes.get(label, label)}: {odds[label] / odds.sum():.4f}')
else:
    scale = [original.shape[1] / image.shape[1], original.shape[0] / image.shape[0]] * 2
    for box, score, label in zip(*outputs):
        print(f'{classes.get(label, label)}: {score:.4f}', *(f'{edge:.1f}' for edge in box * scale))
