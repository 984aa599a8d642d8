import json
import sys

from conftest import ROOT

SCRIPT = ROOT / '.dev_scripts' / 'kill_trainings.py'


def test_killed_trainings_end_with_the_weights_of_an_uninterrupted_one(run, tmp_path):
    code, output = run(sys.executable, SCRIPT, '--json', 'kills.json', CUDA_VISIBLE_DEVICES='', timeout=500)
    assert code == 0, output
    rows = json.loads((tmp_path / 'kills.json').read_text())
    assert len(rows) == 6 and all(row['was_killed'] and row['tensors'] > 100 for row in rows)
    assert {row['resumed_after_step'] for row in rows} >= {0, 2, 4, 6}
