"""The manifests of deploy/kubernetes are valid by KubeRay's schemas, made strict, and keep to what jobs need."""

import copy
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema import ValidationError as SchemaError
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from shoal.cluster import serve_app
from shoal.cluster.serve_app import AppConfig
from shoal.config.loading import load
from shoal.runs.config import RunConfig
from shoal.tune.config import SweepConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMAS = json.loads((ROOT / "tests" / "schemas" / "kuberay.json").read_text())
DOCUMENTS = {
    f"{path.name} {document['kind']}": document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
OF_RAY = {name: one for name, one in DOCUMENTS.items() if one["apiVersion"] == "ray.io/v1"}
JOBS = {name: one for name, one in OF_RAY.items() if one["kind"] == "RayJob"}
METADATA = {"name", "labels", "annotations"}
SPOT = ("cloud.google.com/gke-spot", "eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type")


def strict(schema: Any) -> Any:
    """Return a schema that refuses fields which it does not name; Kubernetes drops them without a word."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    return made


DEFINITIONS = strict(SCHEMAS["$defs"])


def problems(document: dict[str, Any], kind: str | None = None) -> list[str]:
    schema = {"$ref": f"#/$defs/{kind or document['kind']}", "$defs": DEFINITIONS}
    found = Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return dict(spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec)


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the specs of all pods of a manifest."""
    if document["kind"] == "StatefulSet":
        yield document["spec"]["template"]["spec"]
    if document["apiVersion"] != "ray.io/v1":
        return
    cluster = cluster_of(document)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]
    if "submitterPodTemplate" in document["spec"]:
        yield document["spec"]["submitterPodTemplate"]["spec"]


def test_there_are_manifests_of_each_kind():
    assert {one["kind"] for one in DOCUMENTS.values()} == {
        "RayCluster",
        "RayJob",
        "RayService",
        "StatefulSet",
        "Service",
    }


@pytest.mark.parametrize("name", OF_RAY)
def test_kuberay_accepts_it(name):
    assert problems(OF_RAY[name]) == []
    assert OF_RAY[name]["metadata"].keys() <= METADATA


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name not in OF_RAY])
def test_a_pod_of_another_kind_is_valid_by_the_same_schema(name):
    for spec in pods(DOCUMENTS[name]):
        cluster = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": spec}}}
        assert problems({"spec": cluster}, "RayCluster") == []


def paths(value: Any, before: tuple = ()) -> Iterator[tuple]:
    """Yield the path of each key of a manifest whose names are the schema's, and not the user's."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("metadata", "rayStartParams", "requests", "limits", "apiVersion", "kind"):
                continue
            yield (*before, key)
            yield from paths(inner, (*before, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from paths(inner, (*before, number))


@pytest.mark.parametrize("name", OF_RAY)
def test_a_typo_in_any_key_is_found(name):
    places = list(paths(OF_RAY[name]))
    assert len(places) > 60
    for path in places[:: max(1, len(places) // 40)]:
        planted = copy.deepcopy(OF_RAY[name])
        parent = planted
        for key in path[:-1]:
            parent = parent[key]
        parent[f"{path[-1]}s"] = parent.pop(path[-1])
        assert problems(planted), path


def test_a_value_of_another_type_is_found():
    planted = copy.deepcopy(next(iter(JOBS.values())))
    planted["spec"]["backoffLimit"] = "3"
    assert "is not of type 'integer'" in problems(planted)[0]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_pod_has_the_time_that_a_checkpoint_takes(name):
    for spec in pods(DOCUMENTS[name]):
        assert spec["terminationGracePeriodSeconds"] == 45


@pytest.mark.parametrize("name", OF_RAY)
def test_the_head_is_kept_from_nodes_that_may_be_taken_away(name):
    affinity = cluster_of(OF_RAY[name])["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {one["key"] for one in term["matchExpressions"]} == set(SPOT)
    assert {one["operator"] for one in term["matchExpressions"]} == {"DoesNotExist", "NotIn"}


@pytest.mark.parametrize("name", OF_RAY)
def test_a_token_a_queue_and_a_shared_folder_are_named(name):
    document, cluster = OF_RAY[name], cluster_of(OF_RAY[name])
    assert cluster["authOptions"] == {"mode": "token", "secretName": "shoal-ray-token"}
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        ray, logs = spec["containers"]
        env = {one["name"]: one.get("value") for one in ray["env"]}
        mounted = {one["mountPath"]: one["name"] for one in ray["volumeMounts"]}
        assert env["SHOAL_HOME"] in mounted
        assert f"{env['SHOAL_HOME']}/logs/$POD" in logs["args"][0]
        assert {"/dev/shm", "/tmp/ray"} <= mounted.keys()
        assert set(mounted.values()) == {one["name"] for one in spec["volumes"]}


@pytest.mark.parametrize("name", JOBS)
def test_the_command_of_a_job_is_one_that_shoal_takes(name):
    python, script, file, *settings = shlex.split(JOBS[name]["spec"]["entrypoint"])
    job = Path(script).relative_to("/home/shoal/shoal")
    assert python == "python"
    assert (ROOT / job).is_file()
    config = load({"train": RunConfig, "tune": SweepConfig}[job.stem], file, settings)
    assert config.run_name, "so that the next try goes on from the last checkpoint"
    workers = cluster_of(JOBS[name])["workerGroupSpecs"]
    cpus = sum(
        group["maxReplicas"] * float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in workers
    )
    assert config.scale.num_workers * config.scale.cpus_per_worker <= cpus


SERVED = yaml.safe_load(
    next(one for one in OF_RAY.values() if one["kind"] == "RayService")["spec"]["serveConfigV2"]
)


def deployed(settings: dict[str, Any]) -> AppConfig:
    """Return the arguments of an application of a service.

    It is checked by Shoal's schema and by Ray Serve's own made strict, which otherwise drops what it does not know.
    """
    Draft202012Validator(strict(ServeDeploySchema.model_json_schema())).validate(settings)
    (one,) = ServeDeploySchema.model_validate(settings).applications
    assert one.import_path == f"{serve_app.__name__}:{serve_app.app.__name__}"
    assert [deployment.name for deployment in one.deployments] == [serve_app.DEPLOYMENT]
    return AppConfig(**one.args)


def test_ray_serve_and_shoal_accept_the_application_of_a_service() -> None:
    config = deployed(SERVED)
    (one,) = SERVED["applications"][0]["deployments"]
    assert one["ray_actor_options"]["num_cpus"] == config.serve.cpus_per_replica


@pytest.mark.parametrize("path", list(paths(SERVED)), ids=str)
def test_a_typo_in_an_application_is_found(path: tuple[Any, ...]) -> None:
    planted = copy.deepcopy(SERVED)
    parent = planted
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}s"] = parent.pop(path[-1])
    with pytest.raises((SchemaError, ValidationError, AssertionError)):
        deployed(planted)


def test_the_image_is_made_of_what_is_there():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = [line.split()[2:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert copied
    sources = [source for line in copied for source in line]
    for source in sources:
        assert (ROOT / source).exists(), source
    sent = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line[1:] for line in sent if line.startswith("!")] == sources
    extras = re.findall(r"--editable '\.\[([\w,]+)\]'", text)[0].split(",")
    known = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = ", known, re.MULTILINE) for extra in extras)
    assert "wget" in text, "which KubeRay's probes call"
