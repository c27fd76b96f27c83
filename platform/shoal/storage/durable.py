"""Files and folders on a disk that are whole after a power cut.

The bytes of a file are safe after an fsync of the file, its name after one of the folder that it is in. So everything
is written under a scratch name in the folder where it belongs, synced, renamed, and then that folder is synced. What a
killed process leaves under such names is no content (`is_scratch`), and the next attempt clears it away (`clear`).

It knows paths; it does not know object stores, or what the files hold.
"""

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path

SCRATCH = ".part-"  # what is not yet in its place, or not any more
REPLACED = ".was-"  # before the name of a folder, while another takes its place


def is_scratch(name: str) -> bool:
    """Whether a name is of something that is not in its place."""
    return name.startswith((SCRATCH, REPLACED))


def scratch_beside(path: Path) -> Path:
    """Return a new name in the same folder: what is written there is moved in with one rename."""
    return path.with_name(f"{SCRATCH}{uuid.uuid4().hex[:16]}")


def sync_folder(path: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.EBADF,
        ):  # of some network file systems, which have no such thing
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing."""
    if path.is_dir():
        return
    missing = [path, *(above for above in path.parents if not above.exists())]
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync_folder(made.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file: whatever happens, it has its old bytes or the new ones; the new ones once this has returned."""
    try:
        _write_file(path, data)
    except FileNotFoundError:  # an attempt that began meanwhile has cleared the scratch away
        _write_file(path, data)


def _write_file(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    part = scratch_beside(path)
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def move_in(source: Path, target: Path) -> None:
    """Rename a folder, which may replace another: whatever happens, `clear` finds one of the two whole.

    Args:
        source: on the same file system as the target.
    """
    for folder, _, files in os.walk(source, topdown=False):
        for file in files:
            _sync_file(Path(folder) / file)
        sync_folder(Path(folder))
    make_folder(target.parent)
    was = target.with_name(f"{REPLACED}{target.name}")
    _settle(was)
    if target.exists():
        target.rename(was)
    source.rename(target)
    sync_folder(target.parent)
    if was.exists():
        remove(was)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds: it is whole or gone at any time; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        part = scratch_beside(path)
        path.rename(part)
        sync_folder(path.parent)
        shutil.rmtree(part, ignore_errors=True)  # what is left of it has no name any more
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what killed processes left in a folder, and put back what they were about to replace.

    A write in progress fails, or begins anew: only the one process that works on the folder calls this.
    """
    if not folder.is_dir():
        return
    for name in os.listdir(folder):
        if name.startswith(REPLACED):
            _settle(folder / name)
        elif name.startswith(SCRATCH):
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _settle(was: Path) -> None:
    """End a replacement that was interrupted: the new folder stays if it is in place, else the old one comes back."""
    if was.exists():
        target = was.with_name(was.name.removeprefix(REPLACED))
        if target.exists():
            remove(was)
        else:
            with contextlib.suppress(FileNotFoundError):
                was.rename(target)
            sync_folder(target.parent)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
