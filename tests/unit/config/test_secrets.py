"""Secrets of addresses and of the environment: masked in any text, found again where an address is opened."""

import os

import pytest

from shoal.config.loading import load, to_yaml
from shoal.config.secrets import HIDDEN, _known, hide, mask, reveal
from shoal.errors import UserError
from shoal.runs.config import RunConfig
from shoal.storage.folder import Folder
from shoal.storage.records import Result
from shoal.tune.config import read_sweep

ADDRESSES = {
    "http://me:planted@host:5000/x": "http://***@host:5000/x",
    "http://me:p@lanted@host": "http://***@host",
    "https://planted-token@host/x": "https://***@host/x",
    "postgresql+psycopg2://me:pla/nt#ed@host/runs": "postgresql+psycopg2://***@host/runs",
    "csv:s3://KEY:plan/ted@bucket/a@b.csv": "csv:s3://***@bucket/a@b.csv",
    "huggingface:name?split=train&token=planted": "huggingface:name?split=train&token=***",
    "rows:read?api_key=planted&rows=10": "rows:read?api_key=***&rows=10",
    "s3://KEY:planted@one/x?region=us&X-Amz-Signature=planted": "s3://***@one/x?region=us&X-Amz-Signature=***",
}
HARMLESS = (
    "http://host:5000/a@b",
    "s3://bucket/a@b.csv",
    "synthetic:classification?rows=10&sigma=3&max_tokens=5",
    "see http://host, or write to me@host",
    "sqlite:////home/me@work/mlflow.db",
)


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch):
    monkeypatch.setenv(HIDDEN, "{}")
    _known.cache_clear()  # the environment changes from test to test


@pytest.mark.parametrize("given", ADDRESSES)
def test_an_address_is_masked_and_found_again(given):
    assert mask(f"at '{given}': refused") == f"at '{ADDRESSES[given]}': refused"
    assert hide(given) == ADDRESSES[given]
    assert reveal(ADDRESSES[given]) == given
    assert hide(ADDRESSES[given]) == ADDRESSES[given]
    assert reveal(given) == given


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text):
    assert mask(text) == hide(text) == reveal(text) == text


def test_an_address_below_a_known_server_is_revealed_and_one_elsewhere_is_not(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    hide("s3://KEY:planted@bucket")
    assert reveal("s3://***@bucket/runs/one") == "s3://KEY:planted@bucket/runs/one"
    with pytest.raises(
        UserError, match="secrets are not stored: give the address in full, or set AWS_ACCESS"
    ):
        reveal("s3://***@bucket-2/runs")


def test_variables_of_the_environment_take_the_place_of_a_masked_user(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    assert reveal("csv:s3://***@bucket/rows.csv") == "csv:s3://bucket/rows.csv"


def test_a_secret_is_masked_without_its_address_too(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", 'planted-"token"')
    hide("http://me:planted%20password@host")
    assert mask("planted password, planted%20password") == "***, ***"
    assert mask('header planted-"token"') == "header ***"
    assert mask(r'{"reason": "planted-\"token\""}') == '{"reason": "***"}'


def test_a_config_holds_no_secret_however_it_is_given(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("track: {tracking_uri: 'http://me:planted@host'}\n")
    config = load(
        RunConfig, str(file), ["storage_path=s3://KEY:planted@bucket", "data.source=a:b?token=planted"]
    )
    assert "planted" not in to_yaml(config) + repr(config)
    assert reveal(config.storage_path) == "s3://KEY:planted@bucket"
    assert reveal(config.data.source) == "a:b?token=planted"


def test_a_range_of_addresses_holds_no_secret():
    _, space, _ = read_sweep(None, ["data.source='a:b?token=planted-1','a:c?token=planted-2'"])
    assert space["data.source"] == 'grid("a:b?token=***", "a:c?token=***")'
    assert reveal("a:c?token=***") == "a:c?token=planted-2"


def test_a_record_holds_no_secret(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "planted-token")
    reason = "OSError: 'http://me:planted@host' refused planted-token"
    data = Result(status="FAILED", reason=reason, run_name="one", run_folder="one").to_bytes()
    assert b"planted" not in data
    assert Result.parse(data).reason == "OSError: 'http://***@host' refused ***"


def test_a_folder_in_an_object_store_is_named_without_its_keys(s3):
    folder = Folder(f"s3://{os.environ['AWS_ACCESS_KEY_ID']}:planted-secret@bucket/secrets")
    folder.create()
    folder.write("file", b"data")
    assert folder.uri == "s3://***@bucket/secrets"
    assert Folder(folder.uri).read("file") == b"data"
