"""Weights of other projects give here the features they give there, and go back as they came."""

import errno
from pathlib import Path

import mmcv.ops  # noqa: F401  registers DCNv2
import pytest
import timm
import torch
import torchvision
from mmpretrain.models import ResNet as MMPretrainResNet
from mmpretrain.models import ResNetV1c, ResNetV1d
from mmpretrain.models import SEResNet as MMPretrainSEResNet
from torch import nn

from features import assert_same_features, image, loaded, randomise
from se_mm.conversion import openmmlab_state, save_weights, timm_state
from se_mm.models import SEResNet, SEResNeXt
from se_mm.models.architecture import arguments_of, constructor_arguments
from se_mm.registry import MODELS
from se_mm.utils import InputError
from se_mm.weights import expected_arguments, load_backbone, read_checkpoint, recognise, released

RELEASED = released()
# of every architecture that timm publishes, one
IN_TIMM = [
    'legacy_seresnet50.in1k',
    'legacy_seresnext50_32x4d.in1k',
    'legacy_senet154.in1k',
    'senet154.gluon_in1k',
    'seresnet50.ra2_in1k',
    'seresnet152d.ra2_in1k',
    'seresnext50_32x4d.racm_in1k',
]


def released_arguments(name):
    (entry,) = (entry for entry in RELEASED if entry['checkpoint'] == f'timm://{name}')
    return dict(entry['arguments'], type=f'se_mm.{entry["arguments"]["type"]}')


@pytest.mark.parametrize('name', IN_TIMM)
@pytest.mark.slow
def test_networks_of_timm_with_the_released_arguments(name, tmp_path):
    theirs = randomise(timm.create_model(name.partition('.')[0]))
    path = save_weights(theirs.state_dict(), tmp_path / 'weights.safetensors')
    assert_same_features(theirs, loaded(path, **released_arguments(name)))


def build_empty(arguments):
    with torch.device('meta'):
        return MODELS.build(dict(arguments, type=f'se_mm.{arguments["type"]}'))


@pytest.mark.slow
def test_released_arguments():
    """Every entry can be built, and those of timm are what their weights are found to need."""
    names = [entry['checkpoint'] for entry in RELEASED]
    in_timm = {name.removeprefix('timm://') for name in names if 'timm://' in name}
    assert set(IN_TIMM) <= in_timm <= set(timm.list_pretrained('*se*')) and len(names) == len(set(names))
    for entry in RELEASED:
        assert len(entry['error']) == 2 and entry['images'] in ('imagenet', 'caffe')
        ours = build_empty(entry['arguments'])
        name = entry['checkpoint'].removeprefix('timm://')
        if name in in_timm:
            with torch.device('meta'):
                theirs = timm.create_model(name.partition('.')[0]).state_dict()
            weights = recognise(theirs, name)
            shapes = {key: tensor.shape for key, tensor in weights.tensors.items()}
            assert shapes == {key: tensor.shape for key, tensor in ours.state_dict().items()}
            found = constructor_arguments(expected_arguments(weights))
            assert found == dict(entry['arguments'], type=f'se_mm.{entry["arguments"]["type"]}')


NETWORKS = ['seresnet50', 'seresnet152d', 'seresnext50_32x4d', 'legacy_seresnet50', 'legacy_seresnext50_32x4d']


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('name', [*NETWORKS, 'legacy_senet154', 'resnet50', 'resnext50_32x4d', 'resnet50d', 'resnet18'])
@pytest.mark.slow
def test_there_and_back_gives_the_same_bits(name, suffix, tmp_path):
    theirs = randomise(timm.create_model(name)).state_dict()
    weights = recognise(theirs, name)
    needed = constructor_arguments(expected_arguments(weights))
    there = save_weights(openmmlab_state(weights), tmp_path / f'there{suffix}', dict(backbone=needed))
    content = read_checkpoint(there)
    weights = recognise(content['state_dict'], name, meta=content['meta'])
    back = read_checkpoint(save_weights(timm_state(weights, name), tmp_path / f'back{suffix}'))['state_dict']
    assert set(back) == set(theirs)
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.items())


