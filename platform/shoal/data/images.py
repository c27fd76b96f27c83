"""Images: a folder of files per class, or a column of encoded bytes, becomes arrays of pixels.

It knows files, classes and pixels. It does not know what a row is to training, and makes no `Source` of its own.
"""

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import fs as arrow_fs

from shoal.data.order import SPLIT_NAMES, SPLITS, TRAIN
from shoal.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")

# Images up to this height and width keep their median size; larger ones get the size ImageNet models are for.
SMALL_IMAGE = 64
LARGE_SIDE = 224

_BLOCK_BYTES = 32 << 20
_SAMPLED = 64
_NAMED = 5
_GREY_MODES = ("1", "L", "LA", "La")
_SIXTEEN_BITS = "I;16"  # and its byte orders, I;16L and I;16B


@dataclass(frozen=True)
class ImageFile:
    """A file, the class that its folder names, and the split, where folders name splits too."""

    path: str
    label: str
    split: str | None = None
    nbytes: int = 0


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, and the (channels, height, width) that all of them are brought to."""

    files: tuple[ImageFile, ...]
    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return len(self.files) * math.prod(self.shape)

    @property
    def splits(self) -> tuple[str | None, ...]:
        """The splits that folders name, or None alone."""
        found = {file.split for file in self.files}
        return tuple(split for split in (None, *SPLITS) if split in found)

    @property
    def digest(self) -> str:
        """A short hash of the files' names, classes, splits and sizes, and of the shape; no file is read."""
        hasher = hashlib.sha256(repr(self.shape).encode())
        for file in self.files:
            listed = (file.split, file.label, os.path.basename(file.path), file.nbytes)
            hasher.update(repr(listed).encode())
        return hasher.hexdigest()[:16]

    def blocks(self, split: str | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Yield a split's images in the order of their paths, some 32 MiB of pixels at a time.

        A block is {"image": [n, channels, height, width] uint8, "target": [n] class names}.

        Raises:
            DataError: files are broken; it comes after the last file was read and counts them all.
        """
        files = [file for file in self.files if file.split == split]
        rows = max(1, _BLOCK_BYTES // math.prod(self.shape))
        channels, height, width = self.shape
        broken: list[str] = []
        for first in range(0, len(files), rows):
            part = files[first : first + rows]
            pixels, failed = _pixels(_encoded_files(part), (height, width), channels)
            broken += failed
            if not broken:
                yield {
                    "image": np.stack(pixels),
                    "target": np.array([file.label for file in part], dtype=object),
                }
        _refuse(broken)


def open_images(directory: str, shape: tuple[int, ...] | None = None) -> ImageFolder:
    """List a folder's images and settle their shape; a sample of them is looked at, none is decoded.

    Args:
        directory: a path, or a URI such as s3://bucket/prefix.
        shape: (channels, height, width), channels 1 or 3; None: `image_shape` of the files.

    Raises:
        DataError: there are no images of two classes, or no such shape.
    """
    files = tuple(list_images(directory))
    return ImageFolder(files, _checked(shape) if shape else image_shape(files))


def list_images(directory: str) -> list[ImageFile]:
    """List the images below a folder's class folders, sorted by path, hidden ones left out.

    The class is the name of the folder at the top; folders inside it do not count. Where the folders at the top
    are called train, validation (or val, valid) and test, and hold class folders, they are the splits. Files that
    lie in no class folder are left out.

    Raises:
        DataError: there is no such folder, or there are no images of two classes in it.
    """
    found = _walk(directory)
    tops = {place[0] for place in found if len(place) > 1}
    nested = {place[0] for place in found if len(place) > 2} & set(SPLIT_NAMES)
    has_splits = len(nested) > 1 or bool(nested and tops <= set(SPLIT_NAMES))
    if has_splits and tops - set(SPLIT_NAMES):
        raise DataError(
            f"images:{directory} has '{min(tops - set(SPLIT_NAMES))}' beside the splits "
            f"{', '.join(sorted(nested))}: move it elsewhere, or into the folder of a split"
        )
    depth = 1 if has_splits else 0
    files = [
        ImageFile(info.path, place[depth], SPLIT_NAMES[place[0]] if has_splits else None, info.size)
        for place, info in sorted(found.items())
        if len(place) > depth + 1
    ]
    _check_classes(directory, files, len(found), has_splits)
    return files


def image_shape(files: Sequence[ImageFile]) -> tuple[int, int, int]:
    """Choose (channels, height, width) from up to 64 files, evenly spread over all.

    One channel if every image is greyscale, else three. Height and width are the medians if both are at most 64,
    else 224. Broken files are passed over; they are named when all are read.

    Raises:
        DataError: all of them are broken.
    """
    return _shape(_encoded_files(files))


def read_images(files: Sequence[ImageFile], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Decode files; of animations, the first frame.

    An image is turned upright as its EXIF orientation says, converted to greyscale or RGB (transparency is
    dropped, 16 bits become 8), resized so that it just covers `size` with its proportions kept, by antialiased
    bilinear interpolation, and cropped to the centre.

    Args:
        files: at least one.
        size: (height, width), or None where all images are of one size, which they keep.
        channels: 1 for greyscale, 3 for RGB.

    Returns:
        [n, channels, height, width] uint8.

    Raises:
        DataError: files are broken, which are counted and the first five named with the reason; or `size` is None
            and the images differ in size.
    """
    return _read(_encoded_files(files), size, channels)


def holds_images(column: np.ndarray) -> bool:
    """Whether a column is one that `decode_bytes` reads, going by its first value that is not missing."""
    first = next((value for value in column if value is not None), None) if column.dtype == object else None
    if isinstance(first, Mapping):
        return "bytes" in first
    if not isinstance(first, bytes):
        return False
    return not _collect([_Encoded("", lambda: first)], lambda image: image.size)[1]


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
    encoded = [_Encoded(f"row {row}", _reader(value)) for row, value in enumerate(column)]
    channels, height, width = _checked(shape) if shape else _shape(encoded)
    return _read(encoded, (height, width), channels)


@dataclass(frozen=True)
class _Encoded:
    """An image that is yet to be decoded, and what a message calls it."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class _Listed:
    path: str
    size: int


def _walk(directory: str) -> dict[tuple[str, ...], _Listed]:
    """Find all images at any depth, by the parts of their path below the directory."""
    root = directory if "://" in directory else os.path.abspath(os.path.expanduser(directory))
    try:
        filesystem, inner = arrow_fs.FileSystem.from_uri(root)
        infos = filesystem.get_file_info(arrow_fs.FileSelector(inner, recursive=True))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"images:{directory} is no folder, seen from {os.getcwd()}: give one that holds a folder per class"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"images:{directory} cannot be listed ({error}): check the address") from None
    found = {
        tuple(info.path[len(inner.rstrip("/")) + 1 :].split("/")): _Listed(
            root[: len(root) - len(inner)] + info.path, int(info.size or 0)
        )
        for info in infos
        if info.type == arrow_fs.FileType.File and info.path.lower().endswith(SUFFIXES)
    }
    return {place: info for place, info in found.items() if not any(part[0] == "." for part in place)}


def _check_classes(directory: str, files: list[ImageFile], found: int, has_splits: bool) -> None:
    if not found:
        raise DataError(
            f"images:{directory} holds no image: put files ({', '.join(SUFFIXES)}) into a folder per class"
        )
    if has_splits and not any(file.split == TRAIN for file in files):
        raise DataError(
            f"images:{directory} has class folders in other splits, but none in train: name the folder of the "
            "training images train"
        )
    classes = sorted({file.label for file in files if file.split in (None, TRAIN)})
    if not classes:
        raise DataError(
            f"images:{directory} holds {found} images and no class folders: put each into a folder named after "
            "its class"
        )
    if len(classes) == 1:
        raise DataError(
            f"images:{directory} has images of one class ('{classes[0]}'): classification needs at least two "
            "class folders with images"
        )


def _checked(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise DataError(
            f"data.shape={list(shape)} is no shape of images: set [channels, height, width], channels 1 for "
            "greyscale or 3 for RGB"
        )
    return shape[0], shape[1], shape[2]


def _encoded_files(files: Sequence[ImageFile]) -> list[_Encoded]:
    """Wrap files of one folder, whose file system is opened once."""
    if not files:
        return []
    first = files[0].path
    filesystem, inner = arrow_fs.FileSystem.from_uri(first)
    prefix = len(first) - len(inner)

    def reader(path: str) -> Callable[[], bytes]:
        def read() -> bytes:
            with filesystem.open_input_stream(path) as stream:
                return bytes(stream.read())

        return read

    return [_Encoded(file.path, reader(file.path[prefix:])) for file in files]


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


def _shape(encoded: Sequence[_Encoded]) -> tuple[int, int, int]:
    sample = encoded[:: -(-len(encoded) // _SAMPLED) or 1]
    looks, broken = _collect(sample, lambda image: (_is_grey(image), image.height, image.width))
    if not looks:
        _refuse(broken)
    greys, heights, widths = zip(*looks, strict=True)
    height, width = sorted(heights)[len(looks) // 2], sorted(widths)[len(looks) // 2]
    if max(height, width) > SMALL_IMAGE:
        height = width = LARGE_SIDE
    return 1 if all(greys) else 3, height, width


def _read(encoded: Sequence[_Encoded], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    pixels, broken = _pixels(encoded, size, channels)
    _refuse(broken)
    shapes = sorted({image.shape[1:] for image in pixels})
    if len(shapes) > 1:
        raise DataError(
            f"images are of {len(shapes)} sizes, from {shapes[0]} to {shapes[-1]} (height, width): "
            "set data.shape=[channels, height, width]"
        )
    return np.stack(pixels)


def _pixels(
    encoded: Sequence[_Encoded], size: tuple[int, int] | None, channels: int
) -> tuple[list[np.ndarray], list[str]]:
    return _collect(encoded, lambda image: _to_array(image, size, channels))


def _collect(encoded: Sequence[_Encoded], use: Callable[["Image"], T]) -> tuple[list[T], list[str]]:
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


def _refuse(broken: list[str]) -> None:
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
