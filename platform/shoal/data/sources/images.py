"""Reads `images:DIR`: a folder of image files per class, with or without a folder per split."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from pyarrow import fs as arrow_fs

from shoal.data.images import (
    DEEPEST,
    SUFFIXES,
    EncodedImage,
    checked_shape,
    depth_notes,
    median_shape,
    read_pixels,
    refuse_broken,
    sampled,
    used_bits,
)
from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sampler import SPLITS, TRAIN, split_named
from shoal.data.sources.base import IN_DRIVER_BYTES, Part, Source
from shoal.errors import DataError

BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class ImageFile:
    """A file, the class that its folder names, and the split, where folders name splits too."""

    path: str
    label: str
    split: str | None = None
    nbytes: int = 0


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, and how they are read.

    Attributes:
        files: the images.
        shape: (channels, height, width) to which all of them are resized.
        bits: that values of 16-bit images use.
    """

    files: tuple[ImageFile, ...]
    shape: tuple[int, int, int]
    bits: int = DEEPEST

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
        read = self.shape if self.bits == DEEPEST else (*self.shape, self.bits)
        hasher = hashlib.sha256(repr(read).encode())
        for file in self.files:
            listed = (file.split, file.label, os.path.basename(file.path), file.nbytes)
            hasher.update(repr(listed).encode())
        return hasher.hexdigest()[:16]

    def blocks(self, split: str | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Yield a split's images in the order of their paths, some 32 MiB of pixels at a time.

        A block is {"image": [n, channels, height, width] uint8, "target": [n] class names}.

        Raises:
            DataError: files are broken; it is raised after the last file was read, and counts them all.
        """
        files = [file for file in self.files if file.split == split]
        rows = max(1, BLOCK_BYTES // math.prod(self.shape))
        channels, height, width = self.shape
        broken: list[str] = []
        for first in range(0, len(files), rows):
            part = files[first : first + rows]
            pixels, failed = read_pixels(encoded_files(part), (height, width), channels, self.bits)
            broken += failed
            if not broken:
                yield {
                    "image": np.stack(pixels),
                    "target": np.array([file.label for file in part], dtype=object),
                }
        refuse_broken(broken)


def open_images(directory: str, shape: tuple[int, ...] | None = None, bits: int | None = None) -> ImageFolder:
    """List a folder's images and choose their shape from a sample of them.

    Args:
        directory: a path, or a URI such as s3://bucket/prefix.
        shape: (channels, height, width), channels 1 or 3; None: `image_shape` of the files.
        bits: that values of 16-bit images use; None: those that a sample uses.

    Raises:
        DataError: there are no images of two classes, or no such shape.
    """
    files = tuple(list_images(directory))
    bits = used_bits(encoded_files(sampled(files))) if bits is None else bits
    return ImageFolder(files, checked_shape(shape) if shape else image_shape(files), bits)


def list_images(directory: str) -> list[ImageFile]:
    """List the images below a folder's class folders, sorted by path, hidden ones left out.

    The class is the name of the folder at the top; folders inside it do not count. Where the folders at the top are
    named after splits (train, validation, test, or other usual names, in any case) and hold class folders, they are the
    splits. Files outside class folders are left out.

    Raises:
        DataError: there is no such folder, or there are no images of two classes in it.
    """
    found = _walk(directory)
    tops = {place[0] for place in found if len(place) > 1}
    nested = {place[0] for place in found if len(place) > 2 and split_named(place[0])}
    others = {name for name in tops if not split_named(name)}
    has_splits = len(nested) > 1 or bool(nested and not others)
    if has_splits and others:
        raise DataError(
            f"images:{directory} has '{min(others)}' beside the splits "
            f"{', '.join(sorted(nested))}: move it elsewhere, or into the folder of a split"
        )
    depth = 1 if has_splits else 0
    files = [
        ImageFile(info.path, place[depth], split_named(place[0]) if has_splits else None, info.size)
        for place, info in sorted(found.items())
        if len(place) > depth + 1
    ]
    _check_classes(directory, files, len(found), has_splits)
    return files


def find_images(directory: str) -> list[ImageFile]:
    """List all images of a folder at any depth, sorted by path, whatever their folders are called; hidden ones not.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    found = _walk(directory)
    if not found:
        raise DataError(f"images:{directory} holds no image ({', '.join(SUFFIXES)}): name a folder that does")
    return [ImageFile(info.path, "", nbytes=info.size) for _, info in sorted(found.items())]


def image_shape(files: Sequence[ImageFile]) -> tuple[int, int, int]:
    """Choose (channels, height, width) from up to 64 files, evenly spread over all.

    One channel if every image is greyscale, else three. Height and width are the medians if both are at most 64,
    else 224. Broken files are skipped here; reading all files names them.

    Raises:
        DataError: all of them are broken.
    """
    return median_shape(encoded_files(sampled(files)))


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


def encoded_files(files: Sequence[ImageFile]) -> list[EncodedImage]:
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

        return read if "://" in first else partial(_read_file, path)

    return [EncodedImage(file.path, reader(file.path[prefix:])) for file in files]


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def open_image_source(
    uri: str,
    directory: str,
    _: ReadOptions = DETECTED,
    shape: tuple[int, ...] | None = None,
    bits: int | None = None,
) -> Source:
    """Open a folder of images as rows; arguments and errors are those of `open_images`."""
    folder = open_images(directory, shape, bits)
    parts = tuple(Part(partial(folder.blocks, split), split) for split in folder.splits)
    # Without `paths`: their hash leaves out the folders and so the classes. A small source hashes its content.
    digest = None if folder.nbytes <= IN_DRIVER_BYTES else folder.digest
    return Source(
        uri,
        "images",
        parts,
        folder.nbytes,
        digest=digest,
        image_bits=folder.bits,
        notes=depth_notes(folder.bits),
    )
