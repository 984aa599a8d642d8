"""Networks with random weights, and their features beside ours."""

import torch

from se_mm.registry import MODELS


def randomise(model):
    """Random parameters and batch norm statistics under which features keep their scale."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        values = torch.rand(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            values = (values - 0.5) * (12 / tensor[0].numel()) ** 0.5
        tensor.copy_(values - 0.5 if name.endswith(('bias', 'running_mean')) else values + 0.5 * (tensor.dim() == 1))
    model.eval()
    return model


def image(*size):
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) - 0.5


def stages_of(model, x):
    """Outputs of layer1 to layer4 of a foreign network."""
    outs = []
    handles = [
        getattr(model, f'layer{i}').register_forward_hook(lambda m, args, out: outs.append(out)) for i in (1, 2, 3, 4)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return outs


def assert_same_features(theirs, ours, size=(65, 33)):
    x = image(*size)
    expected = stages_of(theirs, x)
    with torch.no_grad():
        actual = ours.eval()(x)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * b.abs().max().item())


def loaded(path, **arguments):
    """A backbone that init_cfg gives its weights."""
    model = MODELS.build(dict(arguments, norm_eval=False, init_cfg=dict(type='Pretrained', checkpoint=str(path))))
    model.init_weights()
    return model
