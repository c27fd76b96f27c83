import pytest

from shoal.runs.config import RunConfig
from shoal.storage.run_folder import RunFolder
from shoal.workflows.tune.trial_progress import TrialProgress


@pytest.mark.parametrize(
    ("checkpoints", "counts"),
    [
        ([None, None, None], [1, 2, 3]),
        ([100, 100, 100], [1, 2, 3]),
        ([100, 200, 300], [1, 1, 1]),
        ([None, 50, 50, 80], [1, 1, 2, 1]),
        ([200, None, 200], [1, 2, 3]),  # once the store was away
    ],
)
def test_losses_count_until_there_is_a_later_checkpoint(tmp_path, checkpoints, counts):
    progress = TrialProgress(RunConfig(), RunFolder(str(tmp_path)))
    found = []
    for step in checkpoints:
        progress.lose_process(step)
        found.append(progress.times_lost)
    assert found == counts


def test_a_checkpoint_from_before_the_last_evaluation_is_no_progress(tmp_path):
    """A trial that dies at step 300 each time gets no further, wherever its checkpoints are."""
    progress = TrialProgress(RunConfig(), RunFolder(str(tmp_path)))
    progress.add_value(290, 1.0)
    progress.lose_process(250)
    progress.lose_process(280)
    assert progress.times_lost == 2