WIDE = dict(base_channels=128, expansion=2, stem_channels=64)


@pytest.mark.parametrize(
    'make, arguments',
    [
        (torchvision.models.resnet18, dict(type='se_mm.SEResNet', depth=18)),
        (torchvision.models.resnet50, dict(type='se_mm.SEResNet', depth=50)),
        (torchvision.models.resnext50_32x4d, dict(type='se_mm.SEResNeXt', depth=50)),
        (lambda: timm.create_model('resnet50d'), dict(type='se_mm.SEResNet', depth=50, deep_stem=True, avg_down=True)),
        (torchvision.models.wide_resnet50_2, dict(type='se_mm.SEResNet', depth=50, **WIDE)),
        (lambda: timm.create_model('wide_resnet50_2'), dict(type='se_mm.SEResNet', depth=50, **WIDE)),
        (lambda: MMPretrainResNet(50, **WIDE), dict(type='se_mm.SEResNet', depth=50, **WIDE)),
        (lambda: ResNetV1c(depth=50), dict(type='se_mm.SEResNet', depth=50, deep_stem=True)),
        (lambda: ResNetV1d(depth=50), dict(type='se_mm.SEResNet', depth=50, deep_stem=True, avg_down=True)),
        (lambda: ResNetV1d(depth=34), dict(type='se_mm.SEResNet', depth=34, deep_stem=True, avg_down=True)),
    ],
    ids=['resnet18', 'resnet50', 'resnext50', 'resnet50d']
    + ['wide of torchvision', 'wide of timm', 'wide of mmpretrain', 'V1c', 'V1d', 'V1d-34'],
)
@pytest.mark.slow
def test_plain_networks(make, arguments, tmp_path):
    """The trunk is loaded, SE starts afresh: exactly as if there were none if asked for."""
    theirs = randomise(make())
    path = save_weights(theirs.state_dict(), tmp_path / 'weights.pth')
    found = constructor_arguments(expected_arguments(recognise(theirs.state_dict(), 'a')))
    assert found == arguments
    assert_same_features(theirs, loaded(path, **arguments, with_se=False))
    ours = MODELS.build(dict(arguments, norm_eval=False))
    report = load_backbone(ours, str(path))
    assert report.fresh_se and 'start afresh' in str(report)
    assert all('se_layer' in name for name in report.fresh)
    assert report.left_over in ([], ['fc.weight', 'fc.bias'])
    assert 'train the network before you use it' in str(report)
    assert 'that change nothing until' in str(load_backbone(ours, str(path), fresh_se='identity'))
    assert_same_features(theirs, ours)


def test_fresh_se_learns():
    ours = SEResNet(50, norm_eval=False)
    path = 'layer1.0.se_layer.conv2.conv.weight'
    before = ours.get_parameter(path).detach().clone()
    from se_mm.models.fresh_se import start_as_identity

    start_as_identity(ours)
    ours(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
    assert ours.get_parameter(path).eq(0).all() and before.ne(0).any()
    assert ours.get_parameter(path).grad.ne(0).any()


@pytest.mark.parametrize('prefix', [None, 'backbone.', 'backbone'])
def test_classifier_of_mmpretrain(prefix, tmp_path):
    theirs = randomise(MMPretrainSEResNet(50, out_indices=(0, 1, 2, 3)))
    state = {f'backbone.{k}': v for k, v in theirs.state_dict().items()}
    state.update({'head.fc.weight': torch.randn(10, 2048), 'head.fc.bias': torch.randn(10)})
    path = save_weights(state, tmp_path / 'weights.pth')
    model = SEResNet(50, norm_eval=False)
    report = load_backbone(model, str(path), prefix=prefix)
    assert (report.fresh, report.left_over) == ([], ['head.fc.weight', 'head.fc.bias'])
    x = image(97, 65)
    with torch.no_grad():
        for a, b in zip(model.eval()(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * b.abs().max().item())
    weights = recognise(read_checkpoint(path)['state_dict'], 'a')
    back = openmmlab_state(weights)
    assert set(back) == set(state) and all(torch.equal(back[k], v) for k, v in state.items())


def test_deep_stem_and_average_pools_of_mmpretrain(tmp_path):
    theirs = randomise(MMPretrainSEResNet(50, deep_stem=True, avg_down=True))
    path = save_weights(theirs.state_dict(), tmp_path / 'weights.pth')
    assert_same_features(theirs, loaded(path, type='se_mm.SEResNet', depth=50, deep_stem=True, avg_down=True))


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('se_resnet50', dict(type='se_mm.SEResNet', depth=50, style='caffe', stem_pool_ceil_mode=True)),
        ('se_resnext50_32x4d', dict(type='se_mm.SEResNeXt', depth=50, stem_pool_ceil_mode=True)),
    ],
)
def test_encoders_of_segmentation_models(name, arguments, tmp_path):
    import segmentation_models_pytorch as smp

    theirs = randomise(smp.Unet(name, encoder_weights=None))
    path = save_weights(theirs.state_dict(), tmp_path / 'weights.pth')
    assert_same_features(theirs.encoder, loaded(path, **arguments), size=(96, 64))  # all that its Unet takes
    left_over = recognise(read_checkpoint(path)['state_dict'], 'a').left_over
    assert left_over and all(key.startswith(('decoder.', 'segmentation_head.')) for key in left_over)


