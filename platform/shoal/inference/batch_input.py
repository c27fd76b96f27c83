"""The rows of a batch prediction, in fragments that any process reads by itself. No label is needed.

All that training reads can be read: files, images, texts, a function's rows. Folders of images, texts or recordings
are read by path: a row is a file, of whatever folder.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from shoal.config.secrets import reveal
from shoal.data.read_options import ReadOptions
from shoal.data.sources.annotated import BOXES
from shoal.data.sources.base import Block, Chunks, OtherTypesError, Part, Source, file_size
from shoal.data.sources.encoded_audio import SUFFIXES
from shoal.data.sources.files import list_files
from shoal.data.sources.images import find_images
from shoal.data.sources.open import AUDIO, IMAGES, TEXT, open_source
from shoal.errors import DataError
from shoal.inference.predictor import Predictor

PATH = "path"  # the column of a file's path
SLICE_BYTES, SLICE_ROWS, SLICE_TEXTS = 32 << 20, 1 << 16, 32  # predicted at a time, and written as one file
TABLE_BYTES = 1 << 10  # of a row, at least: other columns pass through


def rows_of_slice(predictor: Predictor) -> int:
    """Return how many rows are predicted, and written, at a time: few where a row is large or its answer a text."""
    if predictor.params:
        return SLICE_TEXTS
    row = 4 * math.prod(predictor.transform.input_shape)
    return max(1, min(SLICE_ROWS, SLICE_BYTES // max(row, TABLE_BYTES)))


def open_input(predictor: Predictor, uri: str, kinds: dict[str, str]) -> Source:
    """Open rows to predict, as the model's data were opened: with its marks of decimals, its texts for missing values.

    Args:
        uri: as `data.source`.
        kinds: what columns are, as `data.columns`, beside what the model's config says of those it takes.

    Raises:
        DataError: there is no such source, or it is one of tokens.
    """
    scheme, _, location = reveal(uri).partition(":")
    if scheme == IMAGES:
        if predictor.transform.image_bits is None:
            raise DataError(f"'{uri}' holds images, and the model takes none: name a source of its columns")
        found = [(image.path, image.nbytes) for image in find_images(location)]
        return _files(uri, found, rows_of_slice(predictor))
    if scheme == AUDIO:
        if predictor.transform.audio is None:
            raise DataError(
                f"'{uri}' holds recordings, and the model takes none: name a source of its columns"
            )
        heard = [path for path in list_files(uri, AUDIO, location)[0] if path.lower().endswith(SUFFIXES)]
        if not heard:
            raise DataError(f"'{uri}' holds no recording ({', '.join(SUFFIXES)}): name a folder that does")
        return _files(uri, [(path, file_size(path)) for path in heard], SLICE_TEXTS)
    if scheme == TEXT:
        if predictor.transform.tokenizer is None:
            raise DataError(f"'{uri}' holds texts, and the model takes none: name a source of its columns")
        paths, _ = list_files(uri, TEXT, location)
        return _files(uri, [(path, file_size(path)) for path in paths], SLICE_TEXTS)
    if scheme == BOXES:
        raise DataError(
            f"'{uri}' is of annotated images, and prediction reads images alone: name images:FOLDER; jobs/evaluate.py "
            "measures a model on annotated ones"
        )
    return open_source(uri, options=_options(predictor, kinds))


def fragments(source: Source) -> Chunks:
    """Return the rows of all parts in fragments: a file or a row group each, or all rows that are read in one go."""
    chunks = [
        part.chunks() if part.chunks is not None else Chunks(1, partial(_whole, part.read))
        for part in source.parts
    ]
    return Chunks(sum(one.count for one in chunks), partial(_read, chunks))


def relearn(source: Source, file: str, column: str) -> None:
    """Take a column of a CSV file for what all its cells are, not only those of samples."""
    part = next(part for part in source.parts if part.relearn)
    assert part.relearn is not None
    part.relearn(OtherTypesError(source.uri, file, column))


def _whole(read: Callable[[], Iterator[Block]], _: int) -> Iterator[Block]:
    yield from read()


def _read(chunks: list[Chunks], number: int) -> Iterator[Block]:
    for one in chunks:
        if number < one.count:
            yield from one.read(number)
            return
        number -= one.count


def _options(predictor: Predictor, kinds: dict[str, str]) -> ReadOptions:
    """Return how the model's data were read, without what the config says of columns that it does not take."""
    options = predictor.preprocessing.data.read_options
    taken = {column.name for column in predictor.transform.columns}
    own = {name: kind for name, kind in options.columns if name in taken}
    return replace(options, columns=tuple((own | kinds).items()), arrays=())


def _files(uri: str, files: list[tuple[str, int]], rows: int) -> Source:
    """Return rows that are files: blocks {"path": [n]}."""
    paths = np.array([path for path, _ in files], dtype=object)
    chunks = Chunks(-(-len(paths) // rows), partial(_some_paths, paths, rows))
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    part = Part(chunks.blocks, chunks=lambda: chunks)
    return Source(uri, "files", (part,), nbytes=sum(size for _, size in files), digest=digest)


def _some_paths(paths: np.ndarray, rows: int, number: int) -> Iterator[Block]:
    yield {PATH: paths[number * rows : (number + 1) * rows]}
