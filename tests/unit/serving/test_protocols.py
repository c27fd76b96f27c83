"""The same rows by every protocol, against `Predictor.predict`, over HTTP."""

import json
import socket

import numpy as np
import pandas as pd
import pytest

from shoal.serving.protocols.v2 import _tensor
from shoal.serving.server import listen

ROWS = {
    "size": [9.5, None, 1e6, -3.25, 10.0],
    "count": [3, 4, None, 0, 2],
    "color": ["red", "purple", None, "blue", "green"],
}


@pytest.fixture
def expected(table):
    return table.predict(pd.DataFrame(ROWS))


def assert_same(predictions, probabilities, expected):
    assert predictions == expected["prediction"].tolist()
    np.testing.assert_allclose(probabilities, expected["probabilities"].tolist(), rtol=0, atol=1e-6)


def records():
    return [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]


@pytest.mark.parametrize(
    "body",
    [
        {
            "dataframe_split": {
                "columns": list(ROWS),
                "data": [list(r) for r in zip(*ROWS.values(), strict=True)],
            }
        },
        {"dataframe_records": records()},
        {"inputs": ROWS},
        {"inputs": records()},
        {"instances": records()},
    ],
    ids=lambda body: next(iter(body)),
)
def test_each_form_of_invocations_predicts_as_the_model_does(serving, table, expected, body):
    with serving(table) as client:
        status, answer, headers = client.post("/invocations", body)
    assert status == 200, answer
    found = answer["predictions"]
    assert_same([r["prediction"] for r in found], [r["probabilities"] for r in found], expected)
    assert (headers["Shoal-Version"], headers["Shoal-Digest"]) == ("1", "0123456789ab")


def test_predict_takes_and_returns_columns(serving, table, expected):
    with serving(table) as client:
        status, answer, _ = client.post("/models/m/predict", ROWS)
    assert status == 200
    assert_same(answer["prediction"], answer["probabilities"], expected)
    assert answer["classes"] == [0, 1]
    assert answer["model"] == {"name": "m", "version": "1", "digest": "0123456789ab"}


def test_v2_takes_and_returns_tensors(serving, table, expected):
    tensors = [
        {"name": name, "shape": [5, 1], "datatype": "BYTES" if name == "color" else "FP64", "data": values}
        for name, values in ROWS.items()
    ]
    body = {"id": "mine", "inputs": tensors}
    with serving(table) as client:
        status, answer, _ = client.post("/v2/models/m/versions/1/infer", body)
        assert client.post("/v2/models/m/versions/7/infer", body)[0] == 404
        described = client.get("/v2/models/m")[1]
        only = {**body, "outputs": [{"name": "prediction"}]}
        assert [o["name"] for o in client.post("/v2/models/m/infer", only)[1]["outputs"]] == ["prediction"]
    assert status == 200, answer
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "m", "1")
    found = {o["name"]: np.reshape(o["data"], o["shape"]) for o in answer["outputs"]}
    assert_same(found["prediction"].tolist(), found["probabilities"], expected)
    assert [o["datatype"] for o in answer["outputs"]] == ["INT64", "FP64"]
    assert [i["datatype"] for i in described["inputs"]] == ["FP64", "FP64", "BYTES"]


def test_arrays_are_predicted_alike_by_each_protocol(serving, arrays):
    block = np.random.default_rng(1).random((3, 4, 4))
    expected = arrays.predict(block)["probabilities"].tolist()
    tensor = {"name": "image", "shape": [3, 4, 4], "datatype": "FP64", "data": block.ravel().tolist()}
    with serving(arrays) as client:
        for key in ("inputs", "instances"):
            _, answer, _ = client.post("/invocations", {key: block.tolist()})
            np.testing.assert_allclose(
                [r["probabilities"] for r in answer["predictions"]], expected, atol=1e-6
            )
        _, answer, _ = client.post("/v2/models/m/infer", {"inputs": [tensor]})
        np.testing.assert_allclose(np.ravel(answer["outputs"][1]["data"]), np.ravel(expected), atol=1e-6)
        _, answer, _ = client.post("/predict", {"image": block.tolist()})
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)


