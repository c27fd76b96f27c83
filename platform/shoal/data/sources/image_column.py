"""Decodes a column of encoded images, as the Hub's data sets and parquet files have them, into pixels."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from shoal.data.images import (
    DEEPEST,
    Shape,
    checked_shape,
    decode_images,
    depth_notes,
    encoded_column,
    holds_images,
    native_shape,
    used_bits,
)
from shoal.data.sources.base import Block, Part, Source, check_column
from shoal.errors import DataError

SCHEME = "image_column"
BLOCK_BYTES = 32 << 20  # of pixels


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes blocks, in any process.

    Attributes:
        column: of the encoded images.
        label: a column that is kept, as `weight` is; all others are left out.
        shape: (channels, height, width) of the decoded images.
        resize: bring images to that shape; else another size is refused.
        bits: that values of 16-bit images use.
        weight: a column of the samples' weights; None: there are none.
    """

    column: str
    label: str
    shape: Shape
    resize: bool
    bits: int = DEEPEST
    weight: str | None = field(
        default=None, repr=False
    )  # the fingerprint of data without weights is an old one

    def blocks(self, block: Block, first_row: int = 0) -> Iterator[Block]:
        """Yield {column: [n, channels, height, width] uint8, label: [n], weight: [n]}, some 32 MiB of pixels at a time.

        Args:
            block: encoded images and labels.
            first_row: number of its first row, for messages.

        Raises:
            DataError: images are broken or missing, or of another size and not to be resized.
        """
        rows = max(1, BLOCK_BYTES // math.prod(self.shape))
        for first in range(0, len(block[self.column]), rows):
            some = slice(first, first + rows)
            encoded = encoded_column(block[self.column][some], first_row + first)
            yield {
                self.column: decode_images(encoded, self.shape, self.resize, self.bits),
                **{name: block[name][some] for name in (self.label, self.weight) if name is not None},
            }


def decode_image_column(
    source: Source,
    label: str,
    shape: tuple[int, ...] | None,
    bits: int | None = None,
    weight: str | None = None,
) -> Source:
    """Decode the column of encoded images of a source, if it has one; rows, their order and their splits stay.

    Args:
        source: rows of any kind.
        label: the column to predict.
        shape: (channels, height, width) to resize images to. None: all images must have one size; they are greyscale
            if all of the first block's sample are, else RGB.
        bits: that values of 16-bit images use; None: those that a sample uses.
        weight: the column of the samples' weights; None: there are none.

    Returns:
        A source with blocks {column: [rows, channels, height, width] uint8, label: [rows]}, weights too, or the source
        itself if no column holds images.

    Raises:
        DataError: several columns hold images, or there is no such label, weight or shape, or no image opens.
    """
    first = next((block for _, block in source.blocks() if block), {})
    column = _image_column(source.uri, label, first)
    if column is None:
        return source
    check_column(source.uri, "data.label", label, first)
    if weight is not None:
        check_column(source.uri, "data.weight", weight, first)
    images = encoded_column(first[column])
    encoded_shape = checked_shape(shape) if shape else native_shape(images)
    decoder = ImageDecoder(
        column, label, encoded_shape, resize=shape is not None, bits=bits or used_bits(images), weight=weight
    )

    def open_part(part: Part) -> Part:
        def read() -> Iterator[Block]:
            row = 0
            for block in part.read():
                yield from decoder.blocks(block, row)
                row += len(block[column])

        return Part(read, part.split, encoded=(part, decoder.blocks))

    described = f"{source.fingerprint} {decoder}" + (f" {weight}" if weight else "")
    return Source(
        source.uri,
        SCHEME,
        tuple(map(open_part, source.parts)),
        nbytes=_count_rows(source, first[column]) * math.prod(encoded_shape),
        digest=hashlib.sha256(described.encode()).hexdigest()[:16],
        image_bits=decoder.bits,
        notes=(*source.notes, *depth_notes(decoder.bits)),
    )


def _image_column(uri: str, label: str, block: Block) -> str | None:
    columns = [name for name, values in block.items() if name != label and holds_images(values)]
    if len(columns) > 1:
        raise DataError(
            f"'{uri}' has several columns of images ({', '.join(columns)}): task=image_classification learns from one; "
            "leave the others out of the data"
        )
    return columns[0] if columns else None


def _count_rows(source: Source, images: np.ndarray) -> int:
    """Count the rows of a small source; estimate those of a large one by the size of its first images."""
    if source.is_small:
        return sum(len(next(iter(block.values()))) for _, block in source.blocks() if block)
    sizes = [
        len(value.get("bytes") or b"") if isinstance(value, dict) else len(value or b"") for value in images
    ]
    return int(source.nbytes / max(1.0, float(np.mean(sizes))))
