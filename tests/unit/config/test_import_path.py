import sys

import pytest

from shoal.config.import_path import call_with, find, is_path, search_also, search_path
from shoal.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mine:build", True),
        ("my.package.module:Builder", True),
        ("mine:rows?path=a/b.csv", True),
        ("csv:data.csv", False),
        ("s3://bucket/key", False),
        ("mlp", False),
        ("my-package:build", False),
        (":build", False),
        ("mine:", False),
    ],
)
def test_import_paths_are_distinguished_from_other_names(text, expected):
    assert is_path(text) is expected


def test_a_function_in_the_working_directory_is_found(user_module):
    name = user_module("def double(x):\n    return 2 * x\n")
    assert find(f"{name}:double", "model.name")(4) == 8


@pytest.mark.parametrize(
    ("text", "name", "pieces"),
    [
        ("def build(): pass", "biuld", ["has no 'biuld'", "did you mean 'build'"]),
        ("build = 3", "build", ["'build' is a int", "cannot be called"]),
        ("import not_there_at_all", "build", ["does not import", "ModuleNotFoundError", "not_there_at_all"]),
        ("1 / 0", "build", ["does not import", "ZeroDivisionError"]),
        ("def build(:", "build", ["does not import", "SyntaxError"]),
    ],
)
def test_an_import_error_names_the_key_and_the_reason(user_module, text, name, pieces):
    module = user_module(text)
    with pytest.raises(UserError) as caught:
        find(f"{module}:{name}", "data.source")
    assert all(piece in str(caught.value) for piece in [f"data.source='{module}:{name}'", *pieces])


def test_a_missing_module_is_reported():
    with pytest.raises(UserError, match="module 'no_such_module' does not import"):
        find("no_such_module:build", "model.name")


def test_modules_are_found_where_another_process_found_them(tmp_path, monkeypatch):
    (tmp_path / "found_elsewhere.py").write_text("def build():\n    return 1\n")
    mine = list(sys.path)
    monkeypatch.setattr(sys, "path", [*mine, str(tmp_path), str(tmp_path / "gone")])
    folders = search_path()
    monkeypatch.setattr(sys, "path", list(mine))
    search_also(folders)
    assert sys.path[: len(mine)] == mine, "its own come first"
    assert str(tmp_path / "gone") not in sys.path
    assert find("found_elsewhere:build", "model.name")() == 1


def test_offered_arguments_are_passed_only_when_the_signature_names_them():
    offered = {"width": 1, "depth": 2}
    assert call_with(lambda width: width, offered, {}) == 1
    assert call_with(lambda **every: every, offered, {"extra": 3}) == {"width": 1, "depth": 2, "extra": 3}
    assert call_with(lambda: "none", offered, {}) == "none"


def test_given_arguments_beat_offered_ones():
    assert call_with(lambda width: width, {"width": 1}, {"width": 5}) == 5


def test_a_given_argument_that_the_function_does_not_take_is_refused_with_the_nearest():
    def build(dropout=0.0, width=1):
        return dropout, width

    with pytest.raises(UserError, match=r"build\(\) takes no 'dropuot' \(did you mean 'dropout'\?\)"):
        call_with(build, {}, {"dropuot": 0.1})
