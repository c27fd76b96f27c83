"""Annotations as the Hub's data sets have them: of each image `objects` with bbox and category.

They are columns of parquet files, the images encoded in another, or lines of `metadata.jsonl`, which name files beside.
"""

import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shoal.data.boxes import Box, Dropped, Size, four_numbers, usable
from shoal.data.images import upright_size
from shoal.data.sources.annotated import AnnotatedImage, Annotations, Files, NamedImages, split_of_path
from shoal.errors import DataError

METADATA = "metadata.jsonl"
OBJECTS, BOX = "objects", "bbox"
CATEGORIES = ("category", "categories", "label", "category_id")  # what the class is called in `objects`


def read_objects(files: Files, names: list[str]) -> Annotations:
    """Read parquet files; each names its split, or all are of none. Boxes are left, top, width and height, in pixels.

    Raises:
        DataError: a file has no such columns, a class has no name, or a box has not four numbers.
    """
    splits = _splits(names)
    dropped, images = Dropped(), []
    for name in names:
        images += _rows(files, name, splits[name], dropped)
    return Annotations(images, dropped)


def read_image_folder(files: Files, names: list[str]) -> Annotations:
    """Read files of lines {"file_name": ..., "objects": ...}; each names its split by its folder, or all are of none.

    Raises:
        DataError: a line is no such object, images are missing or annotated twice, or as `read_objects`.
    """
    splits = _splits(names)
    dropped, images, named = Dropped(), [], NamedImages(files)
    for name in names:
        where = f"'{name}' of data.source='{files.uri}'"
        for number, line in enumerate(files.text(name).splitlines(), 1):
            if not line.strip():
                continue
            title, objects = _listed(line, f"line {number} of {where}")
            path = named.find(title, name)
            if path is None:
                continue
            read = files.reader(path)
            size = _size(read, path)
            boxes = tuple(usable(_boxes(objects, [], path, where), size, path, dropped))
            images.append(AnnotatedImage(path, read, boxes, size, splits[name], files.sizes[path]))
    named.check()
    return Annotations(images, dropped)


def _splits(names: list[str]) -> dict[str, str | None]:
    """Return the split that each file names, or that all are of none."""
    splits = {name: split_of_path(name) for name in names}
    return splits if all(splits.values()) else dict.fromkeys(names)


def _listed(line: str, where: str) -> tuple[str, Any]:
    """Return the image of a line and its objects."""
    try:
        item = json.loads(line)
        return str(item["file_name"]), item[OBJECTS]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where} is no image with objects ({type(error).__name__}: {error}): a line is "
            '{"file_name": ..., "objects": {"bbox": [[left, top, width, height], ...], "category": [...]}}'
        ) from None


def _rows(files: Files, name: str, split: str | None, dropped: Dropped) -> list[AnnotatedImage]:
    where = f"'{name}' of data.source='{files.uri}'"
    try:
        file = pq.ParquetFile(io.BytesIO(files.read(name)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where} is no parquet file ({error}): fix or remove it") from None
    column = _image_column(file.schema_arrow, where)
    labels = _names(file.schema_arrow)
    found: list[AnnotatedImage] = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=[column, OBJECTS])
        rows = zip(table.column(column).to_pylist(), table.column(OBJECTS).to_pylist(), strict=True)
        for number, (image, objects) in enumerate(rows, len(found)):
            title = f"{name}:{number}"
            read, nbytes = _reader(image, title)
            size = _size(read, title)
            boxes = usable(_boxes(objects, labels, title, where), size, title, dropped)
            found.append(AnnotatedImage(title, read, tuple(boxes), size, split, nbytes))
    return found


def _image_column(schema: pa.Schema, where: str) -> str:
    columns = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or (pa.types.is_struct(field.type) and "bytes" in {inner.name for inner in field.type})
    ]
    if OBJECTS not in schema.names or len(columns) != 1:
        raise DataError(
            f"{where} has the columns {', '.join(schema.names)}: it needs one of images, and '{OBJECTS}' with "
            f"{BOX} and category"
        )
    return str(columns[0])


def _names(schema: pa.Schema) -> list[str]:
    """Return the names of the classes, by number, as the data set's features state them; none if they do not."""
    stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features: Any = stated.get("info", {}).get("features", {}).get(OBJECTS, {})
    features = features.get("feature", features)
    if isinstance(features, list):
        features = features[0]
    for name in CATEGORIES:
        feature = features.get(name, {})
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        if "names" in feature:
            return list(map(str, feature["names"]))
    return []


def _reader(image: Any, title: str) -> tuple[Callable[[], bytes], int]:
    data = image.get("bytes") if isinstance(image, dict) else image
    if data is None:
        raise DataError(f"image '{title}' is missing: its row holds no bytes; write them into the data set")
    return partial(bytes, data), len(data)


def _size(read: Callable[[], bytes], title: str) -> Size:
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(read())) as image:
            return Size(*upright_size(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"image '{title}' cannot be read ({error}): fix or remove it") from None


def _boxes(objects: Any, names: list[str], title: str, where: str) -> list[Box]:
    """Return the boxes of a row, whose objects are a struct of lists, or a list of structs."""
    if isinstance(objects, list):
        objects = {key: [one[key] for one in objects] for key in (objects[0] if objects else ())}
    objects = objects or {}
    key = next((name for name in CATEGORIES if name in objects), None)
    sides = objects.get(BOX) or []
    labels = (objects.get(key) or []) if key else []
    if len(sides) != len(labels):
        raise DataError(
            f"image '{title}' has {len(sides)} boxes and {len(labels)} classes: {OBJECTS} needs {BOX} and category, "
            "each with an entry for each object"
        )
    found = []
    for box, label in zip(sides, labels, strict=True):
        left, top, width, height = four_numbers(box, title)
        if isinstance(label, int) and label not in range(len(names)):
            raise DataError(
                f"{where}: image '{title}' has an object of class {label}, which has no name: write {OBJECTS}' "
                "category as text, or as a ClassLabel with names"
            )
        name = names[label] if isinstance(label, int) else str(label)
        found.append(Box(name, left, top, left + width, top + height))
    return found
