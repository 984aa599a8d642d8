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
from scipy import optimize, stats
from torch import nn

from se_mm.analysis.excitation import Analysis, gather_gates, worth_study
from se_mm.analysis.gate_bank import BANK, Bank, Replacer
from se_mm.analysis.gate_profile import Share
from se_mm.analysis.gate_statistics import GateStatistics
from se_mm.analysis.gate_worth import Case, cases, judge
from se_mm.analysis.gates import Batch, GateRecorder, ReplacedGates, gate_layers
from se_mm.analysis.intervals import jackknife, left_out, paired_difference
from se_mm.analysis.scores import BoxAP, Boxes, TopOneError, Worth
from se_mm.evaluation.coco import coco_stats
from se_mm.models import SEResNet

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


class Wrong(TopOneError):
    """Of plain outputs and labels."""

    def keep(self, outputs):
        scores, labels = outputs
        return (scores.argmax(1) != labels).tolist()


def data(size=6, part=slice(None)):
    images = torch.randn(len(LABELS), 3, 32, 32, generator=torch.Generator().manual_seed(2))
    numbers = torch.arange(len(LABELS))[part].split(size)
    return [Batch((images[rows], LABELS[rows]), (LABELS[rows, None] + 1).tolist(), rows.tolist()) for rows in numbers]


def gathered(model, batches):
    """An analysis with statistics, and a bank."""
    paths = {layer.name: layer.path for layer in gate_layers(model)}
    analysis = Analysis('net', GateStatistics({'class': list('abcd')}, paths=paths))
    bank = Bank.drawn(range(len(LABELS)))
    gather_gates(analysis.statistics, model, batches, lambda inputs: model(inputs[0]), bank)
    return analysis, bank


def study_of(model, analysis, bank):
    return worth_study(analysis, model, lambda inputs: (model(inputs[0]), inputs[1]), Wrong(75.0), bank)


def results(model, size=6):
    """The score and the worth, and the statistics that they rest on."""
    analysis, bank = gathered(model, data(size))
    study = study_of(model, analysis, bank)
    study.run(data(size))
    analysis.take(study)
    return analysis


def error(model):
    return 100 * np.mean([(model(x).argmax(1) != y).float().mean() for (x, y), *_ in data()])


def test_replaced_gates_against_another_network():
    """The network without SE in one stage, and its error, found without hooks and without shared blocks."""
    model = Classifier(network())
    analysis = results(model)
    assert analysis.own == pytest.approx(error(model))
    plain = Classifier(network(with_se=(True, True, True, False)))
    plain.load_state_dict(model.state_dict(), strict=False)
    found = analysis.worth[Case('SE_5_1', 'one', True)]
    assert found.value == pytest.approx(error(plain.eval()))
    assert found.loss == pytest.approx(found.value - analysis.own)
    assert len(analysis.worth) == 8 * 3 + 7 * 3 and analysis.images == len(LABELS)


@torch.no_grad()
def test_mean_gates():
    """A fixed gate is the mean over the images of what the layer computes."""
    model = Classifier(network())
    analysis, bank = gathered(model, data())
    layer, (images, _) = gate_layers(model)[0], data()[0].inputs
    mean = torch.tensor(analysis.statistics.layers['SE_2_1'].mean[0])
    with GateRecorder(model) as recorder:
        for (x, _), *_ in data():
            model(x)
        gates = recorder.take()['SE_2_1'].mean
    torch.testing.assert_close(mean, gates.double().mean(0), rtol=1e-6, atol=1e-7)
    study, before = study_of(model, analysis, bank), model(images)
    with ReplacedGates({layer: study.replacer('SE_2_1', 'mean')}):
        outputs = model(images)
    model.backbone.layer1[0].se_layer.excite = lambda z: mean.to(z).expand_as(z)
    torch.testing.assert_close(outputs, model(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs, before)


def bank_of(gates, images):
    bank = Bank(images)
    bank.add({'SE_2_1': SimpleNamespace(mean=gates)}, images)
    return bank


def test_shuffled_gates_are_those_of_other_images():
    gates, numbers = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)), list(range(20, 30))
    replacer = Replacer({'SE_2_1': gates.mean(0)}, bank_of(gates, numbers))
    replacer.batch(numbers)
    given = replacer('SE_2_1', 'shuffled')(gates)
    places = [int((gates == row).all(1).nonzero()) for row in given]
    assert all(place != i for i, place in enumerate(places)) and len(set(places)) > 3
    wide = replacer('SE_2_1', 'shuffled')(gates[:, :, None, None].expand(-1, -1, 2, 2))
    assert torch.equal(wide, given[:, :, None, None].expand(-1, -1, 2, 2))
    replacer.batch(numbers[7:4:-1])  # other batches, in another order
    assert torch.equal(replacer('SE_2_1', 'shuffled')(gates[:3]), given[[7, 6, 5]])
    replacer.batch([1000, 1001])  # images that are not in the bank
    assert all((gates == row).all(1).any() for row in replacer('SE_2_1', 'shuffled')(gates[:2]))


