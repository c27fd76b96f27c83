"""What does not fit: the right status, a message with row and column, and a server that goes on."""

import base64
import json
import math
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

GOOD = {"size": [1.0, 2.0], "count": [3, 4], "color": ["red", "blue"]}


def with_value(column, value):
    return {**GOOD, column: [GOOD[column][0], value]}


REFUSED = {
    "missing column": ({"size": [1.0], "count": [3]}, 422, None, "color", "column 'color' is missing"),
    "misspelled column": (
        {"size": [1.0], "count": [3], "colour": ["red"]}, 422, None, "color", "did you mean 'colour'",
    ),
    "text for a number": (with_value("size", "many"), 422, 1, "size", "'many' is not a number or null"),
    "object for a number": (with_value("size", {"a": 1}), 422, 1, "size", "is not a number"),
    "boolean for a number": (with_value("size", True), 422, 1, "size", "True is not a number"),
    "huge number": (with_value("size", 1e300), 422, 1, "size", "1e+300"),
    "number beyond float64": (with_value("size", 10**400), 422, 1, "size", "number of a usual size"),
    "infinity": (with_value("size", math.inf), 422, 1, "size", "inf"),
    "list for a category": (with_value("color", ["red"]), 422, 1, "color", "is not a text"),
    "a column that is no list": ({**GOOD, "size": 3}, 422, None, "size", "a column is a list"),
    "columns of different lengths": ({**GOOD, "size": [1.0]}, 422, 1, "size", "1 values"),
    "no rows": ({name: [] for name in GOOD}, 422, None, None, "no rows"),
    "a list": ([1, 2], 400, None, None, "send an object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_do_not_fit_are_refused_with_row_and_column(serving, table, case):
    body, status, row, column, words = REFUSED[case]
    with serving(table) as client:
        found, answer, _ = client.post("/predict", body)
        assert client.post("/predict", GOOD)[0] == 200
    error = answer["error"]
    assert (found, error.get("row"), error.get("column")) == (status, row, column), error
    assert words in error["message"]


def test_nan_is_a_missing_value_and_other_columns_are_mentioned(serving, table):
    with serving(table) as client:
        status, answer, headers = client.post("/predict", {**with_value("size", math.nan), "extra": [1, 2]})
        missing = client.post("/predict", with_value("size", None))[1]
    assert status == 200
    assert answer["probabilities"] == missing["probabilities"]
    assert headers["Shoal-Ignored-Columns"] == "extra"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/invocations", {"rows": []}, 400, "exactly one of dataframe_split"),
        ("/invocations", {"inputs": GOOD, "instances": []}, 400, "it has inputs and instances"),
        ("/invocations", {"dataframe_records": [{"size": 1}]}, 422, "column 'count' is missing"),
        ("/invocations", {"dataframe_split": {"columns": ["size"], "data": [[1, 2]]}}, 422, "row 0 is a list of 2"),
        ("/invocations", {"dataframe_split": {"columns": list(GOOD), "data": []}}, 422, "no rows"),
        ("/invocations", {"instances": [1, 2]}, 400, "name them"),
        ("/invocations", {"inputs": GOOD, "params": {"heat": 1}}, 422, "'heat' is not known"),
        ("/v2/models/m/infer", {"inputs": 1}, 400, "inputs is 1"),
        ("/v2/models/m/infer", {"inputs": [{"name": "size"}]}, 400, "shape of input 'size'"),
        (
            "/v2/models/m/infer",
            {"inputs": [{"name": "size", "shape": [2], "datatype": "FP64", "data": [1]}]},
            400, "has 1 values: it needs 2",
        ),
        ("/models/n/predict", GOOD, 404, "no model 'n'"),
        ("/predictions", GOOD, 404, "did you mean '/predict'"),
    ],
)  # fmt: skip
def test_other_forms_are_refused_in_words_of_their_protocol(serving, table, path, body, status, words):
    with serving(table) as client:
        found, answer, _ = client.post(path, body)
    assert found == status, answer
    assert words in json.dumps(answer)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"size": [1', 400, "no JSON"),
        (b"\xff\xfe", 400, "no"),
        (b"", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"9" * 5000, 400, "no JSON"),
    ],
)
def test_a_body_that_is_no_json_is_refused(serving, table, body, status, words):
    with serving(table) as client:
        found, answer, _ = client.post("/predict", body)
        assert client.post("/predict", GOOD)[0] == 200
    assert found == status
    assert words in answer["error"]["message"]


def test_other_types_and_methods_are_refused(serving, table):
    with serving(table) as client:
        assert client.post("/predict", b"a,b", Content_Type="text/csv")[0] == 415
        status, answer, _ = client.get("/predict")
    assert (status, "does not take GET" in answer["error"]["message"]) == (405, True)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_is_refused_without_being_kept(serving, table, is_chunked):
    part = b" " * 1_000_000
    body = iter([part] * 100) if is_chunked else part * 100
    with serving(table, max_body_mb=1) as client:
        status, answer, _ = client.post("/predict", body)
        assert client.post("/predict", GOOD)[0] == 200
    assert (status, "larger than 1 MB" in answer["error"]["message"]) == (413, True)


def test_too_many_rows_are_refused(serving, table):
    with serving(table, max_rows=1) as client:
        assert client.post("/predict", GOOD)[0] == 413


def test_a_slow_sender_is_cut_off_and_others_are_answered_meanwhile(serving, table):
    with serving(table, timeout_s=1) as client, socket.create_connection(("127.0.0.1", client.port)) as slow:
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nx-request-timeout-seconds: 99\r\nContent-Length: 50\r\n\r\n{"
        slow.sendall(head)
        since = time.monotonic()
        assert client.post("/predict", GOOD)[0] == 200
        assert b" 408 " in slow.recv(100)
        assert time.monotonic() - since < 10


def test_a_token_is_needed_where_the_environment_has_one(serving, table, monkeypatch):
    monkeypatch.setenv("SHOAL_SERVE_TOKEN", "secret")
    with serving(table) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}):
            status, answer, found = client.post("/predict", GOOD, **headers)
            assert (status, "WWW-Authenticate" in found) == (401, True)
            assert "secret" not in json.dumps(answer)
        assert client.get("/nowhere")[0] == 401
        assert client.get("/health")[0] == client.get("/ready")[0] == 200
        assert client.post("/predict", GOOD, Authorization="Bearer secret")[0] == 200
        basic = base64.b64encode(b"me:secret").decode()
        assert client.post("/predict", GOOD, Authorization=f"Basic {basic}")[0] == 200


def test_more_than_the_queue_holds_is_503_with_the_seconds_to_wait_and_the_rest_is_answered(serving, table):
    body = {name: values * 200 for name, values in GOOD.items()}
    with serving(table, max_queue=2) as client, ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda _: client.post("/predict", body), range(240)))
        assert client.post("/predict", GOOD)[0] == 200
    statuses = Counter(status for status, _, _ in found)
    assert statuses.keys() == {200, 503}, statuses
    refused = [(answer, headers) for status, answer, headers in found if status == 503]
    assert all(int(headers["Retry-After"]) >= 1 for _, headers in refused)
    assert all("serve.max_queue" in json.dumps(answer) for answer, _ in refused), refused[0]
