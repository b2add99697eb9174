"""deploy/kubernetes builds, has what clusters want, and holds to the policies it is meant to."""

from __future__ import annotations

import copy
import functools
import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import load_settings
from tests.conftest import need
from tests.unit.repository.pages import ROOT
from tools import make_kubernetes

FOLDER = ROOT / "deploy" / "kubernetes"
FETCH = FOLDER / "components" / "fetch-model"
VERSION = "1.31"
SERVER = {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
KINDS = {
    "cpu": SERVER | {"PersistentVolumeClaim", "HorizontalPodAutoscaler"},
    "gpu": SERVER | {"PersistentVolumeClaim", "HorizontalPodAutoscaler"},
    "keda": SERVER | {"PersistentVolumeClaim", "ScaledObject"},
    "fetch": SERVER | {"HorizontalPodAutoscaler"},
    "monitoring": {"ServiceMonitor", "PrometheusRule"},
    "kserve": {"ServingRuntime", "InferenceService"},
}
UNREAD_S = 15
"""Callers who do not read their answers delay a stop by so much: docs/operations.md."""


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


_TEXT, _WHOLE, _ANY = {"type": "string"}, {"type": "integer"}, {"type": "object"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_DURATION = {"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"}
CUSTOM = {
    # Source: KEDA, config/crd/bases/keda.sh_scaledobjects.yaml, and its docs on `fallback`.
    "ScaledObject": _object(
        "scaleTargetRef triggers",
        scaleTargetRef=_object("name", name=_TEXT, kind=_TEXT, apiVersion=_TEXT),
        pollingInterval=_WHOLE,
        minReplicaCount=_WHOLE,
        maxReplicaCount=_WHOLE,
        fallback=_object("failureThreshold replicas", failureThreshold=_WHOLE, replicas=_WHOLE),
        advanced=_object("", horizontalPodAutoscalerConfig=_object("", behavior=_ANY)),
        triggers=_list(_object("type metadata", type=_TEXT, metadata=_TEXTS, metricType=_TEXT)),
    ),
    # Source: Prometheus operator, Documentation/api-reference/api.md.
    "ServiceMonitor": _object(
        "selector endpoints",
        jobLabel=_TEXT,
        selector=_object("", matchLabels=_TEXTS),
        endpoints=_list(_object("", port=_TEXT, interval=_DURATION)),
    ),
    "PrometheusRule": _object(
        "groups",
        groups=_list(
            _object(
                "name",
                name=_TEXT,
                rules=_list(
                    {
                        **_object(
                            "expr",
                            expr=_TEXT,
                            alert=_TEXT,
                            record=_TEXT,
                            labels=_TEXTS,
                            annotations=_TEXTS,
                            **{"for": _DURATION},
                        ),
                        "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
                    }
                ),
            )
        ),
    ),
    # Source: KServe, pkg/apis/serving: v1alpha1/servingruntime_types.go.
    "ServingRuntime": _object(
        "containers",
        supportedModelFormats=_list(_object("name", name=_TEXT, version=_TEXT)),
        protocolVersions=_list({"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}),
        containers=_list(_ANY),
        volumes=_list(_ANY),
    ),
    # Source: KServe, pkg/apis/serving/v1beta1: component.go, predictor_model.go.
    "InferenceService": _object(
        "predictor",
        predictor=_object(
            "model",
            minReplicas=_WHOLE,
            maxReplicas=_WHOLE,
            scaleTarget=_WHOLE,
            scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
            terminationGracePeriodSeconds=_WHOLE,
            model=_object(
                "modelFormat",
                modelFormat=_object("name", name=_TEXT, version=_TEXT),
                runtime=_TEXT,
                protocolVersion=_TEXT,
                storageUri=_TEXT,
            ),
        ),
    ),
}


@functools.cache
def _built(overlay: str, scratch: Path) -> str:
    need(
        shutil.which("kubectl") is not None, "kubectl 1.27 or newer (kubernetes.io, Install Tools)"
    )
    folder = FOLDER / "overlays" / overlay
    if overlay == "fetch":
        folder = scratch
        up = "/".join([".."] * len(folder.resolve().relative_to("/").parts))
        content = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{up}{FOLDER}/overlays/cpu"],
            "components": [f"{up}{FETCH}"],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    scratch = tmp_path_factory.mktemp("fetch")
    return lambda overlay: list(yaml.safe_load_all(_built(overlay, scratch)))


def _pod(resources: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Finds the pod's spec and its server, if the overlay has one."""
    for resource in resources:
        if resource["kind"] in ("Deployment", "ServingRuntime"):
            spec = resource["spec"]
            pod: dict[str, Any] = spec.get("template", {"spec": spec})["spec"]
            return pod, pod["containers"][0]
    return None


def problems(pod: dict[str, Any]) -> list[str]:
    """Lists what a pod has that it should not, or lacks."""
    found = []
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        security = {**pod.get("securityContext", {}), **own}
        resources = container.get("resources", {})
        wanted = {
            "not root": security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0,
            "seccomp": security.get("seccompProfile") == {"type": "RuntimeDefault"},
            "read-only": own.get("readOnlyRootFilesystem") is True,
            "privileges": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "limits": {"cpu", "memory"} <= set(resources.get("limits", {})),
            "guaranteed": resources.get("limits") == resources.get("requests"),
        }
        if container in pod["containers"]:
            wanted |= {probe: probe in container for probe in ("readinessProbe", "livenessProbe")}
        writable = [v["name"] for v in pod["volumes"] if "emptyDir" in v]
        wanted["bounded"] = all(
            v["emptyDir"].get("sizeLimit") for v in pod["volumes"] if "emptyDir" in v
        )
        wanted["mounts"] = all(
            mount.get("readOnly") or mount["name"] in writable
            for mount in container["volumeMounts"]
        )
        found += [name for name, met in wanted.items() if not met]
    return found


@pytest.mark.parametrize("overlay", KINDS)
def test_every_overlay_builds_and_has_what_a_cluster_wants(
    overlay: str, build: Callable[[str], list[dict[str, Any]]]
) -> None:
    resources = build(overlay)
    assert {resource["kind"] for resource in resources} == KINDS[overlay]
    for resource in resources:
        if resource["kind"] in CUSTOM:
            jsonschema.validate(resource["spec"], CUSTOM[resource["kind"]])
        else:
            kubernetes_validate.validate(resource, VERSION, strict=True)


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "keda", "fetch", "kserve"])
def test_pods_may_do_little_and_take_a_bounded_share(
    overlay: str, build: Callable[[str], list[dict[str, Any]]]
) -> None:
    found = _pod(build(overlay))
    assert found is not None
    assert problems(found[0]) == []


@pytest.mark.parametrize(
    ("problem", "path"),
    [
        ("not root", "pod securityContext runAsNonRoot"),
        ("seccomp", "pod securityContext seccompProfile"),
        ("read-only", "securityContext readOnlyRootFilesystem"),
        ("privileges", "securityContext allowPrivilegeEscalation"),
        ("capabilities", "securityContext capabilities"),
        ("limits", "resources limits memory"),
        ("guaranteed", "resources requests cpu"),
        ("readinessProbe", "readinessProbe"),
        ("livenessProbe", "livenessProbe"),
    ],
)
def test_a_pod_without_them_is_found(
    problem: str, path: str, build: Callable[[str], list[dict[str, Any]]]
) -> None:
    found = _pod(copy.deepcopy(build("cpu")))
    assert found is not None
    pod, at = found
    *names, last = path.split()
    for name in names:
        at = pod if name == "pod" else at[name]
    del at[last]
    assert problem in problems(pod)


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "keda", "kserve"])
def test_a_pod_has_time_to_drain_and_settings_that_the_server_takes(
    overlay: str, build: Callable[[str], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = build(overlay)
    found = _pod(resources)
    assert found is not None
    pod, server = found
    told = {entry["name"]: entry["value"] for entry in server["env"]}
    for resource in resources:
        told |= resource["data"] if resource["kind"] == "ConfigMap" else {}
        if resource["kind"] == "InferenceService":
            pod = resource["spec"]["predictor"]
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    waits_s = (
        float(server["lifecycle"]["preStop"]["exec"]["command"][1]) if "lifecycle" in server else 0
    )
    needed_s = waits_s + settings.drain_delay_s + settings.drain_s + UNREAD_S
    assert pod["terminationGracePeriodSeconds"] > needed_s


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "keda", "fetch"])
def test_everything_means_the_same_pods(
    overlay: str, build: Callable[[str], list[dict[str, Any]]]
) -> None:
    """An empty selector would be every pod of the namespace, or none."""
    by_kind = {(r["kind"], r["metadata"]["name"]): r["spec"] for r in build(overlay) if "spec" in r}
    labels = {"app.kubernetes.io/name": "fcn"}
    deployment = by_kind["Deployment", "fcn"]
    assert deployment["template"]["metadata"]["labels"] == labels
    assert deployment["selector"] == {"matchLabels": labels}
    assert by_kind["PodDisruptionBudget", "fcn"]["selector"] == {"matchLabels": labels}
    assert by_kind["NetworkPolicy", "fcn"]["podSelector"] == {"matchLabels": labels}
    assert by_kind["Service", "fcn"]["selector"] == labels
    headless = by_kind["Service", "fcn-headless"]
    assert (headless["selector"], headless["clusterIP"]) == (labels, "None")
    scaler = by_kind.get(("ScaledObject", "fcn")) or by_kind["HorizontalPodAutoscaler", "fcn"]
    assert scaler["scaleTargetRef"]["name"] == "fcn"
    assert "replicas" not in deployment


def test_what_the_operator_reads_is_as_docker_prometheus_has_it() -> None:
    """After a change of the rules: make monitoring."""
    for path, content in make_kubernetes.made().items():
        assert path.read_text() == content, path.name


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def models(tmp_path: Path) -> Iterator[str]:
    """Serves a file; its address."""
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"a model")
    with HTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/model.onnx"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("", b"a model", ""),
        ("", b"another", "not " + hashlib.sha256(b"another").hexdigest()),
        (".gone", b"a model", "cannot be fetched: HTTP Error 404"),
    ],
    ids=["right", "another file", "none"],
)
def test_a_model_is_fetched_by_its_checksum(
    models: str, path: str, content: bytes, says: str, tmp_path: Path
) -> None:
    told = {
        "MODEL_URL": models + path,
        "MODEL_SHA256": hashlib.sha256(content).hexdigest(),
        "MODEL_FILE": "fcn/1/model.onnx",
    }
    done = subprocess.run(
        [sys.executable, "-I", FETCH / "fetch.py", tmp_path / "models"],
        env=told,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode != 0) == bool(says)
    assert says in done.stderr and len(done.stderr.splitlines()) == bool(says)
    files = [file for file in (tmp_path / "models").rglob("*") if file.is_file()]
    assert [file.read_bytes() for file in files] == ([] if says else [b"a model"])