def test_parts_that_no_weights_have_start_afresh(tmp_path):
    """Stages that the backbone lacks, deformable convolutions' offsets and plugins, as in mmdet's configs."""
    path = str(save_weights(SEResNet(50).state_dict(), tmp_path / 'weights.pth'))
    report = load_backbone(SEResNet(50, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)), path)
    assert report.fresh == [] and all(name.startswith('layer4.') for name in report.left_over)
    plugin = dict(cfg=dict(type='ContextBlock', ratio=1 / 16), position='after_conv3')
    model = SEResNet(50, plugins=[plugin], dcn=dict(type='DCNv2'), stage_with_dcn=(False, True, True, True))
    report = load_backbone(model, path)
    assert report.fresh and all('context_block' in name or 'conv_offset' in name for name in report.fresh)


def test_own_networks_of_other_families(tmp_path):
    from se_mm.models import SEMobileNet

    source = randomise(SEMobileNet())
    path = str(save_weights({f'backbone.{k}': v for k, v in source.state_dict().items()}, tmp_path / 'weights.pth'))
    model = SEMobileNet()
    assert load_backbone(model, path).fresh == []
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values()))
    with pytest.raises(InputError, match='does not fit this SEResNet'):
        load_backbone(SEResNet(18), path)


def test_variants_and_stages_are_found():
    for kwargs in (
        dict(se_cfg=dict(variant='bump')),
        dict(se_cfg=dict(variant='slow_squeeze_excite')),
        dict(se_ratio=4),
    ):
        arguments = constructor_arguments(arguments_of(SEResNet(50, **kwargs).state_dict()))
        assert arguments == dict(type='se_mm.SEResNet', depth=50, **kwargs)
    for last in (True, (True, False, True)):
        options = dict(groups=64, with_se=(True, True, False, last), deep_stem=True, avg_down=True)
        model = SEResNeXt(101, base_width=4, **options)
        assert constructor_arguments(arguments_of(model.state_dict())) == dict(
            type='se_mm.SEResNeXt', depth=101, **options
        )
    deployed = SEResNet(50, se_ratio=8, deploy=True)
    assert constructor_arguments(arguments_of(deployed.state_dict())) == dict(
        type='se_mm.SEResNet', depth=50, se_ratio=8, deploy=True
    )


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: SEResNet(50, se_cfg=dict(variant='bump')), "se_cfg={'variant': 'bump'}"),
        (lambda: SEResNet(18), 'se_cfg={} (timm rounds squeezed widths to multiples of 8)'),
        (lambda: SEResNet(50, se_ratio=8), 'se_ratio=8'),
        (lambda: SEResNet(50, with_se=(True, True, True, False)), 'with_se=(True, True, True, False)'),
        (lambda: SEResNet(50, se_cfg=dict(divisor=8), deploy=True), 'deploy=True'),
        (lambda: SEResNet(50, norm_cfg=dict(type='GN', num_groups=32), norm_eval=False), 'norms other than batch norm'),
        (
            lambda: SEResNet(50, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
            'blocks=(3, 4, 6)',
        ),
    ],
    ids=['variant', 'divisor', 'ratio', 'stages', 'deployed', 'norm', 'three stages'],
)
def test_what_timm_lacks_is_not_written_for_it(make, words):
    with torch.device('meta'):
        weights = recognise(make().state_dict(), 'mine.pth')
    with pytest.raises(InputError) as caught:
        timm_state(weights, 'mine.pth')
    assert str(caught.value).startswith('mine.pth: timm has no network with ') and words in str(caught.value)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_converted_files_say_what_they_need(suffix, tmp_path):
    """Style, rounding of the stem's pool and normalisation are in no tensor."""
    backbone = dict(type='se_mm.SEResNet', depth=50, style='caffe', stem_pool_ceil_mode=True)
    meta = dict(backbone=backbone, data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0], bgr_to_rgb=True))
    state = {f'backbone.{name}': tensor for name, tensor in SEResNet(50).state_dict().items()}
    path = str(save_weights(state, tmp_path / f'weights{suffix}', meta))
    with pytest.raises(InputError, match=r"set stem_pool_ceil_mode=True \(is False\), style='caffe' \(is 'pytorch'\)"):
        load_backbone(SEResNet(50), path)
    report = load_backbone(SEResNet(50, style='caffe', stem_pool_ceil_mode=True), path)
    assert report.format.normalisation['mean'] == [1.0, 2.0, 3.0]
    meta['backbone'] = dict(backbone, stem_pool_ceil_mode=False)
    with pytest.raises(InputError, match="timm has no network with style='caffe'"):
        timm_state(recognise(state, path, meta=meta), path)


