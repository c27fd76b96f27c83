"""Reads `sklearn:NAME`: the data sets that come with scikit-learn."""

from collections.abc import Iterator

from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sources.arrow import to_array
from shoal.data.sources.base import Block, Part, Source
from shoal.errors import DataError, nearest

BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes", "linnerud")


def open_sklearn(uri: str, name: str, _: ReadOptions = DETECTED) -> Source:
    if name not in BUNDLED:
        raise DataError(
            f"data.source='{uri}': '{name}' does not come with scikit-learn{nearest(name, BUNDLED)}: "
            f"bundled are {', '.join(BUNDLED)}"
        )

    def read() -> Iterator[Block]:
        from sklearn import datasets

        frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
        yield {str(column): to_array(frame[column]) for column in frame.columns}

    return Source(uri, "sklearn", (Part(read),), nbytes=1 << 20)
