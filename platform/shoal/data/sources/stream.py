"""An IterableDataset becomes rows: it is read once, in its own order, into memory.

Rows that have no numbers cannot be read in another order, by another process or from the middle on; in memory they can.
"""

import copy
import logging
from typing import Any

from shoal.data.how_far import HowFar
from shoal.data.random_state import seeded
from shoal.data.sources import base
from shoal.data.sources.items import DATA_SEED, nbytes_of_item
from shoal.errors import DataError, UserError

logger = logging.getLogger(__name__)

MOST_ROWS = 10_000_000


def is_stream(value: Any) -> bool:
    """Whether a value is torch's IterableDataset."""
    bases = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__}
    return "torch.utils.data.dataset.IterableDataset" in bases


def read_stream(uri: str, stream: Any) -> list[Any]:
    """Return all items.

    Raises:
        UserError: the iteration raises.
        DataError: it does not end within the memory that one process may hold.
    """
    items: list[Any] = []
    nbytes, how_far = 0, HowFar(logger)
    with seeded(DATA_SEED):
        try:
            for item in stream:
                items.append(copy.deepcopy(item))  # the data set may fill the same array again
                nbytes += nbytes_of_item(uri, len(items) - 1, item)
                if nbytes > base.IN_DRIVER_BYTES or len(items) > MOST_ROWS:
                    break
                how_far("data.source='%s': %d rows read, %.0f MB", uri, len(items), nbytes / 1e6)
            else:
                return items
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"data.source='{uri}': the iteration raised {type(error).__name__} after {len(items)} items: {error}: "
                "fix __iter__ (SHOAL_TRACEBACK=1 shows where)"
            ) from error
    raise DataError(
        f"data.source='{uri}' is an IterableDataset that has not ended after {len(items)} rows ({nbytes >> 20} MiB; at "
        f"most {base.IN_DRIVER_BYTES >> 20} MiB are read): its rows have no numbers, by which they could be read in "
        "another order or from the middle on; return a Dataset with __len__ and __getitem__, a Ray Dataset or files, "
        "or end the iteration, e.g. by list(itertools.islice(dataset, 100_000))"
    )
