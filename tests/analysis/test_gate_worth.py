"""What gates are worth: evaluations with other gates against plain ones."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from torch import nn

from se_mm.analysis.excitation import Analysis, measure_gates, study_worth
from se_mm.analysis.gate_worth import Bank, Case, Replacer, Resumable, Worth, WorthStudy, cases, jackknife, judge
from se_mm.analysis.gates import GateRecorder, gate_layers
from se_mm.analysis.scores import BoxAP, Boxes, TopOneError
from se_mm.evaluation.coco import coco_stats
from se_mm.models import SEBNInception, SEResNet, SEResNetCIFAR, SEShuffleNet

LABELS = torch.tensor([0, 1, 2, 3] * 6)


def network(**options):
    torch.manual_seed(0)
    options = dict(base_channels=16, se_ratio=4, zero_init_residual=False) | options
    model = SEResNet(18, **options)
    model.init_weights()
    return model.eval()


class Classifier(nn.Module):
    """A backbone and a classifier that was not trained, but whose answers depend on the image."""

    def __init__(self, backbone):
        super().__init__()
        torch.manual_seed(1)
        self.backbone, self.head = backbone, nn.Linear(128, 4)

    def forward(self, x):
        return self.head(self.backbone(x)[-1].mean((2, 3)))


class Wrong:
    """Share of images whose highest output is not their label."""

    name, unit, sign = 'error', 'points', 1

    def keep(self, outputs):
        scores, labels = outputs
        return (scores.argmax(1) != labels).tolist()

    def value(self, kept, images):
        return float(100 * np.asarray(kept)[images].mean())

    def finest(self, kept):
        return 300 / len(kept)


def data(size=6):
    images = torch.randn(len(LABELS), 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return list(zip(images.split(size), LABELS.split(size)))


def results(model, size=6, **options):
    """The score and the worth, and the statistics that they rest on."""
    bank = Bank()
    analysis = Analysis('net', measure_gates(model, data(size), groupings={'class': list('abcd')}, bank=bank))
    study_worth(analysis, model, data(size), lambda batch: (model(batch[0]), batch[1]), Wrong(), bank)
    return analysis


@pytest.mark.parametrize(
    'backbone',
    [
        network,
        lambda: network(out_indices=(1, 3)),
        lambda: network(out_indices=(0, 2), se_position='post'),
        lambda: SEResNetCIFAR('resnet20', se_ratio=4).eval(),
        lambda: SEShuffleNet().eval(),
        lambda: SEBNInception().eval(),
    ],
)
@torch.no_grad()
def test_going_on_from_a_block(backbone):
    model, x = backbone(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, resumable = model(x), Resumable(model)
    whole = resumable.run(x)
    assert len(resumable.blocks) > 3
    for block in range(len(resumable.blocks)):
        for mine, own, own_again in zip(resumable.run_from(block), whole, expected):
            assert torch.equal(mine, own) and torch.equal(own, own_again)
    with GateRecorder(model) as recorder:
        model(x)
    ran = recorder.take()
    assert all((resumable.place(layer) is not None) == (layer.name in ran) for layer in recorder.layers)


def test_replaced_gates_against_another_network():
    """The network without SE in one stage, and its error, found without hooks and without shared blocks."""
    model = Classifier(network())
    analysis = results(model)
    assert analysis.own == pytest.approx(100 * np.mean([(model(x).argmax(1) != y).float().mean() for x, y in data()]))
    plain = Classifier(network(with_se=(True, True, True, False)))
    plain.load_state_dict(model.state_dict(), strict=False)
    error = 100 * np.mean([(plain.eval()(x).argmax(1) != y).float().mean() for x, y in data()])
    assert analysis.worth[Case('SE_5_1', 'one', True)].value == pytest.approx(error)
    assert analysis.worth[Case('SE_5_1', 'one', True)].loss == pytest.approx(error - analysis.own)
    assert len(analysis.worth) == 8 * 3 + 7 * 3 and analysis.images == len(LABELS)


@torch.no_grad()
def test_mean_gates():
    """A fixed gate is the mean over the images of what the layer computes."""
    model, outputs = Classifier(network()), []
    statistics = measure_gates(model, data())
    gates = torch.cat([_gates_of_first_layer(model, x) for x, _ in data()])
    mean = torch.tensor(statistics.layers['SE_2_1'].mean[0])
    torch.testing.assert_close(mean, gates.double().mean(0), rtol=1e-6, atol=1e-7)
    study = WorthStudy(
        model,
        gate_layers(model),
        lambda batch: (outputs.append(model(batch[0])) or outputs[-1], batch[1]),
        Wrong(),
        Replacer({'SE_2_1': mean}, _bank(gates)),
        ['mean'],
    )
    study.replacer.means.update({layer.name: mean for layer in study.layers})
    study.cases = [Case('SE_2_1', 'mean', False)]
    study.kept = {study.cases[0]: []}
    study.add(data()[0])
    block = model.backbone.layer1[0]
    block.se_layer.excite = lambda z: mean.to(z).expand_as(z)
    torch.testing.assert_close(outputs[1], model(data()[0][0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[1])


def _gates_of_first_layer(model, x):
    found = []
    handle = gate_layers(model)[0].source.register_forward_hook(lambda module, arguments, output: found.append(output))
    model(x)
    handle.remove()
    return found[0]


def _bank(gates):
    bank = Bank()
    bank.parts['SE_2_1'] = [gates]
    return bank


def test_shuffled_gates_are_those_of_other_images():
    gates = torch.rand(10, 3)
    replacer = Replacer({'SE_2_1': gates.mean(0)}, _bank(gates))
    seen = []
    for first in (0, 4, 8):
        replacer.batch(first)
        output = gates[first : first + 4]
        given = replacer('SE_2_1', 'shuffled')(output)
        assert given.shape == output.shape
        places = [int((gates == row).all(1).nonzero()) for row in given]
        assert all(place != first + i for i, place in enumerate(places))
        assert torch.equal(given, replacer('SE_2_1', 'shuffled')(output))  # of the study's seed
        wide = replacer('SE_2_1', 'shuffled')(output[:, :, None, None].expand(-1, -1, 2, 2))
        assert torch.equal(wide, given[:, :, None, None].expand(-1, -1, 2, 2))
        seen += places
    assert len(set(seen)) > 3


def test_evaluations_share_blocks():
    """Blocks before the first replaced gate run once a batch."""
    model = Classifier(network())
    runs = []
    model.backbone.layer1[0].register_forward_hook(lambda *_: runs.append('first'))
    model.backbone.layer4[1].register_forward_hook(lambda *_: runs.append('last'))
    bank = Bank()
    analysis = Analysis('net', measure_gates(model, data(), bank=bank))
    runs.clear()
    study_worth(analysis, model, data()[:1], lambda batch: (model(batch[0]), batch[1]), Wrong(), bank)
    number = len(cases(gate_layers(model)))
    assert (
        runs.count('last') == 1 + number and runs.count('first') == 1 + 2 * 3
    )  # alone and onwards, three replacements


def test_two_processes_put_results_together():
    model = Classifier(network())
    whole = results(model)
    bank = Bank()
    analysis = Analysis('net', measure_gates(model, data(), bank=bank))
    states = []
    step = lambda batch: (model(batch[0]), batch[1])  # noqa: E731
    study_worth(analysis, model, data()[:2], step, Wrong(), bank, gather=lambda state: states.append(state) or [state])
    study_worth(analysis, model, data()[2:], step, Wrong(), bank, gather=lambda state: [*states, state])
    assert analysis.images == whole.images and analysis.own == pytest.approx(whole.own)
    case = Case('SE_3_1', 'mean', True)
    assert analysis.worth[case] == pytest.approx(whole.worth[case])


def test_jackknife_of_a_mean():
    """With one image a group, the interval of a mean is Student's."""
    values = np.random.default_rng(0).normal(size=15)
    interval = stats.t.interval(0.95, 14, values.mean(), stats.sem(values))
    assert jackknife(lambda images: values[images].mean(), 15) == pytest.approx(interval)
    assert jackknife(lambda images: values[images].mean(), 1) == (-np.inf, np.inf)


