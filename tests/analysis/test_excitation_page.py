"""The page, the pictures and the files of an analysis of gates, from statistics without a network."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from se_mm.analysis import excitation_page
from se_mm.analysis.excitation import Analysis
from se_mm.analysis.excitation_page import check_names, draw, file_stem, shown_classes, write_analysis, write_numbers
from se_mm.analysis.gate_bank import REPLACEMENTS
from se_mm.analysis.gate_figures import draw_classes, draw_profile, draw_spread, draw_worth, in_depth_order
from se_mm.analysis.gate_statistics import GateStatistics
from se_mm.analysis.gate_worth import Case, Verdict
from se_mm.analysis.gates import Gates
from se_mm.analysis.scores import Worth
from se_mm.utils import InputError

CLASSES = ['_x', 'a$b$c', 'cat', 'dog', 'never']
RESNET18 = [f'SE_{stage}_{block}' for stage in range(2, 6) for block in (1, 2)]
RESNET50 = [f'SE_{stage}_{block}' for stage, blocks in zip(range(2, 6), (3, 4, 6, 3)) for block in range(1, blocks + 1)]


def gathered(names=('SE_2_1', 'SE_2_2'), seen=4, activation=torch.sigmoid, extra=None, spread=False):
    """Statistics of 12 images of the first classes."""
    generator = torch.Generator().manual_seed(0)
    statistics = GateStatistics({'class': CLASSES} | (extra or {}))
    values = {name: activation(3 * torch.randn(12, 8, generator=generator)) for name in names}
    gates = {name: Gates(value, value.abs() if spread else None) for name, value in values.items()}
    statistics.add(gates, [(1 + image % seen,) for image in range(12)])
    return statistics


def judged(name, statistics):
    """An analysis in which replaced gates cost as many points as their layer has a number."""
    analysis, names = Analysis(name, statistics), list(statistics.layers)
    analysis.score, analysis.own, analysis.images = SimpleNamespace(name='top-1 error', unit='points'), 20.0, 12
    for onwards in (False, True):
        for i, layer in enumerate(names[: len(names) - onwards]):
            for replacement in REPLACEMENTS:
                worth = Worth(20 + i, i + 10.0 * onwards, i - 1.0, i + 12.0)
                analysis.worth[Case(layer, replacement, onwards)] = worth
    analysis.verdicts = {layer: Verdict('undecided', 'class-agnostic', 'Reason.') for layer in names}
    return analysis


def page_of(folder):
    return (folder / 'excitation.html').read_text(encoding='utf-8')


def drawn_labels(figure):
    """What the legend shows: a backslash keeps matplotlib from reading a formula."""
    figure.canvas.draw()
    texts = figure.legends[0].get_texts()
    assert all(text._preprocess_math(text.get_text())[1] is False for text in texts)
    return [text._preprocess_math(text.get_text())[0] for text in texts]


def test_equal_names_are_refused_before_anything_is_written(tmp_path):
    networks = [Analysis('net', gathered()), Analysis('net', gathered())]
    with pytest.raises(InputError, match='networks net and net would overwrite each other: give the networks names'):
        write_analysis(networks, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    with pytest.raises(InputError, match='a and A would overwrite'):  # on a disk that ignores capitals
        check_names(['b', 'a', 'A'])
    with pytest.raises(InputError, match='empty name'):
        check_names([''])


def test_stems_are_names_of_files_and_differ():
    names = ['a/b', 'a_b', 'a%2Fb', 'a:b', '.a', 'a', '../a', 'a\\b', 'se_r18 seed1', 'größe']
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    assert not any(re.search(r'[/\\:]|^\.', stem) for stem in stems)
    assert stems[-2:] == names[-2:]


def test_names_with_slashes(tmp_path):
    page = write_analysis([judged('a/b', gathered()), judged('a', gathered())], tmp_path, channels=4)
    kinds = ('classes', 'spread', 'worth')
    pictures = [f'{stem}_{kind}' for stem in ('a%2Fb', 'a') for kind in kinds] + ['profile']
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f'{picture}.{end}' for picture in pictures for end in ('png', 'svg')),
        *(f'{stem}.{end}' for stem in ('a%2Fb', 'a') for end in ('npz', 'csv')),
        'excitation.json',
        'excitation.html',
    }
    assert page == tmp_path / 'excitation.html' and page_of(tmp_path).count('data:image/svg+xml') == 7
    assert [row['network'] for row in json.loads((tmp_path / 'excitation.json').read_text())] == ['a/b', 'a']


def test_default_classes_are_those_of_each_network():
    networks = [Analysis('all', gathered(seen=4)), Analysis('few', gathered(seen=2))]
    assert shown_classes(networks, None) == {'all': CLASSES[:4], 'few': CLASSES[:2]}
    pictures = draw(networks, shown_classes(networks, None), channels=4)
    assert pictures['few', 'spread'].caption.endswith('of few over the images of _x and of a$b$c.')
    assert [len(pictures[name, 'classes'].figure.legends[0].get_texts()) for name in ('all', 'few')] == [5, 3]


def test_a_network_leaves_out_classes_that_it_has_not_seen(tmp_path):
    networks = [Analysis('all', gathered(seen=4)), Analysis('few', gathered(seen=2)), Analysis('one', gathered(seen=1))]
    networks[1].remarks.append('The analysis was interrupted after 12 images.')
    write_analysis(networks, tmp_path, classes=['a$b$c', 'dog'], channels=4, remarks=['For all.'])
    page = page_of(tmp_path)
    assert re.findall('leave out the class (.*): (.*) has seen', page) == [
        ('dog', 'few'), ('a$b$c', 'one'), ('dog', 'one'),
    ]  # fmt: skip
    assert not (tmp_path / 'one_classes.png').exists() and (tmp_path / 'few_classes.png').exists()
    assert '<p class="remark">For all.</p>' in page
    of_few = page.partition('<h3>few</h3>')[2].partition('<h2>')[0]
    assert 'interrupted after 12 images.</p>' in of_few and 'were not judged' in of_few


@pytest.mark.parametrize(
    ('name', 'words'), [('never', 'class never has no images'), ('kitchen', 'class kitchen does not exist')]
)
def test_numbers_are_written_though_no_network_has_a_class(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        write_analysis([Analysis('a', gathered()), Analysis('b', gathered())], tmp_path, classes=['cat', name])
    assert {path.name for path in tmp_path.iterdir()} == {'a.npz', 'a.csv', 'b.npz', 'b.csv', 'excitation.json'}


def test_numbers_are_written_before_pictures(tmp_path, monkeypatch):
    def broken(*_):
        assert {path.name for path in tmp_path.iterdir()} == {'a.npz', 'a.csv', 'b.npz', 'b.csv', 'excitation.json'}
        raise MemoryError

    monkeypatch.setattr(excitation_page, 'draw_profile', broken)
    with pytest.raises(MemoryError):
        write_analysis([Analysis('a', gathered()), Analysis('b', gathered())], tmp_path)


def test_numbers_of_one_network(tmp_path):
    write_numbers(Analysis('x/y', gathered()), tmp_path / 'new')
    assert np.load(tmp_path / 'new' / 'x%2Fy.npz')['SE_2_1/count'][0] == 12
    assert (tmp_path / 'new' / 'x%2Fy.csv').read_text().startswith('name,path,')


def test_page_explains_verdicts(tmp_path):
    sizes = {'size of objects': ['small objects']}
    analysis = judged('net', gathered(extra=sizes, spread=True))
    write_analysis([analysis], tmp_path, channels=4, tolerance=0.25, specific=0.3, split='val')
    page = re.sub(r'\s+', ' ', re.sub('data:[^"]+', '', page_of(tmp_path)))
    for words in (
        'at most 0.25 points worse (<code>--tolerance 0.25</code>)',
        'explain at least 30 % beyond chance (<code>--specific 0.3</code>)',
        '<dt>undecided</dt>',
        '<dt>class-agnostic</dt>',
        'one layer alone',
        'Two idle layers together need not be idle',
        'holds for these images',
        '12 images of the val split',
        '32² square pixels of the original image',
        'the mean over the positions stands for these gates',
        'this and all later layers',
    ):
        assert words in page, words
    assert 'from here' not in page
    first, last = (
        re.findall(r'<td>(.*?) <small>', row) for row in re.findall(r'<tr><th>SE_2_[12]</th> <td>.*?</tr>', page)
    )
    assert first == ['0.00'] * 3 + ['+10.00'] * 3
    assert last == ['+1.00'] * 6  # after the last layer there are no later layers


def test_page_without_verdicts_explains_none(tmp_path):
    write_analysis([Analysis('net', gathered())], tmp_path, classes=[])
    page = page_of(tmp_path)
    assert 'leave out' not in page and 'Classes</h2>' not in page
    assert 'idle' not in page.partition('<body>')[2]
    assert '32²' not in page and 'no squeeze' not in page


def test_page_tells_numbers_of_images_apart(tmp_path):
    more = gathered()
    more.add({name: Gates(torch.rand(1, 8), None) for name in more.layers}, [(1,)])
    write_analysis([Analysis('a', more), Analysis('b', gathered())], tmp_path, classes=[])
    assert 'over 13 images (a) and 12 images (b).' in page_of(tmp_path)


def test_order_of_layers():
    assert in_depth_order([RESNET18, RESNET50]) == in_depth_order([RESNET50, RESNET18]) == RESNET50
    assert in_depth_order([['SE_2_1', 'SE_10_1', 'SE_3_12'], ['SE_3_2']]) == ['SE_2_1', 'SE_3_2', 'SE_3_12', 'SE_10_1']
    short, long = ['b.0', 'b.2', 'head'], ['b.0', 'b.1', 'b.2', 'b.3', 'head']
    assert in_depth_order([short, long]) == in_depth_order([long, short]) == long
    assert in_depth_order([['z.1', 'a.1'], ['x', 'b']]) == ['z.1', 'a.1', 'x', 'b']
    assert in_depth_order([['stem', 'SE_2_1', 'SE_2_3', 'neck'], ['SE_2_2']]) == [
        'stem', 'SE_2_1', 'SE_2_2', 'SE_2_3', 'neck',
    ]  # fmt: skip


def test_profile_of_two_depths():
    figure = draw_profile({'_18': gathered(RESNET18), '5$0$': gathered(RESNET50)})
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == RESNET50
    first, second = (line for line in axis.lines if line.get_marker() == 'o')
    assert [RESNET50[place] for place in first.get_xdata()] == RESNET18
    assert [RESNET50[place] for place in second.get_xdata()] == RESNET50
    assert drawn_labels(figure) == ['_18', '5$0$']


@pytest.mark.parametrize('activation', [torch.tanh, torch.relu, torch.sigmoid])
def test_everything_drawn_is_inside_the_axes(activation):
    statistics = gathered(activation=activation)
    for figure in (
        draw_classes(statistics, ['SE_2_1', 'SE_2_2'], CLASSES[:4], 8),
        draw_spread(statistics, ['SE_2_1', 'SE_2_2'], CLASSES[:2], 8),
        draw_profile({'net': statistics}),
    ):
        for axis in filter(lambda axis: axis.get_visible(), figure.axes):
            low, high = axis.get_ylim()
            heights = [line.get_ydata() for line in axis.lines]
            heights += [path.vertices[:, 1] for area in axis.collections for path in area.get_paths()]
            heights = np.concatenate(heights)
            assert low < np.nanmin(heights) and np.nanmax(heights) < high


def test_labels_are_shown_as_they_are():
    long = ', '.join(['great white shark'] * 6)
    statistics = GateStatistics({'class': ['_x', 'a$b$c', long, 'all images']})
    statistics.add({'se$1$': Gates(torch.rand(4, 8), None)}, [(1,), (2,), (3,), (4,)])
    figure = draw_classes(statistics, ['se$1$'], ['_x', 'a$b$c', long, 'all images'], 8)
    labels = drawn_labels(figure)
    assert [label.replace('\n', ' ') for label in labels] == ['_x', 'a$b$c', long, 'all images', 'all images']
    title = figure.axes[0].title
    assert title._preprocess_math(title.get_text()) == ('se$1$', False)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert drawn_labels(draw_spread(statistics, ['se$1$'], ['_x', 'a$b$c'], 8)) == ['_x', 'a$b$c']


def test_names_of_many_layers_do_not_overlap():
    names = [f'SE_4_{block}' for block in range(1, 51)]
    figure = draw_profile({'net': gathered(names)})
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:]))


def test_worth_says_which_layers_and_takes_intervals_without_an_end():
    analysis = judged('net', gathered())
    case = Case('SE_2_1', 'one', False)
    analysis.worth[case] = analysis.worth[case]._replace(low=-np.inf, high=np.inf)
    figure = draw_worth(analysis.worth, 'top-1 error', 'points')
    alone, onwards = figure.axes
    assert onwards.get_title() == 'gates of this and all later layers of the picture replaced'
    assert alone.get_ylim()[1] < 20
    assert drawn_labels(figure) == ['by one', 'by mean', 'by shuffled']
