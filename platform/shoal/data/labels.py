"""How the label column becomes targets, and weights those of the samples, as fitted on the training rows."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from shoal.data.cells import Reading
from shoal.data.values import as_classes, as_numbers, read_cells
from shoal.errors import DataError


class Label(BaseModel):
    """How the label column becomes targets: class numbers, or standardized values.

    Attributes:
        counts: training rows of each class.
        reading: how text becomes numbers, where the label of a regression was text in training.
        unlabelled: splits of the training data whose rows have no label; they are left out.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    classes: tuple[bool | int | str, ...] = ()
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    reading: Reading | None = None
    unlabelled: tuple[str, ...] = ()

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Return [rows] int64 class numbers or float32 standardized values.

        Raises:
            DataError: a value is missing, or is a class that the training data do not have.
        """
        values = values.reshape(len(values))
        if not self.classes:
            numbers = read_cells(values, self.reading) if self.reading else as_numbers(values)
            unread = np.flatnonzero(np.isnan(numbers))
            if len(unread):
                raise DataError(
                    f"label column '{self.name}' holds {values[unread[0]]!r}, which is no number, in "
                    f"{len(unread)} rows: every row needs a label; fix or drop these rows"
                )
            return ((numbers - self.mean) / self.std).astype(np.float32)
        numbers_of = {name: number for number, name in enumerate(self.classes)}
        plain = as_classes(values)
        unknown = next((value for value in plain if value not in numbers_of), None)
        if unknown is not None:
            raise DataError(
                f"label column '{self.name}' holds {unknown!r}, which is not among the {len(self.classes)} classes "
                f"of the model ({', '.join(map(str, self.classes[:10]))}): drop these rows, or train with them"
            )
        return np.fromiter((numbers_of[value] for value in plain), np.int64, len(plain))

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """Turn class numbers [rows] or standardized values [rows] back into labels."""
        if self.classes:
            return np.asarray(np.asarray(self.classes)[outputs])
        return outputs.astype(np.float64) * self.std + self.mean


class Weight(BaseModel):
    """The column of the samples' weights, and their mean over the training rows, by which they are divided."""

    model_config = ConfigDict(frozen=True)
    name: str
    mean: float
