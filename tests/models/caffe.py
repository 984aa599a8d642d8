"""Networks from their layer tables, written with functions of torch only: what ours are compared with."""

import csv
from pathlib import Path

import torch
from torch.nn import functional as F

TABLES = Path(__file__).with_name('caffe_layers')


class CaffeNet:
    """The network of a table in ``caffe_layers``, with random weights and batch norm statistics.

    Attributes:
        weights: parameters of every layer that has any, by its name: weight and bias or None of a
            convolution or InnerProduct, mean and variance of BatchNorm, factor and shift of Scale.
    """

    def __init__(self, name, dtype=torch.float64):
        self.layers = list(csv.DictReader((TABLES / f'{name}.csv').open()))
        self.dtype, self.weights = dtype, {}

    def run(self, image, end=None):
        """All the named results of the layers up to ``end``, also those that later layers overwrite."""
        blobs, results = {'data': image}, {}
        for layer in self.layers:
            if layer['type'] == 'Input':
                continue
            bottoms = [blobs[name] for name in layer['bottoms'].split()]
            run = getattr(self, layer['type'].lower())
            results[layer['name']] = blobs[layer['tops']] = run(layer, *bottoms)
            if layer['name'] == end:
                break
        return results

    def parameters(self, layer, shapes):
        if layer['name'] not in self.weights:
            generator = torch.Generator().manual_seed(len(self.weights))
            made = []
            for shape in shapes:
                values = shape and torch.rand(shape, generator=generator, dtype=self.dtype)
                # weights keep the scale of what they multiply, everything else lies between 0.5 and 1.5
                if shape:
                    fan_in = values[0].numel()
                    values = (values - 0.5) * (12 / fan_in) ** 0.5 if len(shape) > 1 else values + 0.5
                made.append(values)
            self.weights[layer['name']] = made
        return self.weights[layer['name']]

    def convolution(self, layer, x):
        channels, kernel = int(layer['num_output']), int(layer['kernel'])
        groups = int(layer['group'] or 1)
        shapes = (channels, x.shape[1] // groups, kernel, kernel), layer['bias_term'] != 'false' and (channels,)
        weight, bias = self.parameters(layer, shapes)
        stride, pad = int(layer['stride'] or 1), int(layer['pad'] or 0)
        return F.conv2d(x, weight, bias if bias is not False else None, stride, pad, groups=groups)

    def innerproduct(self, layer, x):
        channels = int(layer['num_output'])
        weight, bias = self.parameters(layer, ((channels, x[0].numel()), (channels,)))
        return F.linear(x.flatten(1), weight, bias)

    def batchnorm(self, layer, x):
        mean, variance = (v[:, None, None] for v in self.parameters(layer, ((x.shape[1],),) * 2))
        return (x - mean) / (variance + 1e-5).sqrt()

    def scale(self, layer, x, gates=None):
        if gates is not None:
            return x * gates
        factor, shift = (v[:, None, None] for v in self.parameters(layer, ((x.shape[1],),) * 2))
        return x * factor + shift

    def pooling(self, layer, x):
        if layer['global_pooling'] == 'true':
            return x.mean((2, 3), keepdim=True)
        kernel, stride, pad = (
            int(layer[key] or default) for key, default in (('kernel', 0), ('stride', 1), ('pad', 0))
        )
        if layer['pool'] == 'AVE':
            return F.avg_pool2d(x, kernel, stride, pad, ceil_mode=True)
        return F.max_pool2d(x, kernel, stride, pad, ceil_mode=True)

    def axpy(self, layer, gates, branch, shortcut):
        return gates * branch + shortcut

    def relu(self, layer, x):
        return x.clamp(min=0)

    def sigmoid(self, layer, x):
        return 1 / (1 + (-x).exp())

    def softmax(self, layer, x):
        return x.softmax(1)

    def concat(self, layer, *maps):
        return torch.cat(maps, 1)

    def reshape(self, layer, x):
        return x.reshape(len(x), -1, 1, 1)

    def dropout(self, layer, x):
        return x
