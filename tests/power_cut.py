"""What a power cut may leave of a folder: system calls of real processes, replayed on a disk that loses what was not
synced.

`record` runs a script with `power_cut.c` loaded, which writes down each call that changes or reads something below a
folder.
`cuts` replays them and, after every call, yields what may be on the disk then. The disk promises what POSIX does and no
more: the bytes of a file are there after an fsync of the file; that a folder has a name, or has it no longer, is there
after an fsync of the folder. Of what is not synced anything may be there: `LOSSES` are nothing, all, and mixtures.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PLATFORM = HERE.parent / "platform"

# A script calls `ack(words)` when something must survive from now on.
ACK = """
import os

def ack(*words):
    log = os.open(os.environ["POWER_CUT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, ("\\t".join(["ack", *map(str, words)]) + "\\n").encode())
    os.close(log)
"""

Call = list[str]
Tree = dict[str, bytes | None]  # of each path its bytes; of a folder None


def shim(scratch: Path) -> Path:
    """Compile the recorder."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("recording system calls needs Linux and a C compiler")
    library = scratch / "power_cut.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "power_cut.c")]
    subprocess.run([*command, "-ldl", "-pthread"], check=True)
    return library


def record(script: str, root: Path, scratch: Path, *arguments: str) -> list[Call]:
    """Run a script, whose first argument is `root`, an empty folder; return what it changed in there.

    Replayed without any loss, the calls must give what the script has left: nothing has escaped the recorder.
    """
    log = scratch / "calls"
    recorder = {
        "LD_PRELOAD": str(shim(scratch)),
        "POWER_CUT_ROOT": str(root),
        "POWER_CUT_LOG": str(log),
        "PYTHONPATH": str(PLATFORM),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", ACK + script, str(root), *arguments]
    done = subprocess.run(command, env=os.environ | recorder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = [line.split("\t") for line in log.read_text().splitlines()]
    disk = Disk(root)
    for call in calls:
        disk.apply(call)
    left: Tree = {}
    for path in sorted(root.rglob("*")):
        left[path.relative_to(root).as_posix()] = None if path.is_dir() else path.read_bytes()
    assert disk.after(ALL_KEPT) == left
    return calls


# -- the disk ----------------------------------------------------------------------------------------------------------


@dataclass
class File:
    """Bytes: as they are, and as they were synced last."""

    now: bytes = b""
    synced: bytes = b""


@dataclass
class Folder:
    """Names: as they are, as they were synced last, and the changes in between, each of which is made whole."""

    now: dict[str, "Node"] = field(default_factory=dict)
    synced: dict[str, "Node"] = field(default_factory=dict)
    changes: list[dict[str, "Node | None"]] = field(default_factory=list)

    def change(self, changed: dict[str, "Node | None"]) -> None:
        self.changes.append(changed)
        _change(self.now, changed)


Node = File | Folder


def _change(names: dict[str, Node], changed: dict[str, Node | None]) -> None:
    for name, node in changed.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


@dataclass(frozen=True)
class Loss:
    """Which changes of names that are not synced are there after a power cut, and what bytes a file has."""

    name: str
    keeps: Callable[[dict[str, Node | None]], bool]
    bytes_of: Callable[[File], bytes]


class Disk:
    """A folder on a disk that remembers what was synced."""

    def __init__(self, root: Path) -> None:
        self._root, self._top = root, Folder()

    def apply(self, call: Call) -> None:
        match call:
            case ["create", path]:
                self._name(path, File())
            case ["mkdir", path]:
                self._name(path, Folder())
            case ["write", path, offset, data]:
                file, at, new = self._file(path), int(offset), bytes.fromhex(data)
                file.now = file.now[:at].ljust(at, b"\0") + new + file.now[at + len(new) :]
            case ["truncate", path, length]:
                file = self._file(path)
                file.now = file.now[: int(length)].ljust(int(length), b"\0")
            case ["rename", source, target]:
                (old, was), (new, becomes) = self._place(source), self._place(target)
                node = old.now[was]
                if old is new:
                    new.change({was: None, becomes: node})
                else:
                    new.change({becomes: node})
                    old.change({was: None})
            case ["unlink" | "rmdir", path]:
                self._name(path, None)
            case ["sync", path]:
                node = self._node(path)
                node.synced = node.now if isinstance(node, File) else dict(node.now)  # type: ignore[assignment]
                if isinstance(node, Folder):
                    node.changes.clear()
            case ["ack" | "open" | "read", *_]:
                pass
            case _:
                raise AssertionError(f"unknown call {call}")

    def after(self, loss: Loss) -> Tree:
        """Return what is there after a power cut now."""
        return dict(sorted(_survivors(self._top, "", loss)))

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        folder = self._node(parent)
        assert isinstance(folder, Folder), path
        return folder, name

    def _name(self, path: str, node: Node | None) -> None:
        folder, name = self._place(path)
        folder.change({name: node})

    def _node(self, path: str) -> Node:
        assert path == str(self._root) or path.startswith(f"{self._root}/"), f"{path} is not recorded"
        node: Node = self._top
        for name in path.removeprefix(str(self._root)).split("/")[1:]:
            assert isinstance(node, Folder), path
            node = node.now[name]
        return node

    def _file(self, path: str) -> File:
        node = self._node(path)
        assert isinstance(node, File), path
        return node


def _survivors(folder: Folder, path: str, loss: Loss) -> Iterator[tuple[str, bytes | None]]:
    names = dict(folder.synced)
    for changed in folder.changes:
        if loss.keeps(changed):
            _change(names, changed)
    for name, node in names.items():
        if isinstance(node, File):
            yield path + name, loss.bytes_of(node)
        else:
            yield path + name, None
            yield from _survivors(node, f"{path}{name}/", loss)


# -- what is lost ------------------------------------------------------------------------------------------------------


def _torn(file: File) -> bytes:
    """Half of what was written since the last fsync."""
    if file.now.startswith(file.synced):
        return file.now[: (len(file.synced) + len(file.now)) // 2]
    return file.now[: len(file.now) // 2]


def _mixed(seed: int) -> Loss:
    draw = random.Random(seed)
    return Loss(
        f"mixed {seed}",
        keeps=lambda changed: draw.random() < 0.5,
        bytes_of=lambda file: draw.choice([file.now, file.synced, _torn(file)]),
    )


ALL_KEPT = Loss("all kept", lambda changed: True, lambda file: file.now)
LOSSES = [
    ALL_KEPT,
    Loss("all lost", lambda changed: False, lambda file: file.synced),
    Loss("bytes lost", lambda changed: True, lambda file: file.synced),
    Loss("bytes torn", lambda changed: True, _torn),
    Loss("names lost", lambda changed: False, lambda file: file.now),
    Loss(
        "only what was deleted is kept",
        lambda changed: list(changed.values()) == [None],
        lambda file: file.synced,
    ),
    *map(_mixed, range(4)),
]


def cuts(
    calls: list[Call], root: Path, ignores: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, list[Call], Tree]]:
    """Yield each different state after a power cut: how it came about, what was acknowledged, what is there.

    Args:
        ignores: whether to leave out what has a name, or is in a folder of that name; there are fewer states then.
    """
    disk, acks = Disk(root), list[Call]()
    seen = set()
    for number, call in enumerate(calls):
        if call[0] == "ack":
            acks.append(call[1:])
            continue
        if call[0] in ("open", "read"):
            continue
        disk.apply(call)
        for loss in LOSSES:
            tree = {
                path: data
                for path, data in disk.after(loss).items()
                if not any(map(ignores, path.split("/")))
            }
            state = (len(acks), frozenset(tree.items()))
            if state not in seen:
                seen.add(state)
                yield f"after call {number} ({' '.join(call[:3])}), {loss.name}", list(acks), tree


def lay_out(tree: Tree, folder: Path) -> None:
    """Make files and folders of what a power cut has left."""
    for path, data in tree.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)
