import errno
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.runner import save_checkpoint

from se_mm.engine.whole_files import WholeFileBackend
from se_mm.engine.work_dirs import latest_checkpoint, lock_work_dir
from se_mm.utils import InputError

HOLDER = (
    'import sys, time\nfrom se_mm.engine.work_dirs import lock_work_dir\n'
    "lock = lock_work_dir(sys.argv[1])\nprint('locked', flush=True)\ntime.sleep(600)"
)


def checkpoint(epoch):
    return dict(state_dict=dict(w=torch.full((64, 64), float(epoch))), meta={}, message_hub={}, optimizer={})


@pytest.fixture
def work(tmp_path):
    """Three epochs; the last was written last."""
    folder = tmp_path / 'work'
    for epoch in (1, 2, 3):
        path = folder / f'epoch_{epoch}.pth'
        save_checkpoint(checkpoint(epoch), str(path))
        os.utime(path, (epoch, epoch))
    save_checkpoint(checkpoint(9), str(folder / 'best_top1_epoch_1.pth'))
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_3.pth'))
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def name_of(path):
    return path and Path(path).name


class TestLatestCheckpoint:
    def test_it_is_the_one_that_was_named(self, work):
        (work / 'last_checkpoint').write_text(str(work / 'epoch_2.pth'))
        assert name_of(latest_checkpoint(work)) == 'epoch_2.pth'

    @pytest.mark.parametrize('pointer', [None, '', '\0\xff', '/gone/epoch_3.pth', 'no.pth'])
    def test_a_lost_pointer_costs_nothing(self, work, pointer):
        (work / 'last_checkpoint').unlink()
        if pointer is not None:
            (work / 'last_checkpoint').write_text(pointer)
        assert name_of(latest_checkpoint(work)) == 'epoch_3.pth'

    def test_a_folder_that_was_moved(self, work, tmp_path):
        (work / 'last_checkpoint').write_text(str(work / 'epoch_2.pth'))
        work.rename(tmp_path / 'moved')
        assert latest_checkpoint(tmp_path / 'moved') == str(tmp_path / 'moved' / 'epoch_2.pth')

    def test_broken_files_are_passed_over(self, work):
        cut(work / 'epoch_3.pth')
        torch.save(dict(w=torch.zeros(1)), work / 'epoch_2.pth')  # weights alone
        assert name_of(latest_checkpoint(work)) == 'epoch_1.pth'
        (work / 'epoch_1.pth').write_bytes(b'')
        with pytest.raises(InputError, match=r'none of the 3 checkpoints in .*work can be resumed: name another file'):
            latest_checkpoint(work)

    def test_nothing_there(self, tmp_path):
        assert latest_checkpoint(tmp_path / 'none') is None


class TestLock:
    def test_a_second_training_is_refused_until_the_first_is_gone(self, start, tmp_path):
        holder = start(sys.executable, '-c', HOLDER, tmp_path / 'work')
        assert holder.stdout.readline() == 'locked\n'
        with pytest.raises(InputError, match='work: another training writes there: wait until it ends, or give'):
            lock_work_dir(tmp_path / 'work')
        holder.kill()
        holder.wait()
        lock_work_dir(tmp_path / 'work').release()

    def test_a_file_where_the_folder_should_be(self, tmp_path):
        (tmp_path / 'work').write_text('')
        with pytest.raises(InputError, match='work_dir .*work cannot be written .*--work-dir FOLDER'):
            lock_work_dir(tmp_path / 'work')


class TestWholeFiles:
    def test_mmengine_writes_with_it(self, work):
        """A reader that has mapped the old file goes on with the old numbers."""
        path = work / 'epoch_1.pth'
        assert isinstance(get_file_backend(path), WholeFileBackend)
        old = torch.load(path, mmap=True)['state_dict']['w']
        save_checkpoint(checkpoint(5), str(path))
        assert (old == 1).all() and (torch.load(path)['state_dict']['w'] == 5).all()
        assert {p.name for p in work.iterdir() if p.name.startswith('.')} == set()

    def test_a_full_disk_leaves_the_old_file(self, run, work):
        """A limit on the size of files stands in for the disk."""
        script = (
            'import resource, signal, sys, torch\nfrom mmengine.runner import save_checkpoint\n'
            'import se_mm.engine.whole_files\n'
            'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n'
            'try:\n    save_checkpoint(dict(w=torch.zeros(9999)), sys.argv[1])\n'
            'except OSError as error:\n    sys.exit(error.errno)'
        )
        code, output = run(sys.executable, '-c', script, work / 'epoch_1.pth')
        assert code == errno.EFBIG, output
        assert (torch.load(work / 'epoch_1.pth')['state_dict']['w'] == 1).all()
        assert {p.name for p in work.iterdir() if p.name.startswith('.')} == set()

    def test_a_process_that_is_killed_leaves_the_old_file(self, start, work):
        script = (
            'import sys, torch\nfrom mmengine.runner import save_checkpoint\nimport se_mm.engine.whole_files\n'
            "content = dict(w=torch.zeros(20_000_000))\nprint('ready', flush=True)\n"
            'while True:\n    save_checkpoint(content, sys.argv[1])'
        )
        path = work / 'epoch_1.pth'
        for wait in (0.05, 0.2, 0.35):
            writer = start(sys.executable, '-c', script, path)
            assert writer.stdout.readline() == 'ready\n'
            time.sleep(wait)
            writer.kill()
            writer.wait()
            assert torch.load(path)  # whole, old or new
