import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss
from torch.testing import assert_close

pytestmark = pytest.mark.usefixtures('stand_in')


def scores(number=20, classes=5):
    """Logits, some of them extreme, and targets with the background."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(number, classes, generator=generator) * 3
    logits[:2] = torch.tensor([200.0, -200, 50, -50, 0])
    return logits, torch.randint(classes + 1, (number,), generator=generator)


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6)])
def test_sigmoid_focal_loss_is_torchvisions(gamma, alpha, reduction):
    logits, target = scores()
    expected = torchvision.ops.sigmoid_focal_loss(logits[2:], F.one_hot(target[2:], 6)[:, :5].float(), alpha, gamma)
    result = sigmoid_focal_loss(logits[2:], target[2:], gamma, alpha, None, reduction)
    reduced = dict(none=expected, mean=expected.sum() / 18, sum=expected.sum())[reduction]
    assert_close(result, reduced, rtol=1e-4, atol=1e-5)  # mmcv's float32 logarithm of 1 - p


def test_softmax_focal_loss_is_a_weighted_cross_entropy():
    logits, target = scores()
    target = target.clamp(max=4)
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    expected = 0.25 * (1 - p) ** 2 * F.cross_entropy(logits, target, reduction='none')
    result = softmax_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    assert_close(result[2:], expected[2:])
    target[3] = -1
    result = softmax_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    assert result[3] == 0
    assert_close(result[4:], expected[4:])


@pytest.mark.parametrize('loss', [sigmoid_focal_loss, softmax_focal_loss])
@pytest.mark.parametrize('weighted', [False, True])
def test_gradients_and_class_weights(loss, weighted):
    logits, target = scores()
    logits, target = logits[2:].double().requires_grad_(), target[2:].clamp(max=4)
    weight = torch.arange(1, 6).double() if weighted else None
    assert torch.autograd.gradcheck(lambda x: loss(x, target, 1.5, 0.3, weight, 'sum'), logits)
    plain = loss(logits, target, 1.5, 0.3, None, 'none')
    factors = weight[target] if weighted else 1
    assert_close(loss(logits, target, 1.5, 0.3, weight, 'none'), (plain.T * factors).T)


@pytest.mark.parametrize('loss', [sigmoid_focal_loss, softmax_focal_loss])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('number', [0, 1, 20])
def test_extreme_and_no_scores_give_finite_losses_and_gradients(loss, dtype, number):
    logits, target = scores()
    logits = logits[:number].to(dtype).requires_grad_()
    result = loss(logits, target[:number].clamp(max=4), 2.0, 0.25, None, 'sum')
    result.backward()
    assert result.isfinite() and logits.grad.isfinite().all()
