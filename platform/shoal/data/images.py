"""Encoded images become arrays of pixels, all of one shape."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shoal.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")

# Images up to this height and width keep their median size; larger ones get the size ImageNet models are for.
SMALL_IMAGE = 64
LARGE_SIDE = 224
_SAMPLED = 64
_NAMED = 5
_GREY_MODES = ("1", "L", "LA", "La")
_SIXTEEN_BITS = "I;16"  # and its byte orders, I;16L and I;16B


def holds_images(column: np.ndarray) -> bool:
    """Whether a column is one that `decode_bytes` reads, going by its first value that is not missing."""
    first = next((value for value in column if value is not None), None) if column.dtype == object else None
    if isinstance(first, Mapping):
        return "bytes" in first
    if not isinstance(first, bytes):
        return False
    return not _collect([EncodedImage("", lambda: first)], lambda image: image.size)[1]


def decode_bytes(column: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Decode a column of encoded images, as `read_images` does files.

    Args:
        column: [n] objects, each the bytes of a PNG, JPEG, ..., or a mapping {"bytes", "path"} as Hugging Face's
            Image feature keeps them, where the path is read if there are no bytes.
        shape: (channels, height, width); None: chosen from the column as `image_shape` chooses it. Further blocks
            of the same column need the shape of the first.

    Returns:
        [n, channels, height, width] uint8.

    Raises:
        DataError: values are missing or broken, or there is no such shape.
    """
    encoded = [EncodedImage(f"row {row}", _reader(value)) for row, value in enumerate(column)]
    channels, height, width = checked_shape(shape) if shape else encoded_shape(encoded)
    return read_encoded(encoded, (height, width), channels)


@dataclass(frozen=True)
class EncodedImage:
    """An image that is yet to be decoded, and what a message calls it."""

    name: str
    read: Callable[[], bytes]


def checked_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise DataError(
            f"data.shape={list(shape)} is no shape of images: set [channels, height, width], channels 1 for "
            "greyscale or 3 for RGB"
        )
    return shape[0], shape[1], shape[2]


def _reader(value: Any) -> Callable[[], bytes]:
    """Return what reads one value of a column."""

    def read() -> bytes:
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
        if data is not None:
            return bytes(data)
        if path is None:
            raise ValueError("it is missing")
        return Path(path).read_bytes()

    return read


def encoded_shape(encoded: Sequence[EncodedImage]) -> tuple[int, int, int]:
    sample = encoded[:: -(-len(encoded) // _SAMPLED) or 1]
    looks, broken = _collect(sample, lambda image: (_is_grey(image), image.height, image.width))
    if not looks:
        refuse_broken(broken)
    greys, heights, widths = zip(*looks, strict=True)
    height, width = sorted(heights)[len(looks) // 2], sorted(widths)[len(looks) // 2]
    if max(height, width) > SMALL_IMAGE:
        height = width = LARGE_SIDE
    return 1 if all(greys) else 3, height, width


def read_encoded(encoded: Sequence[EncodedImage], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    pixels, broken = read_pixels(encoded, size, channels)
    refuse_broken(broken)
    shapes = sorted({image.shape[1:] for image in pixels})
    if len(shapes) > 1:
        raise DataError(
            f"images are of {len(shapes)} sizes, from {shapes[0]} to {shapes[-1]} (height, width): "
            "set data.shape=[channels, height, width]"
        )
    return np.stack(pixels)


def read_pixels(
    encoded: Sequence[EncodedImage], size: tuple[int, int] | None, channels: int
) -> tuple[list[np.ndarray], list[str]]:
    return _collect(encoded, lambda image: _to_array(image, size, channels))


def _collect(encoded: Sequence[EncodedImage], use: Callable[["Image"], T]) -> tuple[list[T], list[str]]:
    """Return what `use` makes of the images that open, and the names of those that do not, with the reason."""
    import PIL.Image

    made, broken = [], []
    for item in encoded:
        try:
            with PIL.Image.open(io.BytesIO(item.read())) as image:
                made.append(use(image))
        except PIL.UnidentifiedImageError:
            broken.append(f"{item.name} (no format that is known)")
        except (
            Exception
        ) as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            broken.append(f"{item.name} ({str(error).split(chr(10))[0] or type(error).__name__})")
    return made, broken


def refuse_broken(broken: list[str]) -> None:
    if broken:
        more = f", and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise DataError(
            f"images that cannot be read: {len(broken)}: {', '.join(broken[:_NAMED])}{more}: mend or remove them"
        )


def _is_grey(image: "Image") -> bool:
    return image.mode in _GREY_MODES or image.mode.startswith(_SIXTEEN_BITS)


def _to_array(image: "Image", size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Return [channels, height, width] uint8."""
    import PIL.Image
    import PIL.ImageOps

    if image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of 32 bits (mode {image.mode}), whose range is not known; make them 8 or 16"
        )
    if image.mode.startswith(_SIXTEEN_BITS):  # Pillow would cut 16 bits off at 255
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = PIL.ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    if size:
        image = PIL.ImageOps.fit(image, (size[1], size[0]), PIL.Image.Resampling.BILINEAR)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