def test_jackknife_covers():
    """About 95 of 100 intervals hold the true mean."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        values = generator.normal(size=200)
        low, high = jackknife(lambda images, values=values: values[images].mean(), 200)
        held += low < 0 < high
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(
    ('one', 'mean', 'role'),
    [
        ((0.1, -0.2, 0.4), (0.0, -0.1, 0.1), 'idle'),
        ((9.0, 7.0, 11.0), (0.1, -0.2, 0.4), 'static'),
        ((9.0, 7.0, 11.0), (2.0, 1.0, 3.0), 'works'),
        ((9.0, 7.0, 11.0), (0.4, -0.2, 1.0), 'undecided'),
    ],
)
def test_verdicts(one, mean, role):
    worth = {Case('a', 'one', False): Worth(0, *one), Case('a', 'mean', False): Worth(0, *mean)}
    share = SimpleNamespace(value=0.3, by_chance=0.05)
    verdict = judge('a', worth, TopOneError(4), share, tolerance=0.5, specific=0.2)
    assert (verdict.role, verdict.classes) == (role, 'class-specific')
    assert judge('a', worth, TopOneError(4), share, tolerance=0.5, specific=0.3).classes == 'class-agnostic'
    assert judge('a', worth, TopOneError(4), None, tolerance=0.5, specific=0.3).classes is None
    few = judge('a', worth, TopOneError(4), share, 300 / 500, tolerance=0.5, specific=0.2)
    assert few.role == ('works' if role == 'works' else 'undecided')  # 500 images cannot show half a point
    assert f'{one[0]:.2f} points worse (95 %: {one[1]:+.2f} to {one[2]:+.2f})' in verdict.reason


def test_top_one_error():
    samples = [
        SimpleNamespace(gt_label=torch.tensor([label]), pred_label=torch.tensor([answer]))
        for label, answer in ((1, 1), (2, 0), (3, 3), (0, 1))
    ]
    score = TopOneError(4)
    kept = score.keep(samples)
    assert score.value(kept, np.arange(4)) == 50 and score.value(kept, np.array([0, 2])) == 0
    assert score.finest(kept) == 75 and score.is_chance(75.0) and not score.is_chance(74.0)


def test_box_ap(shapes, tmp_path):
    """AP of all images and of some, against COCO's own evaluation of those images."""
    annotations = shapes / 'annotations' / 'val.json'
    content = json.loads(annotations.read_text())
    generator, kept = np.random.default_rng(0), []
    for image in content['images'][::-1]:
        found = []
        for item in content['annotations']:
            if item['image_id'] == image['id'] and generator.random() < 0.8:
                x, y, w, h = item['bbox'] + generator.normal(0, 3, 4)
                found.append([x, y, x + w, y + h, generator.random(), item['category_id'] - 1])
        kept.append(Boxes(image['id'], np.array(found, dtype=np.float32).reshape(-1, 6)))
    score = BoxAP(str(annotations), [1, 2, 3])
    predictions = [prediction for boxes in kept for prediction in score._predictions(boxes)]
    (tmp_path / 'found.json').write_text(json.dumps(predictions))
    whole = coco_stats(str(annotations), str(tmp_path / 'found.json'))['AP']
    assert 0.05 < whole < 0.95
    assert score.finest(kept) == pytest.approx(300 / len(content['annotations']))
    assert score.value(kept, np.arange(len(kept))) == pytest.approx(100 * whole)
    for part in ([0, 1, 5], [2, 3, 4, 6, 7]):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations))
            evaluation = COCOeval(truth, truth.loadRes(predictions), 'bbox')
            evaluation.params.imgIds = [kept[place].image_id for place in part]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert score.value(kept, np.array(part)) == pytest.approx(100 * evaluation.stats[0])
    assert score.value([Boxes(boxes.image_id, np.zeros((0, 6))) for boxes in kept], np.arange(len(kept))) == 0
