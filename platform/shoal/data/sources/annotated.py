"""Images with boxes as the readers of annotations return them, and the files that they are read from.

Depends on file systems and `shoal.data.boxes`; independent of the formats of annotations.
"""

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
from pyarrow import fs as arrow_fs

from shoal.data.boxes import Box, Dropped, Size
from shoal.data.images import SUFFIXES
from shoal.data.sampler import split_named
from shoal.errors import DataError

BOXES = "boxes"


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and what is in it.

    Attributes:
        name: for messages and for the order of rows: the file's path below the folder.
        read: returns the encoded image.
        boxes: that can be used.
        size: that the annotation states, or the image has; by it boxes are in pixels.
        split: that the annotation states; None: it states none.
        nbytes: of the file.
    """

    name: str
    read: Callable[[], bytes] = field(repr=False)
    boxes: tuple[Box, ...]
    size: Size
    split: str | None = None
    nbytes: int = 0

    @property
    def order(self) -> tuple[str, str]:
        """Sorts images of one split alike in all formats, whatever folders they lie in."""
        return posixpath.basename(self.name), self.name


@dataclass(frozen=True)
class Annotations:
    """What a reader found, and what it left out."""

    images: list[AnnotatedImage]
    dropped: Dropped
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """The files below a folder, hidden ones left out.

    Attributes:
        uri: of the source, for messages.
        root: path of the folder on its file system.
        sizes: bytes of each file by its path below the folder.
    """

    uri: str
    filesystem: Any
    root: str
    sizes: dict[str, int]

    @classmethod
    def below(cls, uri: str, filesystem: arrow_fs.FileSystem, root: str) -> "Files":
        """List a folder.

        Raises:
            DataError: it cannot be listed.
        """
        try:
            infos = filesystem.get_file_info(arrow_fs.FileSelector(root, recursive=True))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"data.source='{uri}': '{root}' cannot be listed ({error}): check the address"
            ) from None
        start = len(root.rstrip("/")) + 1
        sizes = {
            info.path[start:]: int(info.size or 0) for info in infos if info.type == arrow_fs.FileType.File
        }
        is_hidden = {name: any(part[0] == "." for part in name.split("/")) for name in sizes}
        return cls(
            uri, filesystem, root, {name: sizes[name] for name in sorted(sizes) if not is_hidden[name]}
        )

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.root.rstrip('/')}/{name}") as stream:
            return bytes(stream.read())

    def text(self, name: str) -> str:
        """Return a file's text.

        Raises:
            DataError: it is no UTF-8.
        """
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"'{name}' of data.source='{self.uri}' is no UTF-8 text ({error}): write it so"
            ) from None

    def reader(self, name: str) -> Callable[[], bytes]:
        return lambda: self.read(name)

    def ending(self, *suffixes: str) -> list[str]:
        return [name for name in self.sizes if name.lower().endswith(suffixes)]

    @cached_property
    def images(self) -> dict[str, list[str]]:
        """The images by the last part of their path."""
        found: dict[str, list[str]] = {}
        for name in self.ending(*SUFFIXES):
            found.setdefault(posixpath.basename(name), []).append(name)
        return found

    def find_image(self, named: str, beside: str) -> str | None:
        """Return the image that an annotation names, None: it is not there.

        Annotations name a file, or a path from some folder: of the files of that name, the one whose path has the most
        in common with the annotated one, then with the annotation's.

        Args:
            beside: the annotation's own path.
        """
        named = named.replace("\\", "/")
        wanted, own = named.split("/"), posixpath.splitext(beside)[0].replace("_", "/").split("/")

        def alike(path: str) -> tuple[int, int, str]:
            parts = path.split("/")
            same = next(
                (n for n in range(min(len(parts), len(wanted))) if parts[-1 - n] != wanted[-1 - n]),
                min(len(parts), len(wanted)),
            )
            return -same, -len(set(parts[:-1]) & set(own)), path

        return min(self.images.get(wanted[-1], []), key=alike, default=None)


class NamedImages:
    """Finds the images that annotations name, each once."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._seen: set[str] = set()
        self._missing: list[str] = []

    def find(self, named: str, beside: str) -> str | None:
        """Return the image that an annotation names; None: it is not there, which `check` refuses.

        Args:
            beside: the annotation's own path.

        Raises:
            DataError: another annotation has named it.
        """
        path = self._files.find_image(named, beside)
        if path is None:
            self._missing.append(named)
            return None
        if path in self._seen:
            refuse_twice(self._files.uri, path)
        self._seen.add(path)
        return path

    def check(self) -> None:
        """Raise a DataError if images are not there."""
        refuse_missing(self._files.uri, self._missing)


def refuse_missing(uri: str, missing: list[str]) -> None:
    """Raise a DataError that counts the images that are annotated and not there, if there are any."""
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"data.source='{uri}': {len(missing)} annotated images are not there: {', '.join(missing[:3])}{more}: "
            "put them beside their annotations, or remove these"
        )


def refuse_twice(uri: str, name: str) -> None:
    raise DataError(
        f"data.source='{uri}': image '{name}' is annotated twice: merge its annotations, or remove one of them"
    )


def split_of_path(path: str) -> str | None:
    """Return the split that a part of a path names, the last one first; words of a file's name count."""
    for part in reversed(posixpath.splitext(path)[0].split("/")):
        for word in (part, *part.replace("-", "_").replace(".", "_").split("_")):
            found = split_named(word.rstrip("0123456789"))
            if found is not None:
                return found
    return None
