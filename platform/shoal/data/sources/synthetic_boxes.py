"""Reads `synthetic:detection?...`: pictures of scikit-learn's handwritten digits, scattered by a seed, and boxes."""

import hashlib
from collections.abc import Iterator
from functools import cache, partial

import numpy as np

from shoal.data.boxes import CLASS_AND_BOX, box_row
from shoal.data.images import DEEPEST
from shoal.data.packing import as_ragged
from shoal.data.sampler import SPLITS, TRAIN
from shoal.data.sources.base import Block, Chunks, Part, Source
from shoal.errors import DataError

CHUNK = 512  # pictures read at a time
MOST_DIGITS = 5  # of a picture
SMALLEST, LARGEST = 10, 24  # sides of a digit, in pixels
TRIES = 20  # to find a place that no other digit has
NOISE = 8.0  # deviation of the background, of 255
INK = 4  # of 16: from here on a pixel of a digit counts as part of it
NAMES = tuple(map(str, range(10)))
# Of the pictures, and of the digits that they are made of: no digit is in pictures of two splits.
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def open_synthetic_boxes(uri: str, rows: int, size: int, seed: int) -> Source:
    """Open pictures of digits, each a pure function of its number, the split and the seed.

    Args:
        rows: pictures of all splits.
        size: height and width of a picture.

    Raises:
        DataError: the pictures hold no digit, or too few.
    """
    if size < LARGEST or rows < 10:
        raise DataError(
            f"data.source='{uri}': {rows} pictures of {size}x{size} pixels: set size={LARGEST} or more, and rows=10 or "
            "more"
        )
    counts = {split: int(rows * share) for split, share in SHARES.items()}
    counts[TRAIN] = rows - sum(counts[split] for split in SPLITS if split != TRAIN)
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Source(
        uri,
        "synthetic",
        tuple(_part(split, counts[split], size, seed) for split in SPLITS),
        nbytes=rows * size * size,
        digest=digest,
        image_bits=DEEPEST,
        categories=NAMES,
    )


def _part(split: str, rows: int, size: int, seed: int) -> Part:
    chunks = Chunks(-(-rows // CHUNK), partial(_read, split, rows, size, seed))
    return Part(chunks.blocks, split, chunks=lambda: chunks)


def _read(split: str, rows: int, size: int, seed: int, number: int) -> Iterator[Block]:
    first = number * CHUNK
    made = [picture(split, row, size, seed) for row in range(first, min(first + CHUNK, rows))]
    yield {
        "image": np.stack([image for image, _ in made]),
        "target": as_ragged([boxes for _, boxes in made]),
    }


def picture(split: str, row: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one picture [1, size, size] uint8, and its class and box rows [k, 5]."""
    draw = np.random.default_rng([seed, SPLITS.index(split), row])
    canvas = draw.normal(0.0, NOISE, (size, size)).clip(0)
    images, classes = digits(split)
    found: list[list[float]] = []
    for _ in range(draw.integers(1, MOST_DIGITS + 1)):
        which, side = int(draw.integers(len(images))), int(draw.integers(SMALLEST, LARGEST + 1))
        drawn = enlarged(images[which], side)
        place = _free_place(draw, drawn.shape, size, found)
        if place is None:
            continue
        top, left = place
        bottom, right = top + drawn.shape[0], left + drawn.shape[1]
        canvas[top:bottom, left:right] = np.maximum(canvas[top:bottom, left:right], drawn)
        found.append(box_row(int(classes[which]), left, top, right, bottom))
    rows = np.array(found, dtype=np.float32).reshape(-1, CLASS_AND_BOX)
    return canvas.round().clip(0, 255).astype(np.uint8)[None], rows


def _free_place(
    draw: np.random.Generator, shape: tuple[int, ...], size: int, taken: list[list[float]]
) -> tuple[int, int] | None:
    """Return (top, left) where no box is, or None if none was found in `TRIES` draws."""
    for _ in range(TRIES):
        top, left = (int(draw.integers(0, size - side + 1)) for side in shape)
        bottom, right = top + shape[0], left + shape[1]
        if all(right <= x1 or left >= x2 or bottom <= y1 or top >= y2 for _, x1, y1, x2, y2 in taken):
            return top, left
    return None


def enlarged(digit: np.ndarray, side: int) -> np.ndarray:
    """Return a digit [8, 8] at a height and width, by bilinear interpolation, cut to its ink, from 0 to 255."""
    places = (np.arange(side) + 0.5) * len(digit) / side - 0.5
    places = places.clip(0, len(digit) - 1)
    low = np.floor(places).astype(int).clip(0, len(digit) - 2)
    weight = places - low
    rows = digit[low] * (1 - weight)[:, None] + digit[low + 1] * weight[:, None]
    drawn = rows[:, low] * (1 - weight) + rows[:, low + 1] * weight
    ink = drawn >= INK
    rows_with, columns_with = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    cut = drawn[rows_with[0] : rows_with[-1] + 1, columns_with[0] : columns_with[-1] + 1]
    return np.asarray(cut * (255 / 16))


@cache
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits [n, 8, 8] of a split, from 0 to 16, and their classes [n]."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    # Of every ten: those at the end are of other writers than those before.
    place = np.arange(len(images)) % 10
    mine = {"train": place < 8, "validation": place == 8, "test": place == 9}[split]
    return images[mine].reshape(-1, 8, 8), classes[mine]
