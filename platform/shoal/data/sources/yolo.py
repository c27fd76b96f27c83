"""Annotations in YOLO's text files: a line for each box, a YAML file with the classes and the folders of each split."""

import io
import posixpath
from typing import Any

import yaml

from shoal.data.boxes import Box, Dropped, Size, four_numbers, usable
from shoal.data.images import SUFFIXES, upright_size
from shoal.data.sampler import SPLITS, split_named
from shoal.data.sources.annotated import AnnotatedImage, Annotations, Files, refuse_missing, refuse_twice
from shoal.errors import DataError


def is_yolo(files: Files, name: str) -> bool:
    """Whether a YAML file describes such data."""
    try:
        data = yaml.safe_load(files.text(name))
    except yaml.YAMLError:
        return False
    return isinstance(data, dict) and "names" in data and "train" in data


def read_yolo(files: Files, name: str) -> Annotations:
    """Read the images that a YAML file names, and the text file of each; an image without one has no objects.

    Raises:
        DataError: the YAML file is damaged, images are missing or listed twice, or a line is no box.
    """
    where = f"'{name}' of data.source='{files.uri}'"
    try:
        data = yaml.safe_load(files.text(name))
        listed = data["names"]
        classes = {
            int(key): str(value)
            for key, value in (listed if isinstance(listed, dict) else dict(enumerate(listed))).items()
        }
        places = {split: data[key] for key in data if (split := split_named(key)) and data[key]}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} is no YOLO data file ({type(error).__name__}: {error}): it needs names, train, and val"
        ) from None
    dropped, images = Dropped(), []
    missing: list[str] = []
    seen: set[str] = set()
    for split in (split for split in SPLITS if split in places):
        for path in _images_of(files, name, data, places[split], missing):
            if path in seen:
                refuse_twice(files.uri, path)
            seen.add(path)
            size = _size(files, path)
            boxes = usable(_boxes(files, path, size, classes), size, path, dropped)
            images.append(
                AnnotatedImage(path, files.reader(path), tuple(boxes), size, split, files.sizes[path])
            )
    refuse_missing(files.uri, missing)
    if not images:
        raise DataError(
            f"{where} names folders without images: train, val and test are below the file's own folder"
        )
    return Annotations(images, dropped)


def _images_of(files: Files, name: str, data: dict[str, Any], place: object, missing: list[str]) -> list[str]:
    """Return the images of a split: of a folder, of a list of images, or of several of these."""
    found: list[str] = []
    for one in place if isinstance(place, list) else [place]:
        path = _resolved(files, name, str(data.get("path") or ""), str(one))
        if path in files.sizes and path.endswith(".txt"):
            for line in filter(None, map(str.strip, files.text(path).splitlines())):
                image = files.find_image(line, path)
                (found if image else missing).append(image or line)
        else:
            inside = [
                image for image in files.ending(*SUFFIXES) if image.startswith(f"{path}/" if path else "")
            ]
            found += inside
            if not inside:
                missing.append(f"{one}/*")
    return found


def _resolved(files: Files, name: str, root: str, place: str) -> str:
    """Return a place below the listed folder: exporters write roots of other machines, or ../ of none."""
    beside = posixpath.dirname(name)
    tried = [posixpath.join(beside, root, place), posixpath.join(beside, place)]
    tried += [
        posixpath.join(beside, place.lstrip("./")),
        posixpath.join(beside, posixpath.basename(root), place),
    ]
    for path in map(posixpath.normpath, tried):
        if path in files.sizes or any(one.startswith(f"{path}/") for one in files.sizes):
            return path
    return place


def _size(files: Files, path: str) -> Size:
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(files.read(path))) as image:
            return Size(*upright_size(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"data.source='{files.uri}': image '{path}' cannot be read ({error}): fix or remove it"
        ) from None


def _boxes(files: Files, path: str, size: Size, classes: dict[int, str]) -> list[Box]:
    """Return the boxes of an image's text file; a polygon becomes the box around it."""
    name = _label_file(files, path)
    found = []
    for number, line in enumerate(files.text(name).splitlines() if name else (), 1):
        words = line.split()
        if not words:
            continue
        title = f"{path} (line {number})"
        label = classes.get(int(words[0])) if words[0].isdecimal() else None
        if label is None:
            raise DataError(
                f"'{name}', line {number} is of class {words[0]}, which names does not have: add it there"
            )
        found.append(Box(label, *_sides(words[1:], title, size)))
    return found


def _sides(words: list[str], image: str, size: Size) -> tuple[float, float, float, float]:
    if len(words) > 5 and len(words) % 2 == 0:
        try:
            x, y = [float(word) for word in words[::2]], [float(word) for word in words[1::2]]
        except ValueError:
            raise DataError(
                f"image '{image}' has the polygon {words!r}, not all of which are numbers; fix its annotation"
            ) from None
        left, top, right, bottom = min(x), min(y), max(x), max(y)
    else:
        middle_x, middle_y, width, height = four_numbers(words, image)
        left, right = middle_x - width / 2, middle_x + width / 2
        top, bottom = middle_y - height / 2, middle_y + height / 2
    return left * size.width, top * size.height, right * size.width, bottom * size.height


def _label_file(files: Files, path: str) -> str | None:
    """Return the text file of an image: in the folder labels that is beside its folder images, or beside itself."""
    stem = posixpath.splitext(path)[0]
    parts = stem.split("/")
    for place in (place for place in reversed(range(len(parts) - 1)) if parts[place] == "images"):
        other = "/".join([*parts[:place], "labels", *parts[place + 1 :]]) + ".txt"
        if other in files.sizes:
            return other
    return f"{stem}.txt" if f"{stem}.txt" in files.sizes else None
