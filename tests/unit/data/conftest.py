"""Shared by the tests of data: files in a working directory of their own."""

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, to write files into."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
