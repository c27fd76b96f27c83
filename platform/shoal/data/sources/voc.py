"""Annotations in Pascal VOC's XML: a file for each image, and lists of the images of each split."""

import posixpath
from xml.etree import ElementTree

from shoal.data.boxes import Box, Dropped, Size, four_numbers, usable
from shoal.data.sampler import split_named
from shoal.data.sources.annotated import AnnotatedImage, Annotations, Files, NamedImages, split_of_path
from shoal.errors import DataError

SIDES = ("xmin", "ymin", "xmax", "ymax")
SET_FOLDER = "ImageSets/Main/"


def read_voc(files: Files, names: list[str]) -> Annotations:
    """Read XML files.

    Pixels are counted from 1 and both ends belong to a box, as in the Visual Object Classes challenge: the box 1 to 10
    is from 0 to 10 here.

    Raises:
        DataError: a file is damaged, images are missing or annotated twice, or a box lacks a side.
    """
    splits = _listed_splits(files) or _splits_of_folders(names)
    dropped, images, named = Dropped(), [], NamedImages(files)
    for name in names:
        stem = posixpath.splitext(posixpath.basename(name))[0]
        title, boxes, size = _annotation(files, name)
        path = named.find(title, name)
        split = splits.get(stem, splits.get(name))
        if path is None or (splits and split is None):  # in no list, as images of other years' challenges
            continue
        kept = tuple(usable(boxes, size, title, dropped))
        images.append(AnnotatedImage(path, files.reader(path), kept, size, split, files.sizes[path]))
    named.check()
    return Annotations(images, dropped)


def _listed_splits(files: Files) -> dict[str, str]:
    """Return the split of each image by its name without an ending, as `ImageSets/Main` lists them."""
    found: dict[str, str] = {}
    for name in files.ending(".txt"):
        folder, _, stem = posixpath.splitext(name)[0].rpartition("/")
        split = split_named(stem)
        if f"{folder}/".endswith(SET_FOLDER) and split:
            found |= {line.split()[0]: split for line in files.text(name).splitlines() if line.strip()}
    return found


def _splits_of_folders(names: list[str]) -> dict[str, str]:
    """Return the split of each file, where all lie in folders that name one."""
    found = {name: split_of_path(posixpath.dirname(name)) for name in names}
    return {name: split for name, split in found.items() if split} if all(found.values()) else {}


def _annotation(files: Files, name: str) -> tuple[str, list[Box], Size]:
    """Return the image that a file is of, its boxes, and its size."""
    where = f"'{name}' of data.source='{files.uri}'"
    try:
        root = ElementTree.fromstring(files.read(name))
        title = root.findtext("filename") or posixpath.splitext(posixpath.basename(name))[0] + ".jpg"
        size = Size(*(int(float(_text(root, f"size/{side}"))) for side in ("height", "width")))
        return title, [_box(one, title) for one in root.findall("object")], size
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{where} is no Pascal VOC XML ({error}): it needs filename, size/width, size/height, and of each object "
            "name and bndbox"
        ) from None


def _box(one: ElementTree.Element, image: str) -> Box:
    label = _text(one, "name").strip()
    found = [value for side in SIDES if (value := one.findtext(f"bndbox/{side}")) is not None]
    left, top, right, bottom = four_numbers(found, image)
    if right <= left or bottom <= top:  # which counting from 1 would give an area
        return Box(label, left, top, left, top)
    return Box(label, left - 1, top - 1, right, bottom)


def _text(one: ElementTree.Element, path: str) -> str:
    found = one.findtext(path)
    if found is None:
        raise ValueError(f"it has no {path}")
    return found