def test_bank_is_drawn_from_all_images():
    images = sorted(Bank.drawn(range(10_000)).images)
    assert len(images) == BANK and images[BANK // 2] == pytest.approx(5000, abs=1000)
    assert Bank.drawn(range(10_000), seed=1).images != Bank.drawn(range(10_000)).images
    gates = torch.rand(4, 3)
    first, second = Bank([3, 5, 8]), Bank([3, 5, 8])
    first.add({'a': SimpleNamespace(mean=gates[:2])}, [8, 9])
    second.add({'a': SimpleNamespace(mean=gates[2:])}, [3, 4])
    first.merge([second])
    assert set(first.kept) == {3, 8}
    assert torch.equal(Replacer({'a': gates[0]}, first).banks['a'], gates[[2, 0]])  # in the order of the images


def test_evaluations_share_blocks():
    """Blocks before the first replaced gate run once a batch."""
    model = Classifier(network())
    runs = []

    def count(conv, name):
        usual = conv.forward
        conv.forward = lambda x: runs.append(name) or usual(x)  # what has hooks inside would be computed again

    count(model.backbone.layer1[0].conv1, 'first')
    count(model.backbone.layer4[1].conv1, 'last')
    study = study_of(model, *gathered(model, data()))
    runs.clear()
    study.run(data()[:1])
    assert runs.count('last') == 1 + len(cases(gate_layers(model)))
    assert runs.count('first') == 1 + 2 * 3  # alone and onwards, three replacements


def test_results_do_not_depend_on_processes_or_batches():
    model = Classifier(network())
    whole = results(model)
    analysis, bank = gathered(model, data())
    parts = [study_of(model, analysis, bank) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.run(data(4, slice(rank, None, 2)))
    parts[0].merge([part.state() for part in parts])
    analysis.take(parts[0])
    assert analysis.images == whole.images and analysis.own == pytest.approx(whole.own)
    assert analysis.worth.keys() == whole.worth.keys()
    for case, found in analysis.worth.items():
        assert found == pytest.approx(whole.worth[case])


def test_interrupted_study_keeps_images_that_are_done():
    model, evaluations = Classifier(network().train()), []
    analysis, bank = gathered(model, data())
    study = study_of(model, analysis, bank)
    number = len(cases(gate_layers(model)))

    def stop():
        evaluations.append(1)
        if len(evaluations) == 2 * (1 + number) + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(data(), stop)
    assert model.training and len(study.own) == 18
    study.merge([study.state()])
    analysis.take(study)
    assert analysis.images == 12 and analysis.own == pytest.approx(np.mean(study.own) * 100)
    assert len(analysis.worth) == number


def test_jackknife_of_a_mean():
    """With one image a group, the interval of a mean is Student's."""
    values = np.random.default_rng(0).normal(size=15)
    interval = stats.t.interval(0.95, 14, values.mean(), stats.sem(values))
    assert jackknife(values.mean(), np.array([values[part].mean() for part in left_out(15)])) == pytest.approx(interval)
    assert jackknife(0.0, np.zeros(1)) == (-np.inf, np.inf)


def test_jackknife_covers():
    """About 95 of 100 intervals hold the true mean."""
    generator, held, parts = np.random.default_rng(0), 0, left_out(200)
    for _ in range(400):
        values = generator.normal(size=200)
        low, high = jackknife(values.mean(), np.array([values[part].mean() for part in parts]))
        held += low < 0 < high
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(('gaining', 'losing', 'images'), [(0.005, 0.0, 1000), (0.01, 0.005, 300), (0.2, 0.1, 50)])
def test_paired_differences_cover(gaining, losing, images):
    """At least about 95 of 100 intervals hold the true difference, also where few images differ."""
    generator, held = np.random.default_rng(0), 0
    for gained, lost, _ in generator.multinomial(images, [gaining, losing, 1 - gaining - losing], size=1000):
        low, high = paired_difference(int(gained), int(lost), images)
        held += low <= gaining - losing <= high
    assert 0.935 < held / 1000


@pytest.mark.parametrize(('gained', 'lost', 'images'), [(12, 2, 50), (3, 0, 40), (0, 7, 30), (1, 1, 900)])
def test_paired_difference_by_likelihood(gained, lost, images):
    """At an end of the interval, the most likely model has a score of 1.96."""
    for end in paired_difference(gained, lost, images):

        def unlikely(losing, end=end):
            shares = np.array([losing + end, losing, 1 - 2 * losing - end])
            return -(np.array([gained, lost, images - gained - lost]) * np.log(shares + 1e-300)).sum()

        bounds = max(0.0, -end), (1 - end) / 2
        losing = optimize.minimize_scalar(unlikely, bounds=bounds, method='bounded', options=dict(xatol=1e-10)).x
        variance = images * (2 * losing + end - end**2)
        assert abs(gained - lost - images * end) / np.sqrt(variance) == pytest.approx(1.96, abs=0.005)


def test_no_difference():
    """Equal answers leave room for what so few images cannot show; all images may differ."""
    z = stats.norm.ppf(0.975)
    low, high = paired_difference(0, 0, 1000)
    assert high == pytest.approx(z**2 / (1000 + z**2)) and low == pytest.approx(-high)
    assert paired_difference(10, 0, 10)[1] == 1 and paired_difference(0, 10, 10)[0] == -1


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
    share, score = Share(value=0.3, by_chance=0.05), TopOneError(75.0)
    verdict = judge('a', worth, score, share, tolerance=0.5, specific=0.2)
    assert (verdict.role, verdict.classes) == (role, 'class-specific')
    assert judge('a', worth, score, share, tolerance=0.5, specific=0.27).classes == 'class-agnostic'
    assert judge('a', worth, score, None, tolerance=0.5, specific=0.3).classes is None
    assert f'{one[0]:.2f} points worse (95 %: {one[1]:+.2f} to {one[2]:+.2f})' in verdict.reason


def test_top_one_error():
    samples = [
        SimpleNamespace(gt_label=torch.tensor([label]), pred_label=torch.tensor([answer]))
        for label, answer in ((1, 1), (2, 0), (3, 3), (0, 1))
    ]
    score = TopOneError(chance=60.0)
    kept = score.keep(samples)
    assert kept == [False, True, False, True] and score.value(kept) == 50
    found = score.worth([True, True, True, True], kept)
    assert found[:2] == (100, 50) and found[2:] == pytest.approx([100 * end for end in paired_difference(2, 0, 4)])
    assert score.is_chance(60.0) and not score.is_chance(59.0)


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
    assert score.value(kept) == pytest.approx(100 * whole)
    worse = [Boxes(boxes.image_id, boxes.found[1:]) for boxes in kept]
    found, losses = score.worth(worse, kept), []
    by_image = np.argsort([boxes.image_id for boxes in kept])
    for part in [np.arange(len(kept)), *left_out(len(kept))]:
        own, other = (_ap(annotations, score, [boxes[i] for i in by_image[part]]) for boxes in (kept, worse))
        losses.append(own - other)
    assert found.loss == pytest.approx(losses[0]) and found.loss > 1
    low, high = jackknife(losses[0], np.array(losses[1:]))
    unseen = 100 * np.mean([3 / sum(item['category_id'] == c for item in content['annotations']) for c in (1, 2, 3)])
    assert found.low == pytest.approx(min(low, losses[0] - unseen))
    assert found.high == pytest.approx(max(high, losses[0] + unseen))
    turned = [boxes[::-1] for boxes in (worse, kept)]
    assert score.worth(*turned) == pytest.approx(found)  # several processes gather images in another order
    assert score.worth(kept, kept)[1:] == pytest.approx((0, -unseen, unseen))
    assert score.value([Boxes(boxes.image_id, np.zeros((0, 6))) for boxes in kept]) == 0


def _ap(annotations, score, kept):
    """By COCO's own evaluation."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes([p for boxes in kept for p in score._predictions(boxes)]), 'bbox')
        evaluation.params.imgIds = [boxes.image_id for boxes in kept]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]
