import pytest

from se_mm.analysis.runs import Axis, config_name, find_work_dirs, read_run
from se_mm.utils import InputError
from se_mm.utils.config import load_config
from work_dirs import DETECTORS, step, write_evaluation, write_log

LOSS = Axis('training loss', 'epoch')


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / 'work'
    path.mkdir()
    (path / 'a.py').write_text('model = dict()')
    return path


def test_curves_of_epochs(folder):
    entries = [step(4, 3.0, 1), step(8, 2.5, 1), {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5, 'time': 1, 'step': 1}]
    write_log(folder, [*entries, step(12, 2.0, 2), step(16, 1.5, 2), {'coco/bbox_mAP': 0.5, 'step': 2}])
    run = read_run(folder)
    assert run.curves == {LOSS: {0.5: 3.0, 1.0: 2.5, 1.5: 2.0, 2.0: 1.5}, Axis('AP, %', 'epoch'): {1: 25.0, 2: 50.0}}
    assert run.seconds == 8.0 and run.name == 'a' and run.evaluation is None


def test_curves_of_iterations(folder):
    """A training loop without epochs: validations stand where they were made."""
    write_log(
        folder, [step(4, 3.0), {'accuracy/top1': 60.0, 'step': 0}, step(8, 2.5), {'accuracy/top1': 70, 'step': 0}]
    )
    assert read_run(folder).curves == {
        Axis('training loss', 'iteration'): {4: 3.0, 8: 2.5},
        Axis('top-1 error, %', 'iteration'): {4: 40.0, 8: 30.0},
    }


def test_unknown_results_are_shown_by_the_first(folder):
    write_log(folder, [step(4, 3.0, 1), {'mine/score': 7.0, 'mine/other': 8.0, 'time': 0.1, 'step': 1}])
    assert read_run(folder).curves[Axis('mine/score', 'epoch')] == {1: 7.0}
    assert len(read_run(folder).curves) == 2


def test_a_later_training_replaces_from_its_first_step_on(folder):
    first = [step(1, 9.0, 1), step(2, 8.0, 1), {'error/top1': 90.0, 'step': 1}, step(3, 7.0, 2), step(4, 6.0, 2)]
    write_log(folder, [*first, {'error/top1': 80.0, 'step': 2}], '20260101_000000')
    write_log(folder, [step(3, 5.0, 2)], '20260102_000000')
    assert read_run(folder).curves == {LOSS: {0.5: 9.0, 1.0: 8.0, 1.5: 5.0}, Axis('top-1 error, %', 'epoch'): {1: 90.0}}
    write_log(folder, [step(1, 1.0, 1)], '20260103_000000')
    assert read_run(folder).curves == {LOSS: {1.0: 1.0}}


def test_config_of_the_training_not_of_a_later_evaluation(folder):
    cfg = load_config(DETECTORS[0])
    write_log(folder, [step(1, 9.0, 1)], cfg=cfg)
    evaluation = folder / '20260105_000000' / 'vis_data' / 'config.py'
    evaluation.parent.mkdir(parents=True)
    evaluation.write_text('model = None')
    assert read_run(folder).cfg.model == cfg.model
    assert read_run(folder).cfg.work_dir == str(folder)


def test_half_a_line_of_a_killed_run_is_left_out(folder):
    write_log(folder, [step(1, 9.0, 1), step(2, 8.0, 1)])
    path = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    path.write_text(path.read_text()[:-20])
    assert read_run(folder).curves == {LOSS: {1.0: 9.0}}
    path.write_text('{"lo\n' + path.read_text())
    with pytest.raises(InputError, match='scalars.json, line 1'):
        read_run(folder)


def test_what_a_work_dir_must_have(folder):
    with pytest.raises(InputError, match='neither curves .* nor metrics.json .*train or evaluate first'):
        read_run(folder)
    (folder / 'metrics.json').write_text('{"config": "a.py"}')
    with pytest.raises(InputError, match='metrics.json is not a file that tools/test.py wrote'):
        read_run(folder)
    write_evaluation(folder, 'configs/b.py', {})
    assert read_run(folder).name == 'b' and read_run(folder).curves == {} and read_run(folder).seconds is None
    (folder / 'a.py').unlink()
    with pytest.raises(InputError, match='has no config'):
        read_run(folder)


def test_name_of_the_config(folder):
    assert config_name(folder) == 'a'
    (folder / 'b.py').write_text('')
    with pytest.raises(InputError, match='several configs, a, b'):
        config_name(folder)
    for path in folder.glob('*.py'):
        path.unlink()
    (folder / '20260101_000000.py').write_text('')  # what MMEngine writes for a config without a file
    assert config_name(folder) == 'work'


def test_work_dirs_are_found(tmp_path):
    for seed in (0, 1):
        for name in ('a', 'b'):
            write_log(tmp_path / f'seed{seed}' / name, [])
    write_evaluation(tmp_path / 'c', 'c.py', {})
    (tmp_path / 'seed2').mkdir()
    nested = [tmp_path / f'seed{seed}' / name for seed in (0, 1) for name in ('a', 'b')]
    assert find_work_dirs(str(tmp_path)) == [tmp_path / 'c', *nested]
    assert find_work_dirs(str(tmp_path / 'seed1')) == nested[2:]
    assert find_work_dirs(str(tmp_path / 'seed1' / 'a')) == [nested[2]]
    assert find_work_dirs(str(nested[2] / '20260101_000000')) == [nested[2]]
    assert find_work_dirs(str(tmp_path / 'seed*' / 'b')) == [nested[1], nested[3]]
    (tmp_path / 'linked').mkdir()
    (tmp_path / 'linked' / 'first').symlink_to(nested[0])
    assert find_work_dirs(str(tmp_path / 'linked')) == [tmp_path / 'linked' / 'first']
    for nothing in ('none', 'seed2', 'x*'):
        with pytest.raises(InputError, match='there is no work dir of MMEngine'):
            find_work_dirs(str(tmp_path / nothing))


def test_average_precision_of_several_labels_is_in_percent_already(folder):
    write_log(folder, [{'loss': 1.0, 'iter': 1, 'step': 1}, {'multi-label/mAP': 72.5, 'step': 1}])
    (curve,) = [curve for axis, curve in read_run(folder).curves.items() if axis.quantity == 'mAP, %']
    assert list(curve.values()) == [72.5]
