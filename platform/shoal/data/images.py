"""Encoded images become arrays of pixels, all of one shape.

It knows bytes of PNG, JPEG and other formats that Pillow reads; independent of files, sources and labels.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shoal.errors import DataError
from shoal.processes import no_garbage_search

if TYPE_CHECKING:
    from PIL.Image import Image


T = TypeVar("T")
Shape = tuple[int, int, int]  # (channels, height, width)
SizedPixels = tuple[tuple[int, int], np.ndarray]  # (height, width) that an image had; its pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")

# Images up to this height and width keep their median size; larger ones get the size that ImageNet models take.
SMALL_IMAGE = 64
LARGE_SIDE = 224
SAMPLED_IMAGES = 64  # that are looked at to choose a shape
NAMED_IMAGES = 5  # of the broken ones, in a message
GREY_MODES = ("1", "L", "LA", "La")
SIXTEEN_BITS = "I;16"  # and its byte orders, I;16L and I;16B
DEEPEST = 16  # bits of a value
EXIF_ORIENTATION = 0x0112  # from 5 on, height and width are swapped


@dataclass(frozen=True)
class EncodedImage:
    """An image that is not decoded yet, and its name in a message."""

    name: str
    read: Callable[[], bytes]


def holds_images(column: np.ndarray) -> bool:
    """Whether a column is one that `encoded_column` reads, judged by its first value that is not missing."""
    first = next((value for value in column if value is not None), None) if column.dtype == object else None
    if isinstance(first, Mapping):
        return "bytes" in first
    if not isinstance(first, bytes):
        return False
    return not _collect([EncodedImage("", lambda: first)], lambda image: image.size)[1]


def encoded_column(column: np.ndarray, first_row: int = 0) -> list[EncodedImage]:
    """Wrap a column of encoded images.

    Args:
        column: [n] objects, each the bytes of a PNG, JPEG, ..., or a mapping {"bytes", "path"} as Hugging Face's
            Image feature has them; the path is read where there are no bytes.
        first_row: number of the first row, for messages.
    """
    return [EncodedImage(f"row {first_row + row}", _reader(value)) for row, value in enumerate(column)]


def checked_shape(shape: tuple[int, ...]) -> Shape:
    """Return (channels, height, width).

    Raises:
        DataError: it is not a shape that images are decoded to.
    """
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise DataError(
            f"data.shape={list(shape)} is no shape of images: set [channels, height, width], channels 1 for "
            "greyscale or 3 for RGB"
        )
    return shape[0], shape[1], shape[2]


def median_shape(encoded: Sequence[EncodedImage]) -> Shape:
    """Choose (channels, height, width) from a sample of images, to which all are then resized.

    One channel if every image is greyscale, else three. Height and width are the medians if both are at most
    `SMALL_IMAGE`, else `LARGE_SIDE`.

    Raises:
        DataError: all images of the sample are broken.
    """
    looks = _look_at(encoded, lambda image: (image.height, image.width))
    heights, widths = zip(*(size for _, size in looks), strict=True)
    height, width = sorted(heights)[len(looks) // 2], sorted(widths)[len(looks) // 2]
    if max(height, width) > SMALL_IMAGE:
        height = width = LARGE_SIDE
    return _channels(looks), height, width


def native_shape(encoded: Sequence[EncodedImage]) -> Shape:
    """Return (channels, height, width) of images that keep their size: that of the first image that opens.

    One channel if every image of a sample is greyscale, else three.

    Raises:
        DataError: all images of the sample are broken.
    """
    looks = _look_at(encoded, upright_size)
    return _channels(looks), *looks[0][1]


def used_bits(encoded: Sequence[EncodedImage]) -> int:
    """Return how many bits the values of 16-bit images use, from 8 to 16, judged by the brightest of a sample.

    Cameras and scanners store 10, 12 or 14 bits in 16. The same number holds for all images, so that a dark one stays
    darker than a bright one. Without images of 16 bits it is 16.
    """
    brightest, _ = _collect(sampled(encoded), _brightest)
    deepest = max(brightest, default=-1)
    return DEEPEST if deepest < 0 else max(8, deepest.bit_length())


def depth_notes(bits: int) -> tuple[str, ...]:
    """Return a line on images of 16 bits of which fewer are used."""
    if bits == DEEPEST:
        return ()
    return (f"images of 16 bits use {bits} of them: values from 0 to {2**bits - 1} become 0 to 255",)


def decode_images(
    encoded: Sequence[EncodedImage], shape: Shape, resize: bool, bits: int = DEEPEST
) -> np.ndarray:
    """Decode images to [n, channels, height, width] uint8, as `read_pixels` does.

    Args:
        encoded: at least one.
        shape: of each.
        resize: bring each image to the shape; else each must have it.
        bits: that values of 16-bit images use.

    Raises:
        DataError: images are broken, or of other sizes and not to be resized.
    """
    channels, height, width = shape
    pixels, broken = read_pixels(encoded, (height, width) if resize else None, channels, bits)
    refuse_broken(broken)
    return stack_pixels(pixels, (height, width))


def stack_pixels(pixels: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Stack images [channels, height, width] to [n, channels, height, width].

    Args:
        pixels: at least one.
        size: (height, width) that each must have.

    Raises:
        DataError: one has another size.
    """
    sizes = sorted({image.shape[1:] for image in pixels} | {size})
    if len(sizes) > 1:
        raise DataError(
            f"images are of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]} (height, width): "
            "set data.shape=[channels, height, width]"
        )
    return np.stack(pixels)


