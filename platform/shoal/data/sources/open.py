"""A `data.source` URI becomes a Source: blocks of rows read in this process, in a fixed order."""

from shoal.data.sources.base import SCHEMES, Source
from shoal.data.sources.files import open_files
from shoal.data.sources.function import is_function, open_function
from shoal.data.sources.huggingface import open_huggingface
from shoal.data.sources.images import open_image_source
from shoal.data.sources.sklearn import open_sklearn
from shoal.data.sources.synthetic import open_synthetic
from shoal.errors import DataError, nearest


def open_source(uri: str, *, shape: tuple[int, ...] | None = None) -> Source:
    """Find the source a URI names; files are listed, nothing large is read.

    Args:
        shape: (channels, height, width) to bring the images of an `images:` source to; None: chosen from them.

    Raises:
        DataError: unknown scheme, nothing there, or an empty result.
        UserError: a user's function that cannot be imported or called.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and scheme == "images":
        return open_image_source(uri, rest, shape)
    if colon and scheme in SCHEMES:
        opened = {"sklearn": open_sklearn, "synthetic": open_synthetic, "huggingface": open_huggingface}
        return opened[scheme](uri, rest) if scheme in opened else open_files(uri, scheme, rest)
    if is_function(uri):
        return open_function(uri)
    raise DataError(
        f"data.source='{uri}' is not known{nearest(scheme, SCHEMES)}: write one of "
        f"{', '.join(f'{name}:' for name in SCHEMES)} or package.module:function"
    )
