"""A file that exactly one of several processes creates, on a disk or in an object store.

On a disk the file system decides: a hard link, or `O_EXCL` where there are no links. pyarrow's object stores have no
conditional put, so there a process writes a claim beside the file, lists the claims, and creates the file only if it
finds no other claim and then no file. Else it withdraws and tries again after a random pause. A store lists what was
written before (S3, GCS and MinIO do), so of two processes the one that claims later sees the other's claim, or its
file: both may withdraw, never do both create.
"""

import os
import random
import time
import uuid
from pathlib import Path

from shoal.storage.durable import scratch_beside, sync_folder
from shoal.storage.failures import explained
from shoal.storage.folder import Folder

# A claim lives for a few requests. One that is seen for longer was left by a process that died.
CLAIM_S = 30.0
PAUSE_S = 0.5


def create_file(folder: Folder, name: str, data: bytes) -> bool:
    """Create a file, whole; return False, and change nothing, if it is there.

    Raises:
        StorageError: the disk is full or fails, or the object store was away for too long.
    """
    local = folder.local(name)
    if local is None:
        return _create_object(folder, name, data)
    with explained(str(local)):
        return _create_local(local, data)


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = scratch_beside(path)
    try:
        _write(part, data)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here; a reader may see the file before its end
            _write(path, data)
        sync_folder(path.parent)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create_object(folder: Folder, name: str, data: bytes) -> bool:
    parent, _, file = name.rpartition("/")
    prefix, own = f".{file}.claim-", f".{file}.claim-{uuid.uuid4().hex}"
    seen: dict[str, float] = {}
    while not folder.exists(name):
        folder.write(f"{parent}/{own}", b"claim")
        try:
            others = [found for found in folder.names(parent) if found.startswith(prefix) and found != own]
            # After the listing: a process whose claim is gone by now has created the file before it withdrew.
            if not others and not folder.exists(name):
                folder.write(name, data)
                return True
        finally:
            folder.delete(f"{parent}/{own}")
        for other in others:
            if time.monotonic() - seen.setdefault(other, time.monotonic()) > CLAIM_S:
                folder.delete(f"{parent}/{other}")
        time.sleep(random.uniform(0, PAUSE_S))
    return False
