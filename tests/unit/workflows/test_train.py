"""What a training tells whoever shows its progress."""

import pytest

from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import Journal
from shoal.tracking.status import TrainStatus
from shoal.workflows.train import _Watcher


@pytest.mark.parametrize("resumes_at", [0, 3])
def test_a_run_resumes_where_its_checkpoint_is_and_not_where_its_journal_ended(
    tmp_path, resumes_at: int
) -> None:
    folder = RunFolder(str(tmp_path))
    heard: list[TrainStatus] = []

    def train(attempt: int, steps: range) -> None:
        journal = Journal(folder, attempt)
        for step in steps:
            journal.log(step, {"train/loss": 1.0})
        journal.sync()

    train(1, range(1, 8))
    with _Watcher(folder, 20, 5, resumes_at, heard.append, lambda: None):
        assert (heard[0].step, heard[0].is_training) == (resumes_at, False)
        train(2, range(resumes_at + 1, 12))
    assert (heard[-1].step, heard[-1].is_training) == (11, True)
