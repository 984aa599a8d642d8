import json
import re
import shutil
import sys

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from modelindex.load_model_index import load as load_model_index

from conftest import CONFIGS, ROOT, TOOLS, build_without_numbers, config_files
from se_mm.models import SELayer
from se_mm.utils.config import plain_twin

RESULTS = yaml.safe_load((CONFIGS / 'results.yml').read_text())
SE_CONFIGS = [path for path in config_files() if plain_twin(path) != path]


def flatten(value, path=''):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    return {k: v for key, part in items for k, v in flatten(part, f'{path}.{key}').items()}


@pytest.mark.parametrize('path', config_files(), ids=lambda path: path.stem)
@pytest.mark.slow
def test_builds_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = build_without_numbers(cfg.model)
    backbone = model.backbone
    has_se = any(isinstance(module, SELayer) for module in backbone.modules())
    assert has_se == (path in SE_CONFIGS)
    assert cfg.auto_scale_lr.base_batch_size > 0
    # frozen batch norms need trained statistics
    if getattr(backbone, 'norm_eval', False) or getattr(backbone, 'frozen_stages', -1) >= 0:
        assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    assert RESULTS['counted'][path.stem]['params'] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ('name', 'plain'),
    [
        ('faster_rcnn_se_r50_coco_1x.py', 'faster_rcnn_r50_coco_1x.py'),
        ('se_net154_320_imagenet.py', 'net154_320_imagenet.py'),
        ('se-slow-squeeze_r18_svhn.py', 'r18_svhn.py'),
        ('se-3x3_r50_ablation.py', 'r50_ablation.py'),
        ('senet_reuse_base_r50_coco.py', 'senet_reuse_base_r50_coco.py'),
    ],
)
def test_names_of_plain_twins(name, plain):
    assert plain_twin(CONFIGS / 'folder' / name) == CONFIGS / 'folder' / plain
    assert plain_twin(CONFIGS / plain) == CONFIGS / plain


