"""What tools/benchmark.py measures: networks and detectors, here and in other projects."""

from contextlib import nullcontext
from functools import partial

import torch
import torch._inductor.config
from torch import nn

from se_mm.analysis import Measurement
from se_mm.conversion.onnx_file import RUNTIMES, export_onnx
from se_mm.conversion.quantised import quantised
from se_mm.models import SEResNet
from se_mm.utils import InputError


def networks_here(depth):
    """Functions that build mmdet's ResNet and SEResNet, fused and not.

    All networks of this program return one map, the last: compiled, a map that the loss does not use
    costs a gradient of zeros.
    """
    from mmdet.models import ResNet

    options = dict(depth=depth, norm_eval=False, out_indices=(3,))
    return dict(
        plain=partial(ResNet, **options),
        fused=partial(SEResNet, **options),
        unfused=partial(SEResNet, **options, fused_se=False),
    )


def deployed_networks(depth):
    """Functions that build SEResNet with and without SE, in evaluation mode, as trained and deployed."""

    def build(with_se, deployed):
        model = SEResNet(depth, out_indices=(3,), with_se=with_se).eval()
        if deployed:
            model.switch_to_deploy()
        return model

    return {
        'plain deployed': partial(build, False, True),
        'deployed': partial(build, True, True),
        'plain': partial(build, False, False),
        'fused': partial(build, True, False),
    }


def networks_elsewhere(depth):
    """Functions that build the plain and SE networks of mmpretrain and timm that have this depth."""
    try:
        import timm
        from mmpretrain.models import ResNet, SEResNet
    except ImportError as error:
        raise InputError(f"the part 'variants' needs mmpretrain and timm: {error}") from error

    found = {'mmpretrain plain': partial(ResNet, depth, out_indices=(3,))}
    if depth in SEResNet.arch_settings and depth >= 50:
        found['mmpretrain SE'] = partial(SEResNet, depth, out_indices=(3,))
    for name, model in (('timm plain', f'resnet{depth}'), ('timm SE', f'seresnet{depth}')):
        if timm.is_model(model):
            found[name] = partial(timm.create_model, model, num_classes=0, global_pool='')
    return found


def network_measurement(model, images, setting):
    """The training step or inference of a backbone; the loss is the mean square of its map."""
    model.train(setting.mode == 'train')
    run = model
    if setting.compiled:
        # Weights of a network that is not trained become constants. Dynamo does not see options of torch.compile.
        torch._inductor.config.freezing = True
        run = torch.compile(model)

    def forward():
        with torch.autocast('cuda', torch.bfloat16) if setting.dtype == 'bfloat16' else nullcontext():
            out = run(images)
            (out,) = out if isinstance(out, tuple | list) else (out,)
            return out.float().square().mean() if model.training else out

    return Measurement(model, forward, images.device)


def detector_measurement(model, device):
    """The training step of a Faster R-CNN with one image of 800x1333 and ten objects."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    image = torch.rand(1, 3, 800, 1344).to(device)
    corners = torch.rand(10, 2) * torch.tensor([900.0, 500.0])
    shapes = dict(img_shape=(800, 1333), pad_shape=(800, 1344), batch_input_shape=(800, 1344))
    sample = DetDataSample(metainfo=dict(shapes, ori_shape=(800, 1333), scale_factor=(1.0, 1.0)))
    sample.gt_instances = InstanceData(bboxes=torch.cat([corners, corners + 250], 1), labels=torch.arange(10))
    samples = [sample.to(device)]

    def forward():
        torch.manual_seed(0)  # every step samples the same proposals
        return model.parse_losses(model.loss(image, samples))[0]

    model.train()
    return Measurement(model, forward, device)


def exported(build, images, int8):
    """The content of an ONNX file of a network, in int8 calibrated with the same images."""
    content = export_onnx(build(), images, ['map'])
    return quantised(content, [images.numpy()]) if int8 else content


def runtime_measurement(runtime, content, images):
    """Inference of an exported network by a runtime other than torch, with as many threads as torch has."""
    run, batch = RUNTIMES[runtime](content, torch.get_num_threads()), images.numpy()
    return Measurement(nn.Identity().eval(), lambda: run(batch), images.device)
