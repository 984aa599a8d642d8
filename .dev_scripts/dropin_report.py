"""Try the models of an installed package's configs with SE backbones.

The program chooses one config of every family (folder of configs), model type and kind of detector (with a neck, on one
map as DC5, with a shared head as C4), if its backbone has an SE twin. The model is built without SE and with SE: only
the types of the backbone and of a shared head change. Each model runs one training step, forward
and backward, and one prediction on the CPU with random images. The config's optimiser has to treat the parameters of
both models alike. The table gives the reason where a model fails.
"""

import argparse
import gc
import importlib
import os
import signal
import traceback
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from rich.console import Console
from rich.progress import track
from rich.table import Table

import se_mm.mmcv_ext  # noqa: F401  registers the backbones; operators, where mmcv has none
from se_mm.conversion.twins import backbones, shared_heads, twin_backbone, twin_of_shared_head
from se_mm.engine import guard
from se_mm.utils import InputError, installed_versions, write_json, written_whole
from se_mm.utils.config import is_pretrained

COLUMNS = ('family', 'model', 'config', 'plain', 'SE')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--package', choices=['mmdet', 'mmpretrain'], default='mmdet', help='whose configs [mmdet]')
    parser.add_argument('--families', nargs='+', help='folders of configs [all]')
    parser.add_argument(
        '--every', action='store_true', help='every config, not one of each family, model type and kind'
    )
    parser.add_argument(
        '--size', type=int, nargs='+', default=[128, 512], help='of the square images; the next if one fails [128 512]'
    )
    parser.add_argument('--limit', type=int, default=300, help='seconds for building, training, predicting once [300]')
    parser.add_argument('--markdown', metavar='FILE', help='also write the table as Markdown')
    parser.add_argument('--json', metavar='FILE', help='also write the results as JSON')
    return parser.parse_args()


def configs_of(package, families, every):
    """Path and config of those to try, and how many have such a backbone in all."""
    folder = Path(importlib.import_module(package).__file__).parent / '.mim' / 'configs'
    os.chdir(folder.parent)  # some configs name others by configs/...
    if missing := [name for name in families or () if not (folder / name).is_dir()]:
        raise InputError(f'--families {missing[0]}: no such folder in {folder}')
    chosen, total = {}, 0
    paths = [path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.parts]
    for path in track([p for p in paths if not families or p.relative_to(folder).parts[0] in families], 'reading'):
        try:
            cfg = Config.fromfile(path)
        except Exception:  # configs that need files or packages which are not installed
            continue
        model = cfg.model.to_dict() if isinstance(cfg.get('model'), dict) else {}
        if not list(backbones(model)):
            continue
        total += 1
        family = path.relative_to(folder).parts[0]
        kind = (model.get('type'), 'neck' in model, bool(list(shared_heads(model))))
        chosen.setdefault((family, path if every else kind), (str(path.relative_to(folder)), cfg))
    return [(family, *rest) for (family, _), rest in chosen.items()], total


def without_weights(node):
    """A model's config that downloads nothing."""
    if isinstance(node, dict):
        rest = {k: v for k, v in node.items() if k not in ('pretrained', 'teacher_ckpt')}
        return {k: without_weights(v) for k, v in rest.items() if not (k == 'init_cfg' and is_pretrained(v))}
    return type(node)(without_weights(item) for item in node) if isinstance(node, list | tuple) else node


def with_se(node, package):
    """The same with only the types of backbones and shared heads changed, and the arguments that a type stands for."""
    twins = {path: twin_of_shared_head(head) for path, head, _ in shared_heads(node)}
    twins |= {path: twin_backbone(backbone, package) for path, backbone in backbones(node)}
    for path, twin in twins.items():
        parent = node
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = twin
    return node


def detections(size):
    from mmdet.testing import demo_mm_inputs

    shapes = [(3, size, size)] * 2
    batch = demo_mm_inputs(2, shapes, num_items=[3, 2], num_classes=2, with_mask=True, with_semantic=True)
    for sample in batch['data_samples']:
        sample.gt_instances.labels.zero_()  # the one class that every head knows
    return batch


def with_proposals(batch, model):
    """With proposals for the models that expect them of another model's RPN."""
    for sample in () if getattr(model, 'with_rpn', True) else batch['data_samples']:
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes.clone())
    return batch


def videos(size):
    from mmdet.testing import demo_track_inputs

    batch = demo_track_inputs(1, 2, [0], [(3, size, size)], num_items=[3], with_mask=True)
    for sample in batch['data_samples'][0].video_data_samples:
        sample.gt_instances.instances_ids = torch.arange(3)  # one set of objects in all frames
    return batch


def branches(size):
    """A semi-supervised batch."""
    names = ('sup', 'unsup_teacher', 'unsup_student')
    parts = [detections(size) for _ in names]
    for part in parts:
        for sample in part['data_samples']:
            sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
    keys = ('inputs', 'data_samples')
    return {key: {name: part[key] for name, part in zip(names, parts, strict=True)} for key in keys}


def persons(_):
    """Of the one size that the neck pools to a vector."""
    from mmdet.structures import ReIDDataSample

    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (4, 3, 256, 128), np.uint8))
    samples = [ReIDDataSample() for _ in images]
    for i, sample in enumerate(samples):
        sample.set_gt_label(i // 2)
    return dict(inputs=list(images), data_samples=samples)


def classes(size):
    from mmpretrain.structures import DataSample

    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (2, 3, size, size), np.uint8))
    return dict(inputs=list(images), data_samples=[DataSample().set_gt_label(0) for _ in images])


def views(size):
    """Two of each image, for self-supervised learning."""
    batch = classes(size)
    images = torch.stack(batch['inputs'])
    return dict(batch, inputs=[images, images.flip(-1)])