@pytest.mark.parametrize('path', SE_CONFIGS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_twin_differs_in_the_backbone_alone(path):
    """A shared head is the backbone's last stage. Plain networks have no parameters that options for SE mean."""
    se, plain = (flatten(Config.fromfile(p).to_dict()) for p in (path, plain_twin(path)))
    different = {key for key in se.keys() | plain.keys() if se.get(key) != plain.get(key)}
    parts = ('.model.backbone.', '.model.roi_head.shared_head.', '.optim_wrapper.paramwise_cfg.custom_keys.se_layer.')
    assert different and all(key.startswith(parts) for key in different)


@pytest.mark.slow
def test_wide_network_trains():
    """All parameters move in two steps: the first one moves the last norm of every branch, which starts at 0."""
    cfg = Config.fromfile(CONFIGS / 'imagenet' / 'se_wrn50_imagenet.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
    model.init_weights()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = dict(inputs=list(images), data_samples=[DataSample().set_gt_label(i) for i in (0, 1)])
    for _ in range(2):
        assert model.train_step(batch, optim_wrapper)['loss'].isfinite()
    assert [key for key, parameter in model.named_parameters() if torch.equal(parameter, before[key])] == []


def test_every_plain_config_is_a_twin():
    assert {plain_twin(path) for path in SE_CONFIGS} == set(config_files()) - set(SE_CONFIGS)


def test_headline_configs_alone_are_at_the_top():
    assert len({path.name for path in config_files()}) == len(config_files())
    headlines = {path for path in config_files() if path.stem.endswith(('_coco', '_places365'))}
    assert headlines == {path for path in config_files() if path.parent == CONFIGS}


def test_schedules():
    two, one = (
        Config.fromfile(CONFIGS / name)
        for name in ('faster_rcnn_se_r50_coco.py', 'faster_rcnn_1x/faster_rcnn_se_r50_coco_1x.py')
    )
    assert (two.train_cfg.max_epochs, two.param_scheduler[1].milestones) == (24, [16, 22])
    assert (one.train_cfg.max_epochs, one.param_scheduler[1].milestones) == (12, [8, 11])
    imagenet = Config.fromfile(CONFIGS / 'imagenet' / 'se_r50_imagenet.py')
    assert imagenet.optim_wrapper.optimizer.lr == 0.6 and imagenet.auto_scale_lr.base_batch_size == 1024
    assert imagenet.param_scheduler.milestones == [30, 60, 90] and imagenet.train_cfg.max_epochs == 100


def test_readme_lists_every_config():
    text = (CONFIGS / 'README.md').read_text()
    for path in config_files():
        assert text.count(f'\n| [{path.stem}]({path.relative_to(CONFIGS)}) |') == 1, path


def test_results_name_configs_that_exist():
    names = {path.stem for path in config_files()}
    assert RESULTS['counted'].keys() == names
    assert RESULTS['papers'].keys() <= names


def test_papers_numbers_are_compared_with_this_projects_configs_only(run, tmp_path):
    here, copied = CONFIGS / 'variations' / 'cnn_cifar10.py', tmp_path / 'cnn_cifar10.py'
    copied.write_text(f'_base_ = {str(here)!r}\n')
    (tmp_path / 'results.yml').write_text('a file of the user')
    code, output = run(sys.executable, TOOLS / 'compare.py', here, copied, '--json', 'out.json')
    assert code == 0, output
    papers = [row['paper'] for row in json.loads((tmp_path / 'out.json').read_text())]
    assert papers == [dict(top1=27.48, source='arXiv 2304.06502 table 1'), {}]


def test_markdown_links_of_the_project_exist():
    for page in [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'), *CONFIGS.glob('*.md')]:
        for target in re.findall(r'\]\(([^)#:]+)[)#]', page.read_text()):
            assert (page.parent / target).exists(), f'{page}: {target}'


WRITE_RESULTS = ROOT / '.dev_scripts' / 'write_results.py'


def test_tables_and_metafiles_are_up_to_date(run):
    code, output = run(sys.executable, WRITE_RESULTS, '--check')
    assert code == 0, f'{output}run python .dev_scripts/write_results.py'


@pytest.fixture
def small_project(tmp_path):
    """A project with the configs of the quickstart only, before anything is written."""
    configs, script = tmp_path / 'configs', tmp_path / '.dev_scripts' / WRITE_RESULTS.name
    for folder in ('_base_', 'quickstart'):
        shutil.copytree(CONFIGS / folder, configs / folder, ignore=shutil.ignore_patterns('metafile.yml'))
    shutil.copy(CONFIGS / 'results.yml', configs)
    (configs / 'README.md').write_text('Text.\n\n<!-- table: quickstart/*.py -->\n<!-- end -->\n')
    script.parent.mkdir()
    shutil.copy(WRITE_RESULTS, script)
    return script, configs / 'results.yml'


def test_a_changed_number_is_noticed_and_written(run, small_project):
    script, results = small_project
    code, output = run(sys.executable, script)
    assert code == 0 and output.splitlines() == [
        'configs/README.md written',
        'model-index.yml written',
        'configs/quickstart/metafile.yml written',
    ]
    numbers = yaml.safe_load(results.read_text())
    numbers['papers']['se_r18_scenes'] = dict(top1='24.80', source='arXiv 1709.01507 v4 table 2')
    numbers['counted']['se_r18_scenes']['params'] = 1230000
    results.write_text(yaml.safe_dump(numbers))
    code, output = run(sys.executable, script, '--check')
    assert code == 1 and output.splitlines() == [
        'configs/README.md is out of date',
        'configs/quickstart/metafile.yml is out of date',
    ]
    assert run(sys.executable, script)[0] == 0 and run(sys.executable, script, '--check') == (0, '')
    readme = (results.parent / 'README.md').read_text()
    assert readme.startswith('Text.') and '| 1.23 | 0.089 | 24.80 | table 2 |' in readme
    assert 'Parameters: 1230000' in (results.parent / 'quickstart' / 'metafile.yml').read_text()


def test_a_new_config_is_counted(run, small_project):
    script, results = small_project
    by_hand = results.read_text().partition('\ncounted:')[0]
    folder = results.parent / 'quickstart'
    shutil.copy(folder / 'se_r18_scenes.py', folder / 'se-slow_r18_scenes.py')
    code, output = run(sys.executable, script)
    assert code == 1 and '--count se-slow_r18_scenes' in output
    code, output = run(sys.executable, script, '--count', 'se-slow_r18_scenes')
    assert code == 0, output
    text = results.read_text()
    counted = yaml.safe_load(text)['counted']
    assert text.startswith(by_hand) and len(counted) == 5
    assert counted['se-slow_r18_scenes'] == counted['se_r18_scenes'] == RESULTS['counted']['se_r18_scenes']


def test_metafiles_list_every_config():
    index = load_model_index(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    models = {model.name: model for model in index.models}
    assert len(models) == len(index.models) and models.keys() == {path.stem for path in config_files()}
    for path in config_files():
        model = models[path.stem]
        assert ROOT / model.config == path
        assert model.in_collection in {collection.name for collection in index.collections}
        assert (model.in_collection == 'Plain twins') == (path not in SE_CONFIGS)
        assert model.metadata.data['Parameters'] == RESULTS['counted'][path.stem]['params']
