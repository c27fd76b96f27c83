"""A folder whose JSON files are records: read whole or reported as damaged, written whole or not at all."""

import logging
from typing import Any, TypeVar

from shoal.errors import DamagedFileError
from shoal.storage.folder import Folder
from shoal.storage.records import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)

logger = logging.getLogger(__name__)


class RecordFolder(Folder):
    """A folder of records (`shoal.storage.records`)."""

    def load(self, kind: type[AnyRecord], inside: str = "") -> AnyRecord | None:
        """Return a record of this folder, or None when its file is absent.

        Args:
            inside: the folder below this one that the file is in.

        Raises:
            DamagedFileError: the file is empty, truncated or holds something else; it is named, with a remedy.
        """
        path = self.path_of(kind, inside)
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None
        try:
            return kind.parse(data)
        except ValueError as error:
            raise DamagedFileError(f"'{self.uri}/{path}' is damaged ({error}): {kind.remedy}") from None

    def load_or_new(self, kind: type[AnyRecord], inside: str = "") -> AnyRecord:
        """Return a record that can be found out again: a damaged file is deleted, with a warning.

        Args:
            kind: all its fields have defaults.
        """
        try:
            return self.load(kind, inside) or kind()
        except DamagedFileError as error:
            logger.warning("%s (done)", error)
            self.delete(self.path_of(kind, inside))
            return kind()

    def save(self, record: Record, inside: str = "") -> None:
        """Write a record, whole or not at all."""
        self.write(_join(inside, record.file), record.to_bytes())

    def update(self, kind: type[AnyRecord], **changes: Any) -> AnyRecord:
        """Change fields of a record, which is made where it is absent, and return it.

        Raises:
            DamagedFileError: the file is damaged.
            ValueError: a value is not of its field's type.
        """
        earlier = self.load(kind)
        record = kind(**changes) if earlier is None else earlier.replace(**changes)
        if record != earlier:
            self.save(record)
        return record

    def path_of(self, kind: type[Record], inside: str = "") -> str:
        """Return where a record is read: its file, or where there is none that of an earlier version."""
        path = _join(inside, kind.file)
        if kind.former_file is None or self.exists(path):
            return path
        former = _join(inside, kind.former_file)
        return former if self.exists(former) else path


def _join(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name