BATCHES = dict(
    DetDataPreprocessor=detections,
    TrackDataPreprocessor=videos,
    MultiBranchDataPreprocessor=branches,
    ReIDDataPreprocessor=persons,
    SelfSupDataPreprocessor=views,
)  # by the model's data preprocessor; of the others, by package
DEFAULTS = dict(mmdet=detections, mmpretrain=classes)


def parameter_groups(model, optim_wrapper):
    """Shape and options of every parameter but those of SE layers, as the config's optimiser has them."""
    keys = ('constructor', 'paramwise_cfg', 'optimizer')  # without the options of wrappers for GPUs
    chosen = {key: optim_wrapper[key] for key in keys if key in optim_wrapper}
    groups = build_optim_wrapper(model, ConfigDict(type='OptimWrapper', **chosen)).param_groups
    se = {id(parameter) for name, parameter in model.named_parameters() if '.se_layer.' in name}
    own = ('params', 'param_name')  # deep stems have other names
    return Counter(
        (tuple(parameter.shape), *sorted((k, repr(v)) for k, v in group.items() if k not in own))
        for group in groups
        for parameter in group['params']
        if id(parameter) not in se
    )


def run(cfg, model_cfg, package, size, limit):
    """One training step and one prediction: the reason if one fails, and how the optimiser groups parameters."""
    groups = None
    torch.manual_seed(0)
    kind = model_cfg.get('data_preprocessor', {}).get('type', '')
    predicted = DEFAULTS[package] if kind == 'MultiBranchDataPreprocessor' else BATCHES.get(kind, DEFAULTS[package])
    trained = BATCHES.get(kind, DEFAULTS[package])
    signal.alarm(limit)
    try:
        model = MODELS.build(ConfigDict(model_cfg))
        model = revert_sync_batchnorm(model)  # as Runner does without GPUs
        model.init_weights()
        groups = parameter_groups(model, cfg.optim_wrapper) if 'optim_wrapper' in cfg else None
        model.train()
        losses = model(**model.data_preprocessor(with_proposals(trained(size), model), True), mode='loss')
        loss, _ = model.parse_losses(losses)
        if not loss.isfinite():
            return f'loss is {loss.item()}', groups
        loss.backward()
        silent = [n for n, p in model.named_parameters() if '.se_layer.' in n and p.requires_grad and p.grad is None]
        if silent and not all('teacher' in name for name in silent):
            return f'no gradient for {silent[0]}', groups
        model.eval()
        with torch.no_grad():
            if trained is views:  # such models give features alone
                model(model.data_preprocessor(views(size), False)['inputs'][0], mode='tensor')
            else:
                batch = with_proposals(predicted(size), model)
                one = {key: values[:1] for key, values in batch.items()}  # some models take no more
                model(**model.data_preprocessor(one, False), mode='predict')
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = ' '.join(str(error).partition('\n')[0].split()) or where.line
        return f'{type(error).__name__} in {Path(where.filename).name}: {text}'[:160], groups
    finally:
        signal.alarm(0)
        gc.collect()
    return None, groups


def stop(*_):
    raise TimeoutError('longer than --limit')


def main():
    args, console = parse_args(), Console()
    args.json, args.markdown = (path and Path(path).resolve() for path in (args.json, args.markdown))
    signal.signal(signal.SIGALRM, stop)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))  # some losses warm up
    chosen, total = configs_of(args.package, args.families, args.every)
    results = []
    for family, name, cfg in track(chosen, 'running', console=console):
        scope = cfg.get('default_scope', args.package)
        init_default_scope(scope)
        model = without_weights(cfg.model.to_dict())
        if 'data_preprocessor' in cfg:
            model.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
        for size in args.size:  # building a model changes its config
            plain, plain_groups = run(cfg, deepcopy(model), args.package, size, args.limit)
            if plain is None or plain.startswith('TimeoutError'):
                break
        se, groups = run(cfg, with_se(deepcopy(model), scope), args.package, size, args.limit)
        if se is None and groups != plain_groups:
            se = 'the optimiser treats other parameters than those of SE in another way'
        results.append(dict(family=family, model=cfg.model.type, config=name, size=size, plain=plain, SE=se))
        line = f'{name}: {plain or "works"}; with SE: {se or "works"}'
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    report(args, console, total, results)


def report(args, console, total, results):
    """Print the table; write what --markdown and --json ask for."""
    from mmcv.ops import get_compiler_version  # there since se_mm.mmcv_ext

    rows = [[row[key] for key in COLUMNS[:3]] + [row[key] or 'works' for key in COLUMNS[3:]] for row in results]
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    able = [row for row in results if row['plain'] is None]
    working = sum(row['SE'] is None for row in able)
    summary = (
        f'{total} configs of {args.package} have a backbone with an SE twin. {len(results)} models were tried. '
        f'{len(able)} of them work without SE, and {working} of these {len(able)} work with SE.'
    )
    print(summary)
    versions = installed_versions()
    if args.markdown:
        installed = ', '.join(f'{name} {version}' for name, version in versions.items())
        operators = f"Compiler of mmcv's operators: {get_compiler_version()}."
        lines = [summary, '', f'On a CPU, {installed}. {operators}', '']
        lines += [f'| {" | ".join(COLUMNS)} |', '| --- ' * len(COLUMNS) + '|']
        lines += ['| ' + ' | '.join(cell.replace('|', '/') for cell in row) + ' |' for row in rows]
        with written_whole(args.markdown) as temporary:
            temporary.write_text('\n'.join(lines) + '\n')
    if args.json:
        write_json(args.json, dict(package=args.package, configs=total, versions=versions, results=results))


if __name__ == '__main__':
    with guard():
        main()