def test_plugins_come_back_as_they_were(tmp_path):
    """Among them parameters called gamma and matrices."""
    plugin = dict(
        cfg=dict(type='GeneralizedAttention', spatial_range=-1, num_heads=8, attention_type='1111', kv_stride=2),
        stages=(False, False, True, True),
        position='after_conv2',
    )
    source, model = (SEResNet(50, plugins=[plugin]) for _ in range(2))
    path = save_weights({f'backbone.{k}': v for k, v in source.state_dict().items()}, tmp_path / 'weights.pth')
    report = load_backbone(model, str(path))
    assert (report.fresh, report.left_over) == ([], [])
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )


def test_networks_of_fewer_stages_and_channels_fit_themselves(tmp_path):
    """Also where no depth has these stages, and where groups are as wide as in no published network."""
    stages = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    for kwargs in (dict(), dict(groups=4, base_width=4, base_channels=16)):
        model = (SEResNeXt if kwargs else SEResNet)(50, **stages, **kwargs)
        path = str(save_weights(model.state_dict(), tmp_path / 'weights.pth'))
        assert load_backbone(model, path).fresh == []
        found = arguments_of(model.state_dict())
        assert {key: found[key] for key in kwargs} == kwargs


def test_nothing_is_half_written(tmp_path, monkeypatch):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'before')

    def fail(path, content):
        with path.open('wb') as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, 'disk full')

    monkeypatch.setattr(Path, 'write_bytes', fail)
    with pytest.raises(InputError, match='cannot be written: .*disk full'):
        save_weights(nn.Linear(1, 1).state_dict(), path)
    assert path.read_bytes() == b'before' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('name', ['mask_tokens.2', 'backbone.list.11', 'a.0'])
def test_names_that_end_in_numbers(name):
    """Those of ParameterList, which Caffe's layers have too."""
    state = {f'backbone.{k}': v for k, v in SEResNet(18).state_dict().items()}
    weights = recognise({**state, name: torch.zeros(1)}, 'a.pth')
    assert weights.left_over == [name] and len(weights.tensors) == len(state)
