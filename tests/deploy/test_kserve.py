"""Our inference image under KServe: as restricted as on its own, and told what it is told there."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from casemate.settings import load_settings
from services.inference.settings import InferenceSettings

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"

Manifest = dict[str, Any]


@cache
def rendered(folder: str) -> tuple[Manifest, ...]:
    """Every object of a kustomization."""
    command = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    if shutil.which(command[0]) is None:
        pytest.skip("SKIPPED, AND THE MANIFESTS ARE UNTESTED: neither kubectl nor kustomize is installed")
    done = subprocess.run([*command, KUBERNETES / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(folder: str, kind: str, name: str) -> Manifest:
    """The object of a kind whose name begins so."""
    (found,) = (
        manifest
        for manifest in rendered(folder)
        if manifest["kind"] == kind and manifest["metadata"]["name"].startswith(name)
    )
    return found


@pytest.fixture
def runtime() -> Manifest:
    return one("kserve", "ServingRuntime", "casemate")["spec"]


def test_the_runtime_speaks_open_inference_over_grpc_and_is_given_no_model(runtime: Manifest) -> None:
    """Models come by the trust feed: nothing is downloaded beside the container that serves."""
    assert runtime["protocolVersions"] == ["grpc-v2"]
    assert runtime["multiModel"] is False
    assert [name["name"] for name in runtime["supportedModelFormats"]] == ["casemate"]
    (container,) = runtime["containers"]
    assert container["name"] == "kserve-container"
    assert [(port["name"], port["containerPort"]) for port in container["ports"]] == [("h2c", 7402)]
    assert "args" not in container


def test_the_runtime_is_as_restricted_as_the_service_and_runs_the_same_image(runtime: Manifest) -> None:
    (container,) = runtime["containers"]
    context = container["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 65532)
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert not any("hostPath" in volume for volume in runtime["volumes"])
    alone = one("overlays/prod", "StatefulSet", "inference")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == alone["image"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"][:5] == ["python3", "-m", "casemate.cli", "health", "inference"]


def test_a_pod_of_the_runtime_drains_before_it_is_killed(runtime: Manifest) -> None:
    """As long as on its own: the address is forgotten first. KServe's own grace is thirty seconds."""
    (container,) = runtime["containers"]
    alone = one("overlays/prod", "StatefulSet", "inference")["spec"]["template"]["spec"]["containers"][0]
    assert container["lifecycle"] == alone["lifecycle"]


def test_the_runtime_starts_with_its_settings_and_every_file_that_they_name_is_mounted(runtime: Manifest) -> None:
    (container,) = runtime["containers"]
    told = one("kserve", "ConfigMap", "inference")["data"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": one("kserve", "ConfigMap", "inference")["metadata"]["name"]}}
    ]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for name, value in told.items():
        if name.endswith(("_FILE", "_DIR")) and value.startswith("/"):
            assert any(value == mount or value.startswith(f"{mount}/") for mount in mounts), name
    load_settings(InferenceSettings, told, component="inference")
    with pytest.raises(Exception, match="LISTN"):
        load_settings(InferenceSettings, {**told, "CASEMATE_INFERENCE_LISTN": "x"}, component="inference")


def test_the_runtime_is_told_what_the_service_is_told() -> None:
    """So that moving under KServe changes nothing but who starts it."""
    alone = one("overlays/prod", "ConfigMap", "inference")["data"]
    told = one("kserve", "ConfigMap", "inference")["data"]
    assert told == alone