def test_an_answer_waits_for_no_acknowledgement_of_its_head():
    """Connections inherit it; a client that keeps its own would wait 40 ms for each answer."""
    with (
        listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_mlflows_own_client_talks_to_it(serving, table, expected):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    with serving(table) as client:
        mlflow = ScoringServerClient("127.0.0.1", client.port)
        mlflow.wait_server_ready(timeout=10)
        found = mlflow.invoke(pd.DataFrame(ROWS)).get_predictions()
    assert_same(found["prediction"].tolist(), found["probabilities"].tolist(), expected)


def test_every_example_of_openapi_is_accepted(serving, table, arrays, writer):
    with serving(table, arrays, writer) as client:
        document = client.get("/openapi.json")[1]
        sent = 0
        for path, operations in document["paths"].items():
            media = operations.get("post", {}).get("requestBody", {}).get("content", {})
            for example in media.get("application/json", {}).get("examples", {}).values():
                status, answer, _ = client.post(path, example["value"])
                assert status == 200, (path, answer)
                sent += 1
        docs = client.get("/docs")[1]
    assert sent >= 12
    assert all(path in docs for path in document["paths"])


PROMPT, PARAMS = "Once", {"max_new_tokens": 12, "temperature": 0.8, "seed": 5}


def test_completions_are_the_text_that_predict_returns(serving, writer):
    expected = writer.predict({"text": [PROMPT, "B"]}, PARAMS)["prediction"].tolist()
    body = {"model": "m", "prompt": [PROMPT, "B"], "max_tokens": 12, "temperature": 0.8, "seed": 5}
    with serving(writer) as client:
        status, answer, _ = client.post("/v1/completions", body)
        assert client.get("/v1/models")[1]["data"][0]["id"] == "m"
        query = "?max_new_tokens=12&temperature=0.8&seed=5"
        _, plain, _ = client.post(f"/predict{query}", {"text": [PROMPT, "B"]})
        _, mlflow, _ = client.post("/invocations", {"inputs": [PROMPT, "B"], "params": PARAMS})
    assert status == 200, answer
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert all(choice["finish_reason"] in ("length", "stop") for choice in answer["choices"])
    assert plain["prediction"] == expected
    assert [row["prediction"] for row in mlflow["predictions"]] == expected


def test_a_streamed_completion_comes_token_by_token_and_is_the_same_text(serving, writer):
    (expected,) = writer.predict({"text": [PROMPT]}, PARAMS)["prediction"]
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0.8, "seed": 5, "stream": True}
    with serving(writer) as client:
        status, text, headers = client.post("/v1/completions", body)
    assert (status, headers.get_content_type()) == (200, "text/event-stream")
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event)["choices"][0] for event in events]
    assert "".join(chunk["text"] for chunk in chunks) == expected
    assert len(chunks) > 5
    assert chunks[-1]["finish_reason"] in ("length", "stop")


def test_openais_own_client_completes_streams_and_names_what_is_refused(serving, writer):
    import openai

    (expected,) = writer.predict({"text": [PROMPT]}, PARAMS)["prediction"]
    asked = {"model": "m", "prompt": PROMPT, "max_tokens": 12, "temperature": 0.8, "seed": 5}
    with (
        serving(writer) as client,
        openai.OpenAI(base_url=f"{client.address}/v1", api_key="none", max_retries=0) as other,
    ):
        assert [model.id for model in other.models.list()] == ["m"]
        assert other.completions.create(**asked).choices[0].text == expected
        chunks = list(other.completions.create(**asked, stream=True))
        with pytest.raises(openai.NotFoundError, match="no model 'n'"):
            other.completions.create(**{**asked, "model": "n"})
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert len(chunks) > 5


@pytest.mark.parametrize(
    ("more", "status", "word"),
    [
        ({"n": 2}, 422, "n=2"),
        ({"prompt": 3}, 400, "prompt is 3"),
        ({"max_tokens": 0}, 422, "max_tokens=0: it should be from 1"),
        ({"temperature": -1}, 422, "temperature=-1"),
        ({"seed": "x"}, 422, "seed='x'"),
        ({"model": "n"}, 404, "no model 'n'"),
        ({"frequence": 1}, 422, "'frequence' is not known"),
    ],
)
def test_a_completion_that_cannot_be_is_refused(serving, writer, more, status, word):
    with serving(writer) as client:
        found, answer, _ = client.post("/v1/completions", {"prompt": "a", **more})
    assert found == status
    assert word in answer["error"]["message"]


def test_a_model_of_a_table_completes_nothing(serving, table):
    with serving(table) as client:
        status, answer, _ = client.post("/v1/completions", {"prompt": "a"})
    assert (status, "continues no text" in answer["error"]["message"]) == (400, True)


def test_answers_of_a_length_of_their_own_are_json_text_in_version_2():
    values = np.empty(2, dtype=object)
    values[:] = [[[1.0, 2.0, 3.5, 4.0]], []]
    tensor = _tensor("boxes", values)
    assert tensor == {
        "name": "boxes",
        "shape": [2],
        "datatype": "BYTES",
        "data": ["[[1.0, 2.0, 3.5, 4.0]]", "[]"],
    }
