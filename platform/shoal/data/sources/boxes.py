"""Reads `boxes:PATH`: images with boxes of objects, annotated as COCO, Pascal VOC, YOLO or Hugging Face's objects.

The format is found by the files. Classes are numbered by their names, in alphabetical order, whatever numbers a format
gives them, and images are sorted by theirs, so that the same images in several formats are the same data.
"""

import hashlib
import math
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from pyarrow import fs as arrow_fs

from shoal.data.boxes import Size, rows_of
from shoal.data.images import (
    EncodedImage,
    Shape,
    checked_shape,
    depth_notes,
    is_greyscale,
    read_stretched,
    refuse_broken,
    used_bits,
)
from shoal.data.packing import as_ragged
from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sampler import SPLITS, TRAIN
from shoal.data.sources.annotated import BOXES, AnnotatedImage, Annotations, Files
from shoal.data.sources.base import IN_DRIVER_BYTES, Block, Part, Source, filesystem_of
from shoal.data.sources.coco import is_coco, read_coco
from shoal.data.sources.objects_column import METADATA, read_image_folder, read_objects
from shoal.data.sources.voc import read_voc
from shoal.data.sources.yolo import is_yolo, read_yolo
from shoal.errors import DataError, nearest

BLOCK_BYTES = 32 << 20
NAMED = 10  # classes that a message names
LONGEST, MULTIPLE = (
    256,
    16,
)  # of images without data.shape: the longer side at most, and what both are multiples of


