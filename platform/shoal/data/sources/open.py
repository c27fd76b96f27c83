"""A `data.source` URI becomes a Source: blocks of rows read in this process, in a fixed order.

To add a source: a module with a function (uri, location, options) -> Source, and a line in `READERS`.
"""

import os
from collections.abc import Callable
from functools import partial

from shoal.config.import_path import is_path, missing_colon
from shoal.config.secrets import reveal
from shoal.data.images import SUFFIXES as IMAGE_SUFFIXES
from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sources.annotated import BOXES
from shoal.data.sources.base import Source
from shoal.data.sources.boxes import open_boxes_source
from shoal.data.sources.files import SUFFIXES, open_files
from shoal.data.sources.function import open_function
from shoal.data.sources.huggingface import open_huggingface
from shoal.data.sources.images import open_image_source
from shoal.data.sources.sklearn import open_sklearn
from shoal.data.sources.synthetic import open_synthetic
from shoal.errors import DataError, nearest

IMAGES = "images"
TEXT = "text"  # read by tasks on text alone: `shoal.data.sources.text`
AUDIO = "audio"  # read by task=speech_recognition alone: `shoal.data.sources.audio`

# By scheme: from the whole URI, which messages name, its part behind the scheme, and how files are read.
READERS: dict[str, Callable[[str, str, ReadOptions], Source]] = {
    "sklearn": open_sklearn,
    "csv": partial(open_files, "csv"),
    "parquet": partial(open_files, "parquet"),
    "json": partial(open_files, "json"),
    "npz": partial(open_files, "npz"),
    IMAGES: open_image_source,
    BOXES: open_boxes_source,
    "huggingface": open_huggingface,
    "synthetic": open_synthetic,
}
SCHEMES = (*READERS, TEXT, AUDIO)


def open_source(
    uri: str,
    *,
    shape: tuple[int, ...] | None = None,
    bits: int | None = None,
    options: ReadOptions = DETECTED,
) -> Source:
    """Find the source a URI names; files are listed, nothing large is read.

    Args:
        uri: `SCHEME:LOCATION` or `package.module:function`.
        shape: (channels, height, width) to resize the images of an `images:` source to; None: chosen from them.
        bits: that values of 16-bit images of such a source use; None: those that a sample uses.
        options: how files are read.

    Raises:
        DataError: unknown scheme, nothing there, or an empty result.
        UserError: a user's function that cannot be imported or called.
    """
    scheme, colon, location = reveal(uri).partition(":")
    if colon and scheme == IMAGES:
        return open_image_source(uri, location, options, shape, bits)
    if colon and scheme in READERS:
        return READERS[scheme](uri, location, options)
    if is_function(uri):
        return open_function(uri, options)
    if colon and scheme == AUDIO:
        raise DataError(
            f"data.source='{uri}' holds recordings: set task=speech_recognition, or name other data"
        )
    raise DataError(
        f"data.source='{uri}' is not known{nearest(scheme, SCHEMES) if colon else _meant(uri)}: write one of "
        f"{', '.join(f'{name}:' for name in SCHEMES)} or package.module:function"
    )


def _meant(uri: str) -> str:
    """Suggest the scheme that a path lacks: `csv:orders.csv` for `orders.csv`, `images:photos` for a folder."""
    named = next((scheme for scheme, suffixes in SUFFIXES.items() if uri.lower().endswith(suffixes)), None)
    if named is None and os.path.isdir(os.path.expanduser(uri)):
        named = _scheme_of_folder(os.path.expanduser(uri))
    return f" (did you mean '{named}:{uri}'?)" if named else missing_colon(uri)


def _scheme_of_folder(path: str) -> str | None:
    """Return the scheme of the first file of a folder whose name tells it."""
    kinds = SUFFIXES | {IMAGES: IMAGE_SUFFIXES, TEXT: (".txt", ".md")}
    for _, _, names in os.walk(path):
        for name in sorted(names):
            for scheme, suffixes in kinds.items():
                if name.lower().endswith(suffixes):
                    return scheme
    return None


def is_function(uri: str) -> bool:
    """Whether a source is a user's function, `package.module:function`, or an object that was passed from Python."""
    return uri.partition(":")[0] not in SCHEMES and is_path(uri)