def read_pixels(
    encoded: Sequence[EncodedImage], size: tuple[int, int] | None, channels: int, bits: int = DEEPEST
) -> tuple[list[np.ndarray], list[str]]:
    """Decode images; of animations, the first frame.

    An image is turned upright by its EXIF orientation, converted to greyscale or RGB (transparency is dropped, 16 bits
    become 8), resized so that it just covers `size` with its proportions kept, by antialiased bilinear interpolation,
    and cropped to the centre.

    Args:
        encoded: images.
        size: (height, width), or None to keep the size of each image.
        channels: 1 for greyscale, 3 for RGB.
        bits: that values of 16-bit images use; the upper 8 of these are kept.

    Returns:
        the pixels [channels, height, width] uint8 of the images that can be decoded, and the names of the broken ones
        with the reason.
    """
    return _collect(encoded, lambda image: _to_array(image, size, channels, bits))


def read_fitted(
    encoded: Sequence[EncodedImage], size: tuple[int, int], channels: int, bits: int = DEEPEST
) -> tuple[list[SizedPixels], list[str]]:
    """Do as `read_pixels`; also return the (height, width) that each image had, upright."""
    return _collect(encoded, lambda image: (upright_size(image), _to_array(image, size, channels, bits)))


def read_stretched(
    encoded: Sequence[EncodedImage], size: tuple[int, int], channels: int, bits: int = DEEPEST
) -> tuple[list[SizedPixels], list[str]]:
    """Do as `read_fitted`, but resize each direction by itself, so that nothing is cropped."""
    return _collect(
        encoded, lambda image: (upright_size(image), _to_array(image, size, channels, bits, crops=False))
    )


def is_greyscale(encoded: Sequence[EncodedImage]) -> bool:
    """Whether every image of a sample is greyscale.

    Raises:
        DataError: all images of the sample are broken.
    """
    return _channels(_look_at(encoded, upright_size)) == 1


def item_pixels(image: "Image") -> np.ndarray:
    """Return the pixels of an opened image, [channels, height, width]: uint8, or float32 of more than 8 bits."""
    if image.mode in ("I", "F") or image.mode.startswith(SIXTEEN_BITS):
        return np.asarray(image).astype(np.float32)[None]
    return _to_array(image, None, 1 if _is_grey(image) else 3)


def refuse_broken(broken: Sequence[str]) -> None:
    """Raise a DataError that counts the broken images and names the first ones, if there are any."""
    if broken:
        more = f", and {len(broken) - NAMED_IMAGES} more" if len(broken) > NAMED_IMAGES else ""
        raise DataError(
            f"images that cannot be read: {len(broken)}: {', '.join(broken[:NAMED_IMAGES])}{more}: "
            "fix or remove them"
        )


def _reader(value: Any) -> Callable[[], bytes]:
    """Return a function that reads one value of a column."""

    def read() -> bytes:
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
        if data is not None:
            return bytes(data)
        if path is None:
            raise ValueError("it is missing")
        return Path(path).read_bytes()

    return read


def _collect(encoded: Sequence[EncodedImage], use: Callable[["Image"], T]) -> tuple[list[T], list[str]]:
    """Return the results of `use` for the images that open, and the names of the others with the reason."""
    import PIL.Image

    made, broken = [], []
    with no_garbage_search():
        for item in encoded:
            try:
                with PIL.Image.open(io.BytesIO(item.read())) as image:
                    made.append(use(image))
            except PIL.UnidentifiedImageError:
                broken.append(f"{item.name} (no format that is known)")
            # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others.
            except Exception as error:
                broken.append(f"{item.name} ({str(error).split(chr(10))[0] or type(error).__name__})")
    return made, broken


def sampled(images: Sequence[T]) -> Sequence[T]:
    """Return up to `SAMPLED_IMAGES` images, evenly spread, which show what all are like."""
    return images[:: -(-len(images) // SAMPLED_IMAGES) or 1]


def _brightest(image: "Image") -> int:
    """Return the largest value of an image of 16 bits; -1 for others."""
    return int(np.asarray(image).max()) if image.mode.startswith(SIXTEEN_BITS) else -1


def _look_at(encoded: Sequence[EncodedImage], size: Callable[["Image"], T]) -> list[tuple[bool, T]]:
    """Return (is greyscale, size) of up to `SAMPLED_IMAGES` images, evenly spread; none is decoded."""
    looks, broken = _collect(sampled(encoded), lambda image: (_is_grey(image), size(image)))
    if not looks:
        refuse_broken(broken)
    return looks


def _channels(looks: Sequence[tuple[bool, object]]) -> int:
    return 1 if all(is_grey for is_grey, _ in looks) else 3


def _is_grey(image: "Image") -> bool:
    return image.mode in GREY_MODES or image.mode.startswith(SIXTEEN_BITS)


def upright_size(image: "Image") -> tuple[int, int]:
    """Return (height, width) as `_to_array` makes them."""
    is_turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (image.width, image.height) if is_turned else (image.height, image.width)


def _to_array(
    image: "Image", size: tuple[int, int] | None, channels: int, bits: int = DEEPEST, crops: bool = True
) -> np.ndarray:
    """Return [channels, height, width] uint8."""
    import PIL.Image
    import PIL.ImageOps

    if image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of 32 bits (mode {image.mode}), whose range is not known; make them 8 or 16"
        )
    if image.mode.startswith(SIXTEEN_BITS):  # Pillow's own conversion would clip 16 bits at 255
        image = PIL.Image.fromarray(np.minimum(np.asarray(image) >> (bits - 8), 255).astype(np.uint8))
    # Each of these copies the image, also where nothing is to be done.
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode != (mode := "L" if channels == 1 else "RGB"):
        image = image.convert(mode)
    if size and size != (image.height, image.width):
        resize = PIL.ImageOps.fit if crops else PIL.Image.Image.resize
        image = resize(image, (size[1], size[0]), PIL.Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
