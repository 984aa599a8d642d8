"""Which process is named when processes wait for each other."""

import pytest

from se_mm.engine.hanging import AFTER, BEFORE, GRADIENTS, METRICS, VALIDATION, NameHangingHook, Progress
from se_mm.utils import InputError

LONG, SHORT = 100.0, 1.0


def progress(place, seconds=LONG):
    return Progress(list(place), 'doing something', seconds, 'machine')


def named(own, other):
    return 'process 1 (on machine) hangs' in NameHangingHook(timeout=50)._fault({1: other}, 0, own)


@pytest.mark.parametrize(
    ('behind', 'ahead'),
    [
        ((3, BEFORE, 0), (3, GRADIENTS, 0)),
        ((3, AFTER, 0), (4, BEFORE, 0)),
        ((4, VALIDATION, 2), (4, VALIDATION, 3)),
        ((4, VALIDATION, 2), (4, METRICS, 0)),
        ((4, METRICS, 0), (4, GRADIENTS, 0)),  # saves the best checkpoint, while the others train on
        ((3, AFTER, 0), (4, VALIDATION, 0)),
    ],
)
def test_the_process_behind_is_named(behind, ahead):
    assert named(progress(ahead), progress(behind))
    assert not named(progress(behind), progress(ahead))
    assert not named(progress(ahead), progress(behind, SHORT))  # moves
    assert not named(progress(ahead, SHORT), progress(behind))  # does not wait yet


def test_processes_at_the_same_place_wait_for_something_else():
    assert not named(progress((4, METRICS, 0)), progress((4, METRICS, 0)))


def test_a_timeout_is_above_0():
    with pytest.raises(InputError, match='timeout=0 has to be above 0'):
        NameHangingHook(timeout=0)
