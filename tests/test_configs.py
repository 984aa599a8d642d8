import re

import pytest
import yaml
from conftest import CONFIGS, config_files
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from modelindex.load_model_index import load as load_model_index

from se_mm.models import SELayer

README = (CONFIGS / 'README.md').read_text()
PAPER = yaml.safe_load((CONFIGS / 'paper.yml').read_text())


def flatten(value, path=''):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    return {k: v for key, part in items for k, v in flatten(part, f'{path}.{key}').items()}


@pytest.mark.parametrize('path', config_files(), ids=lambda path: path.stem)
def test_builds_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    backbone = MODELS.build(cfg.model).backbone
    has_se = any(isinstance(module, SELayer) for module in backbone.modules())
    assert has_se == ('se' in path.stem and path.stem != 'r50_no_se')
    assert cfg.auto_scale_lr.base_batch_size > 0
    # frozen batch norms need trained statistics
    if getattr(backbone, 'norm_eval', False) or getattr(backbone, 'frozen_stages', -1) >= 0:
        assert cfg.model.backbone.init_cfg.type == 'Pretrained'


def twin_of(path):
    if path.parent.name == 'ablation':
        return path.with_name('r50_no_se.py')
    if path.stem.startswith('senet154'):
        return path.with_name(path.name.removeprefix('se'))
    return path.with_name(re.sub('se_((slow|squeeze|excite|bump)_)*', '', path.name, count=1))


@pytest.mark.parametrize(
    'path', [p for p in config_files() if re.search('se_|senet', p.stem)], ids=lambda path: path.stem
)
def test_twin_differs_in_the_backbone_alone(path):
    twin = twin_of(path)
    se, plain = (flatten(Config.fromfile(p).to_dict()) for p in (path, twin))
    different = {key for key in se.keys() | plain.keys() if se.get(key) != plain.get(key)}
    assert different and all(key.startswith('.model.backbone.') for key in different)


def test_schedules():
    two, one = (
        Config.fromfile(CONFIGS / name)
        for name in ('faster_rcnn_se_r50_coco.py', 'faster_rcnn_1x/faster_rcnn_se_r50_coco_1x.py')
    )
    assert (two.train_cfg.max_epochs, two.param_scheduler[1].milestones) == (24, [16, 22])
    assert (one.train_cfg.max_epochs, one.param_scheduler[1].milestones) == (12, [8, 11])
    imagenet = Config.fromfile(CONFIGS / 'se_r50_imagenet.py')
    assert imagenet.optim_wrapper.optimizer.lr == 0.6 and imagenet.auto_scale_lr.base_batch_size == 1024
    assert imagenet.param_scheduler.milestones == [30, 60, 90] and imagenet.train_cfg.max_epochs == 100


def test_readme_lists_every_config_and_links_exist():
    for path in config_files():
        assert f'({path.relative_to(CONFIGS)})' in README, path
    for target in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (CONFIGS / target).exists(), target


def test_papers_numbers_in_the_readme_are_those_compared_with():
    for name, numbers in PAPER.items():
        (row,) = re.findall(rf'^\| \[{name}\].*$', README, re.M)
        for key in ('AP', 'AP50', 'top1', 'top5', 'params', 'GFLOPs'):
            if key in numbers:
                cells = re.split(r'[ |,M]+', row)
                assert {f'{numbers[key]:.{digits}f}' for digits in range(4)} & set(cells), (name, key)


def test_markdown_links_of_the_project_exist():
    root = CONFIGS.parent
    for page in [*root.glob('*.md'), *(root / 'docs').glob('*.md')]:
        for target in re.findall(r'\]\(([^)#:]+)[)#]', page.read_text()):
            assert (page.parent / target).exists(), f'{page}: {target}'


def test_metafiles_list_every_config_as_it_is():
    index = load_model_index(str(CONFIGS.parent / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    collections = {collection.name for collection in index.collections}
    models = {model.name: model for model in index.models}
    assert len(models) == len(index.models) and models.keys() == {path.stem for path in config_files()}
    for path in config_files():
        model, cfg = models[path.stem], Config.fromfile(path)
        assert CONFIGS.parent / model.config == path and model.in_collection in collections
        assert (model.in_collection == 'Plain twins') == ('se' not in path.stem or path.stem == 'r50_no_se')
        data = model.metadata.data
        assert (data['Epochs'], data['Batch Size']) == (cfg.train_cfg.max_epochs, cfg.auto_scale_lr.base_batch_size)
        counted = re.search(rf'\| \[{path.stem}\]\(.*', README)
        if counted:
            numbers = re.findall(r'\| (\d+\.\d+) (?=\|)', counted[0])
            assert numbers[:2] == [
                f'{data["Parameters"] / 1e6:.2f}',
                f'{data["FLOPs"] / 1e9:.{len(numbers[1].partition(".")[2])}f}',
            ]
