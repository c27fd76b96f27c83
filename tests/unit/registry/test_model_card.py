"""The model card, made of a run's records: what the hub reads of it, what it says, and what it leaves out."""

import json

import pytest
from huggingface_hub import ModelCard

from shoal.registry.model_card import (
    MOST_DESCRIBED,
    PAGE,
    PICTURE,
    README,
    as_html,
    description,
    wilson,
    with_section,
    write_model_card,
)
from shoal.storage.records import (
    DatasetRecord,
    Environment,
    Identity,
    Metadata,
    ModelRecord,
    Outcome,
    Progress,
    Verified,
)
from shoal.storage.run_folder import CONFIG, PICTURES, REPORTS, RunFolder

CONFIG_TEXT = "seed: 7\ntask: classification\nmodel:\n  name: mlp\ntrack:\n  license: {licence}\n"
CLASSES = ["cat", "<script>alert(1)</script>", "a|b"]


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(str(tmp_path / "run"))
    made.create_identity(name="run", experiment="pets")
    verified = Verified(metric="val/loss", value=0.4, data="0123456789abcdef", held_out="rows")
    made.update(Identity, status="FINISHED", registered_model_name="pets", verified=verified)
    made.write(CONFIG, CONFIG_TEXT.format(licence="apache-2.0").encode())
    made.write(f"{PICTURES}/{PICTURE}", b"picture")
    made.write(
        f"{REPORTS}/data.md",
        b"# Data\n\n## Worth knowing\n\n- `id` looks like an id\n- b\n\n## Splits\n\n- no\n",
    )
    made.save(
        Metadata(
            dataset=DatasetRecord(
                name="csv:pets.csv",
                digest="0123456789abcdef",
                source_type="csv",
                source="{}",
                columns=json.dumps({"columns": [{"name": "age", "kind": "number"}], "label": "pet"}),
                profile=json.dumps({"rows": {"train": 800, "validation": 100, "test": 100}, "classes": 3}),
            ),
            model=ModelRecord(parameters=1234, bytes=4936, flops_per_sample=2400),
            environment=Environment(
                python="3.11.7",
                platform="Linux",
                processor="x86_64",
                gpus=[],
                git={"commit": "abc123", "is_dirty": True},
                argv=["/usr/bin/shoal", "train", "pets.yaml", "optim.lr=0.1"],
                packages={"torch": "2.13.0"},
            ),
        )
    )
    made.save(
        Outcome(
            ended="finished",
            progress=Progress(step=40),
            steps_planned=40,
            seconds=1.0,
            attempt_seconds=1.0,
            split="test",
            val_metrics={"val/loss": 0.4, "val/accuracy": 0.86},
            test_metrics={"test/loss": float("nan"), "test/accuracy": 0.88},
            confusion=[[50, 5, 0], [6, 34, 0], [1, 0, 4]],
        )
    )
    return made


@pytest.fixture
def card(folder, tmp_path):
    model = tmp_path / "model"
    (model / "data" / "weights").mkdir(parents=True)
    described = {"transform": {"label": {"classes": CLASSES}}}
    (model / "data" / "weights" / "description.json").write_text(json.dumps(described))
    assert write_model_card(folder, "pets", model) == (model / README).read_text()
    return model


def test_the_hub_reads_its_metadata_and_results(card):
    read = ModelCard.load(card / README).data
    assert (read.license, read.library_name, read.pipeline_tag) == (
        "apache-2.0",
        "shoal",
        "tabular-classification",
    )
    assert read.model_name == "pets"
    found = {(one.dataset_split, one.metric_type): one.metric_value for one in read.eval_results}
    assert found == {
        ("validation", "loss"): 0.4,
        ("validation", "accuracy"): 0.86,
        ("test", "accuracy"): 0.88,
    }
    assert {one.dataset_revision for one in read.eval_results} == {"0123456789abcdef"}
    assert {one.task_type for one in read.eval_results} == {"tabular-classification"}


@pytest.mark.parametrize(
    "line",
    [
        "| accuracy | 0.86 | 0.88 |",
        "| cat | 0.8772 | 0.9091 | 55 |",
        "| a\\|b | 1.0000 | 0.8000 | 5 |",
        "- fingerprint of the content: `0123456789abcdef`",
        "- rows: 800 train, 100 validation, 100 test",
        "- parameters: 1,234; 4,936 bytes of weights",
        "- Classes with fewer than 30 test rows, whose values say little: a|b.",
        "- The lowest recall is that of class `a|b`: 0.8000.",
        "- On 100 test rows an accuracy of 0.8800 means 0.8019 to 0.9300 (95% interval of Wilson).",
        "- `id` looks like an id",
        "- seed: 7",
        "- commit: `abc123`, with changes that were not committed",
        "- Python 3.11.7, torch 2.13.0; Linux",
        "- command: `shoal train pets.yaml optim.lr=0.1`",
    ],
)
def test_what_the_records_say_is_in_it(card, line):
    assert line in (card / README).read_text().splitlines()


def test_the_page_holds_its_picture_and_names_are_text(card):
    page = (card / PAGE).read_text()
    assert f'src="data:image/png;base64,{"cGljdHVyZQ=="}"' in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<td>0.8772</td>" in page
    assert "license:" not in page.partition("Licence")[0]


def test_a_licence_that_nobody_stated_is_unknown(folder, card):
    folder.write(CONFIG, b"seed: 0\n")
    text = write_model_card(folder, "pets", card)
    assert ModelCard(text).data.license == "unknown"
    assert "`license: unknown`" in text


def test_a_run_without_records_has_a_card_of_what_there_is(run, tmp_path):
    (tmp_path / "bare").mkdir()
    text = write_model_card(run("bare-run"), "bare", tmp_path / "bare")
    assert "not measured" in text
    assert "confusion" not in text
    assert ModelCard(text).data.library_name == "shoal"


def test_a_section_is_added_once_and_the_others_stay(card):
    text = (card / README).read_text()
    twice = with_section(with_section(text, "Compared", "one"), "Compared", "two")
    assert twice.replace("\n## Compared\n\ntwo\n", "") == text
    assert twice.index("## Metrics") < twice.index("## Compared") < twice.index("## Training data")
    assert "<h2>Compared</h2>" in as_html(twice, None)


def test_a_description_ends_between_two_parts(card):
    text = (card / README).read_text()
    assert description(text).startswith("# pets\n\nA `mlp` for the task")
    assert "![" not in description(text)
    long = with_section(text, "More", "\n\n".join([("word " * 50).strip()] * 50))
    assert len(description(long)) <= MOST_DESCRIBED
    assert description(long).endswith("word\n\nThe whole card is the artifact `README.md`.")
    code = with_section(text, "More", "```\n" + "\n\n".join(["word " * 50] * 50) + "\n```")
    assert description(code).count("```") % 2 == 0


def test_wilsons_interval_is_that_of_the_literature():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, rows, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]:
        assert wilson(hits / rows, rows) == pytest.approx((low, high), abs=1e-4)
