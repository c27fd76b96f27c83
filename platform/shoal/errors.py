"""The error tree, with an exit code for each class. Independent of how errors are printed.

Every class is picklable (it crosses process boundaries on a cluster) and is also the standard-library
error a caller would expect to catch.
"""

import difflib
from collections.abc import Iterable, Sequence


class ShoalError(Exception):
    """Base of everything Shoal raises on purpose."""

    exit_code = 1


class UserError(ShoalError, ValueError):
    """The input is wrong: the message has the value, the rule and the remedy."""

    exit_code = 2


class ConfigError(UserError):
    """A config key or value that cannot be used."""


class DataError(UserError):
    """A data source that cannot be trained on."""


class ModelError(UserError):
    """A model that cannot be built, found or loaded."""


class CheckpointError(UserError):
    """A checkpoint that is corrupt or does not fit the run."""


class StorageError(UserError, OSError):
    """A folder that cannot be read, written or shared."""


class DamagedFileError(StorageError):
    """A file of a run folder that is empty, truncated or holds something else."""


class DivergedError(ShoalError, ArithmeticError):
    """The training loss stopped being a finite number.

    Attributes:
        step: the first whose loss is not finite, counted from 1.
        rank, host: of the worker whose samples have that loss; None: no worker alone.
        samples: numbers of its rows in the batch, among the training rows; of all workers where none stands out.
        losses: of the last steps, summed over all workers, as hexadecimal digits of their bits.
    """

    def __init__(
        self,
        message: str,
        step: int | None = None,
        rank: int | None = None,
        host: str | None = None,
        samples: Sequence[int] = (),
        losses: Sequence[str] = (),
    ) -> None:
        super().__init__(message, step, rank, host, samples, losses)  # all of them, so that it can be pickled
        self.message, self.step, self.rank, self.host = message, step, rank, host
        self.samples, self.losses = list(samples), list(losses)

    def __str__(self) -> str:
        return self.message


class TrainingError(ShoalError, RuntimeError):
    """The training itself failed: user code raised, or workers were lost too often."""


class WeightsDifferError(TrainingError):
    """The weights are not the same on all workers.

    Attributes:
        rank, host: of the worker whose weights differ from those of the others; None: none stands out.
    """

    def __init__(self, message: str, rank: int | None = None, host: str | None = None) -> None:
        super().__init__(message, rank, host)  # all of them, so that it can be pickled
        self.message, self.rank, self.host = message, rank, host

    def __str__(self) -> str:
        return self.message


class ClusterError(ShoalError, RuntimeError):
    """A check of the cluster found what a training would fail of."""


class LeaseLostError(ShoalError):
    """A later attempt works on the run folder: this one may not write any more. No retry and no other folder helps."""

    exit_code = 2


class VerificationError(ShoalError, RuntimeError):
    """A saved model did not reproduce the metric of the model that was trained."""


class Interrupted(ShoalError, KeyboardInterrupt):
    """The run was asked to stop (SIGINT or SIGTERM) and did, after a checkpoint."""

    exit_code = 130


def value_and_remedy(error: ShoalError) -> tuple[str, str]:
    """Return what an error says of the input, and what to do: messages end with ": " and the remedy."""
    value, _, remedy = str(error).rpartition(": ")
    return value, remedy


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a " (did you mean 'x'?)" for the closest known word, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
