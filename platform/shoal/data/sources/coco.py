"""Annotations in COCO's JSON: images, categories and annotations, a file for each split or for all."""

import json
from typing import Any

from shoal.data.boxes import Box, Dropped, Size, four_numbers, usable
from shoal.data.sources.annotated import AnnotatedImage, Annotations, Files, NamedImages, split_of_path
from shoal.errors import DataError


def is_coco(files: Files, name: str) -> bool:
    """Whether a JSON file holds annotations of this kind."""
    head = files.text(name)
    return '"images"' in head and '"categories"' in head and '"annotations"' in head


def read_coco(files: Files, names: list[str]) -> Annotations:
    """Read JSON files.

    Args:
        names: of the files; with several, each names its split.

    Raises:
        DataError: a file is damaged, images are missing or annotated twice, a box has not four numbers, ids are
            not unique, or an annotation is of no image or category.
    """
    dropped, images, named = Dropped(), [], NamedImages(files)
    for name in names:
        split = split_of_path(name) if len(names) > 1 else None
        if len(names) > 1 and split is None:
            raise DataError(
                f"data.source='{files.uri}' has {len(names)} files of annotations, and '{name}' names no split: "
                "name one file, or call them instances_train.json, instances_val.json, instances_test.json"
            )
        for title, boxes, size in _images(files, name, dropped):
            path = named.find(title, name)
            if path is not None:
                images.append(AnnotatedImage(path, files.reader(path), boxes, size, split, files.sizes[path]))
    named.check()
    return Annotations(images, dropped)


def _images(files: Files, name: str, dropped: Dropped) -> list[tuple[str, tuple[Box, ...], Size]]:
    """Return of each image its name, its boxes and its size."""
    where = f"'{name}' of data.source='{files.uri}'"
    try:
        data = json.loads(files.text(name))
        labels = {number: str(one["name"]) for number, one in _by_id(data, "categories", where).items()}
        listed = _by_id(data, "images", where)
        boxes: dict[Any, list[Box]] = {number: [] for number in listed}
        for annotation in data["annotations"]:
            _add(annotation, boxes, labels, listed, dropped, where)
        return [_image(one, boxes[number], dropped) for number, one in listed.items()]
    except DataError:
        raise  # which is a ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} is no COCO JSON ({type(error).__name__}: {error}): it needs images with id, file_name, width and "
            "height, categories with id and name, and annotations with image_id, category_id and bbox"
        ) from None


def _by_id(data: dict[str, Any], kind: str, where: str) -> dict[Any, dict[str, Any]]:
    """Return the images or categories by their ids."""
    found: dict[Any, dict[str, Any]] = {}
    for one in data[kind]:
        if one["id"] in found:
            raise DataError(f"{where} has several {kind} with id {one['id']}: give each an id of its own")
        found[one["id"]] = one
    return found


def _add(
    annotation: dict[str, Any],
    boxes: dict[Any, list[Box]],
    labels: dict[Any, str],
    listed: dict[Any, Any],
    dropped: Dropped,
    where: str,
) -> None:
    image, category = annotation["image_id"], annotation["category_id"]
    if image not in listed or category not in labels:
        what = f"image {image}" if image not in listed else f"category {category}"
        raise DataError(
            f"{where} has an annotation of {what}, which it does not list: add it, or remove the annotation"
        )
    title = str(listed[image]["file_name"])
    if annotation.get("iscrowd"):
        dropped.add("it is a crowd (iscrowd), not one object", title)
        return
    left, top, width, height = four_numbers(annotation["bbox"], title)
    boxes[image].append(Box(labels[category], left, top, left + width, top + height))


def _image(one: dict[str, Any], boxes: list[Box], dropped: Dropped) -> tuple[str, tuple[Box, ...], Size]:
    title, size = str(one["file_name"]), Size(int(one["height"]), int(one["width"]))
    return title, tuple(usable(boxes, size, title, dropped)), size