@dataclass(frozen=True)
class BoxedImages:
    """Images with boxes, and how they are read.

    Attributes:
        images: sorted; those of one split are beside each other.
        shape: (channels, height, width) to which all are stretched.
        bits: that values of 16-bit images use.
        categories: names of the classes, by number.
    """

    images: tuple[AnnotatedImage, ...]
    shape: Shape
    bits: int
    categories: tuple[str, ...]

    @property
    def splits(self) -> tuple[str | None, ...]:
        found = {image.split for image in self.images}
        return tuple(split for split in (None, *SPLITS) if split in found)

    @property
    def nbytes(self) -> int:
        return len(self.images) * math.prod(self.shape)

    @property
    def digest(self) -> str:
        """A short hash of names, sizes, boxes and shape; no image is read."""
        hasher = hashlib.sha256(repr((self.shape, self.bits, self.categories)).encode())
        for image in self.images:
            listed = (image.split, posixpath.basename(image.name), image.nbytes, image.boxes)
            hasher.update(repr(listed).encode())
        return hasher.hexdigest()[:16]

    def blocks(self, split: str | None) -> Iterator[Block]:
        """Yield a split's images: {"image": [n, *shape] uint8, "target": [n] of rows [k, 5]}.

        Raises:
            DataError: images are broken, or of another size than their annotations say.
        """
        images = [image for image in self.images if image.split == split]
        rows = max(1, BLOCK_BYTES // math.prod(self.shape))
        shape, numbers = Size(*self.shape[1:]), {name: place for place, name in enumerate(self.categories)}
        for first in range(0, len(images), rows):
            some = images[first : first + rows]
            encoded = [EncodedImage(image.name, image.read) for image in some]
            found, broken = read_stretched(encoded, (shape.height, shape.width), self.shape[0], self.bits)
            refuse_broken(broken)
            for image, (size, _) in zip(some, found, strict=True):
                if Size(*size) != image.size:
                    raise DataError(
                        f"image '{image.name}' is {size[1]}x{size[0]} pixels, and its annotation says "
                        f"{image.size.width}x{image.size.height}: its boxes are of another image; fix either"
                    )
            yield {
                "image": np.stack([pixels for _, pixels in found]),
                "target": as_ragged([rows_of(image.boxes, numbers, image.size, shape) for image in some]),
            }


def open_boxes_source(uri: str, location: str, _: ReadOptions = DETECTED) -> Source:
    """Open images with boxes; arguments and errors are those of `open_boxes`."""
    return open_boxes(uri, location)


def open_boxes(
    uri: str,
    location: str,
    shape: tuple[int, ...] | None = None,
    bits: int | None = None,
    categories: tuple[str, ...] = (),
) -> Source:
    """Read annotations; images are read later, but for their sizes where a format does not state them.

    Args:
        uri: as the user wrote it.
        location: a file of annotations, or a folder.
        shape: (channels, height, width) to which images are stretched; None: chosen from them.
        bits: that values of 16-bit images use; None: those that a sample uses.
        categories: that a trained model knows, by number; empty: those that the boxes have.

    Raises:
        DataError: there are no annotations, or they are damaged, as the readers say; or there are boxes of a class that
            the trained model does not know.
    """
    read = _annotations(uri, location)
    known = categories or tuple(sorted({box.label for image in read.images for box in image.boxes}))
    _check_known(uri, read, known)
    order = {split: place for place, split in enumerate((None, *SPLITS))}
    images = tuple(sorted(read.images, key=lambda image: (order[image.split], image.order)))
    encoded = [EncodedImage(image.name, image.read) for image in images]
    bits = used_bits(encoded) if bits is None else bits
    pixels = checked_shape(shape) if shape else _shape(images, encoded)
    found = BoxedImages(images, pixels, bits, known)
    is_small = found.nbytes <= IN_DRIVER_BYTES  # its content is hashed
    return Source(
        uri,
        BOXES,
        tuple(Part(partial(found.blocks, split), split) for split in found.splits),
        found.nbytes,
        digest=None if is_small else found.digest,
        image_bits=bits,
        notes=(
            *depth_notes(bits),
            *_empty_notes(images),
            *_unlearnt_notes(images),
            *read.notes,
            *read.dropped.notes(),
        ),
        categories=known,
    )


def _check_known(uri: str, read: Annotations, known: tuple[str, ...]) -> None:
    if not known:
        raise DataError(f"data.source='{uri}': none of {len(read.images)} images has a box: annotate some")
    for image in read.images:
        for box in image.boxes:
            if box.label not in known:
                raise DataError(
                    f"image '{image.name}' has a box of class '{box.label}', which is not among the {len(known)} "
                    f"classes of the model{nearest(box.label, known)} ({', '.join(known[:10])}): leave it out, or "
                    "train with it"
                )


def _empty_notes(images: tuple[AnnotatedImage, ...]) -> tuple[str, ...]:
    empty = sum(not image.boxes for image in images)
    return (
        (f"{empty} of {len(images)} images have no boxes: they count as images without objects",)
        if empty
        else ()
    )


def _unlearnt_notes(images: tuple[AnnotatedImage, ...]) -> tuple[str, ...]:
    """Return a line on classes that no image has which may be trained on, where images state their splits."""
    trained = [image for image in images if image.split in (None, TRAIN)]
    learnt = {box.label for image in trained for box in image.boxes}
    others = sorted({box.label for image in images for box in image.boxes} - learnt)
    if not trained or not others:
        return ()
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    named = ", ".join(f"'{label}'" for label in others[:NAMED])
    return (f"classes without a box in the training split cannot be learnt: {named}{more}",)


def _shape(images: tuple[AnnotatedImage, ...], encoded: list[EncodedImage]) -> Shape:
    """Choose (channels, height, width): the median size, or a smaller one of its proportions."""
    height, width = (
        sorted(sizes)[len(images) // 2] for sizes in zip(*(image.size for image in images), strict=True)
    )
    scale = min(1.0, LONGEST / max(height, width))
    sides = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    return 1 if is_greyscale(encoded) else 3, *sides  # type: ignore[return-value]


def _annotations(uri: str, location: str) -> Annotations:
    """Find the format of a file or folder, and read it."""
    path = location if "://" in location else os.path.expanduser(location)
    filesystem, inner = filesystem_of(path)
    info = filesystem.get_file_info(inner)
    if info.type == arrow_fs.FileType.NotFound:
        raise DataError(
            f"data.source='{uri}' is not there, seen from {os.getcwd()}: give a folder, or a file of annotations"
        )
    if info.type == arrow_fs.FileType.Directory:
        return _of_folder(Files.below(uri, filesystem, inner))
    folder, name = posixpath.split(inner)
    # COCO's annotations are in a folder beside those of the images.
    if name.endswith(".json") and posixpath.basename(folder) == "annotations":
        folder, name = posixpath.dirname(folder), f"annotations/{name}"
    return _of_file(Files.below(uri, filesystem, folder), name)


def _of_file(files: Files, name: str) -> Annotations:
    if name.endswith((".yaml", ".yml")):
        return read_yolo(files, name)
    if name.endswith(".json"):
        return read_coco(files, [name])
    if name.endswith(".parquet"):
        return read_objects(files, [name])
    if name.endswith(METADATA):
        return read_image_folder(files, [name])
    raise DataError(
        f"data.source='{files.uri}' is of no known kind: name a COCO .json, a YOLO .yaml, a .parquet with objects, or "
        "a folder of one of these or of Pascal VOC .xml files"
    )


def _of_folder(files: Files) -> Annotations:
    yolo = [name for name in files.ending(".yaml", ".yml") if is_yolo(files, name)]
    if yolo:
        return read_yolo(files, _only(files, yolo))
    coco = [name for name in files.ending(".json") if is_coco(files, name)]
    if coco:
        return read_coco(files, coco)
    if files.ending(".xml"):
        return read_voc(files, files.ending(".xml"))
    if files.ending(".parquet"):
        return read_objects(files, files.ending(".parquet"))
    if files.ending(METADATA):
        return read_image_folder(files, files.ending(METADATA))
    raise DataError(
        f"data.source='{files.uri}' holds no annotations: put COCO's .json, Pascal VOC's .xml, YOLO's .yaml and .txt, "
        ".parquet files with objects, or metadata.jsonl with objects into it"
    )


def _only(files: Files, names: list[str]) -> str:
    if len(names) > 1:
        raise DataError(
            f"data.source='{files.uri}' holds several YOLO data files ({', '.join(names[:5])}): name the one you mean"
        )
    return names[0]
