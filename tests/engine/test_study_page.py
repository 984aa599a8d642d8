"""The page of stored results, against SciPy."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from scipy.stats import ttest_ind

from se_mm.engine.studies import read_study
from se_mm.engine.study_page import draw, read_results, render

AP = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'AR100', 'AR_S', 'AR_M', 'AR_L')


@pytest.fixture
def store(tmp_path):
    """Write a study of two configs and results of its runs; returns the study file."""

    def write(**metrics):
        for name in metrics:
            (tmp_path / f'{name}.py').write_text(f"model = dict(type='{name}')\n")
        content = dict(
            title='Small study',
            about='Two networks.\n',
            runs=[dict(configs=list(metrics), seeds=list(range(5)))],
            comparisons=[list(metrics)],
        )
        (tmp_path / 'small.yml').write_text(yaml.safe_dump(content))
        for run in read_study(tmp_path / 'small.yml').runs():
            if run.seed >= len(metrics[run.config.stem]):
                continue
            result = dict(
                config=run.config.stem,
                seed=run.seed,
                metrics=metrics[run.config.stem][run.seed],
                config_sha256=run.config_hash,
                command=run.command(),
                checkpoint_sha256=run.name,
                dataset=dict(images=10),
                device='cpu',
                versions=dict(torch='2.14.1'),
                curves={'training loss': dict(unit='epoch', points=[[0.5, 2.0], [1.0, 1.0 + run.seed]])},
            )
            path = run.result(tmp_path / 'results')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result))
        return tmp_path / 'small.yml'

    return write


def errors(*values):
    return [{'accuracy/top1': 100 - value} for value in values]


def page_of(path):
    results = read_results(read_study(path), path.parent / 'results')
    return results, render([results], path.parent / 'page.md', 'a command')


@pytest.mark.parametrize(
    ('se', 'words'),
    [
        (
            (8.1, 8.0, 8.3),
            r'`se` lowers the top-1 error of `plain` by 0\.87 points \(95 % interval: -1\.\d\d to -0\.\d\d\)',
        ),
        ((9.1, 9.0, 8.8), r'`se` and `plain`: the difference of -0\.\d\d points in top-1 error is within the noise'),
        ((10.1, 10.0, 10.3), r'`se` raises the top-1 error of `plain` by 1\.13 points'),
        ((8.1,), r'a difference of -0\.90 points in top-1 error; too few runs'),
    ],
)
def test_sentences(store, se, words):
    plain = (9.0, 8.9, 9.1)
    results, page = page_of(store(plain=errors(*plain), se=errors(*se)))
    (text,) = results.sentences()
    assert re.search(words, text) and text in page
    if len(se) > 1:
        low, high = ttest_ind(se, plain, equal_var=False).confidence_interval(0.95)
        assert f'{low:+.2f} to {high:+.2f}' in text
        if 'not differ' in text:
            assert f'more than {max(-low, high):.2f} in' in text


def test_page_of_a_detector_has_all_twelve_numbers(store):
    plain, se = ([{f'bbox_{name}': base + 0.01 * i + seed / 100 for i, name in enumerate(AP)} for seed in range(2)]
                 for base in (0.5, 0.6))  # fmt: skip
    results, page = page_of(store(plain=plain, se=se))
    rows = re.findall(r'\| plain \| se \| (\w+) \| (\S+) ± 0.71 \| (\S+) ± 0.71 \| \+10.00 \| \S+ to \S+ \|', page)
    assert [name for name, *_ in rows] == list(AP)
    assert [float(mean) for _, mean, _ in rows] == pytest.approx([50.5 + i for i in range(12)])
    assert '4 of 10 runs of the study are stored' in page and 'with torch 2.14.1' in page
    numbers = results.numbers()['comparisons'][0]['differences']
    assert list(numbers) == list(AP) and numbers['AR_L']['value'] == pytest.approx(10)


def test_links_of_the_page_lead_somewhere(store):
    path = store(plain=errors(9, 8), se=errors(7, 8))
    results, page = page_of(path)
    draw(results)
    links = re.findall(r'\]\((?!http)(.*?)\)', page)
    assert any(link.endswith('.svg') for link in links)
    assert all((path.parent / link).exists() for link in links)
    assert 'mean and standard deviation' in page and '1.500 ± 0.707' in page  # the training loss


def test_one_config_alone_has_no_difference(store):
    _, page = page_of(store(plain=errors(9, 8), se=[]))
    assert '8.50 ± 0.71' in page and 'no results of two configs to compare' in page


def test_no_results(store, run, tmp_path):
    path = store(plain=[], se=[])
    assert read_results(read_study(path), tmp_path / 'results') is None
    tool = Path(__file__).parents[2] / 'tools' / 'study_page.py'
    code, output = run('python', tool, path, '--results', tmp_path / 'results')
    assert code == 1 and re.search(r'results has no results of \S*small.yml: run tools/study.py first', output)


def test_tool_writes_page_and_numbers(store, run, tmp_path):
    path = store(plain=errors(9, 8), se=errors(7, 8))
    tool = Path(__file__).parents[2] / 'tools' / 'study_page.py'
    code, output = run('python', tool, path, '--results', tmp_path / 'results', '-o', 'page.md', '--json', 'page.json')
    assert code == 0 and 'Small study: 4 of 10 runs' in output
    (numbers,) = json.loads((tmp_path / 'page.json').read_text())
    assert numbers['networks']['se']['values']['top1'] == pytest.approx([7, 8])
    assert numbers['sentences'][0] in (tmp_path / 'page.md').read_text()


def test_curves_of_other_units_and_no_curves(store):
    """A network that was trained by iterations beside one by epochs; a run without logs, and a loss that is NaN."""
    path = store(plain=errors(20, 21), se=errors(19, 18))
    for name, change in (
        ('plain_seed0', dict()),
        ('se_seed0', {'training loss': dict(unit='iteration', points=[[1, 2.0]])}),
        ('se_seed1', {'training loss': dict(unit='epoch', points=[[1, math.nan]])}),
    ):
        result = path.parent / 'results' / 'small' / f'{name}.json'
        result.write_text(json.dumps({**json.loads(result.read_text()), 'curves': change}))
    results, page = page_of(path)
    assert {picture.name for picture in results.pictures.values()} == {
        'training_loss_by_epoch.svg',
        'training_loss_by_iteration.svg',
    }
    assert [len(network.losses) for network in results.networks] == [1, 2] and 'nan' in page
