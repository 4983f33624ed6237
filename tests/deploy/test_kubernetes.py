"""The manifests, as `kustomize` renders them: what every workload must have, and who may talk to whom."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from casemate.cli.deployment import Deployment, DeploymentFolders
from casemate.cli.state import SERVICES
from casemate.clock import SystemClock
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.local import LocalKeyRing
from casemate.settings import load_settings
from casemate.transport.options import CHANNEL_OPTIONS
from casemate.transport.server import DEFAULT_GRACE, DEFAULT_LAME_DUCK
from services.auth.settings import AuthSettings
from services.datasets.settings import DatasetsSettings
from services.inference.settings import InferenceSettings

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("dev", "prod", "cert-manager", "spire")
WORKLOADS = {"StatefulSet", "Deployment", "DaemonSet", "Job", "CronJob"}
SETTINGS = {"auth": AuthSettings, "datasets": DatasetsSettings, "inference": InferenceSettings}
# The certificates of identities, by the part of an overlay that brings them.
IDENTITY = {"dev": "secret", "prod": "secret", "cert-manager": "csi", "spire": "emptyDir"}

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """Every object of an overlay."""
    command = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    if shutil.which(command[0]) is None:
        pytest.skip("SKIPPED, AND THE MANIFESTS ARE UNTESTED: neither kubectl nor kustomize is installed")
    done = subprocess.run(
        [*command, KUBERNETES / "overlays" / overlay], capture_output=True, text=True, check=False
    )  # our own folder
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def objects(overlay: str, *kinds: str) -> Iterator[Manifest]:
    """Those of the given kinds."""
    return (manifest for manifest in rendered(overlay) if manifest["kind"] in kinds)


def pods(overlay: str) -> Iterator[tuple[str, Manifest]]:
    """The name and the pod's spec of every workload."""
    for manifest in objects(overlay, *WORKLOADS):
        yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    """All of a pod, those that start it included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def service_of(overlay: str, name: str) -> Manifest:
    """The StatefulSet of a service."""
    (found,) = (one for one in objects(overlay, "StatefulSet") if one["metadata"]["name"] == name)
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_as_restricted_as_pod_security_asks_and_more(overlay: str) -> None:
    """Every container too, whoever added it."""
    (namespace,) = objects(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    seen = 0
    for name, pod in pods(overlay):
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 65532), name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        assert not any(pod.get(shared) for shared in ("hostNetwork", "hostPID", "hostIPC")), name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert not context.get("privileged"), name
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name
            assert resources["requests"]["cpu"], name
            seen += 1
    assert seen >= 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_has_a_secret_in_its_environment_or_mounts_the_node(overlay: str) -> None:
    """Secrets are files, which can be rotated and are not inherited."""
    for name, pod in pods(overlay):
        for container in containers(pod):
            assert not any("valueFrom" in entry for entry in container.get("env", [])), name
            assert not any("secretRef" in source for source in container.get("envFrom", [])), name
        assert not any("hostPath" in volume for volume in pod["volumes"]), name
    for manifest in rendered(overlay):
        assert manifest["kind"] not in {"Secret", "ClusterRoleBinding"}, manifest["metadata"]["name"]


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_starts_with_the_settings_that_its_overlay_gives(overlay: str, service: str, tmp_path: Path) -> None:
    """By the loader that refuses unknown names; and every file that they name is mounted."""
    (config,) = (one for one in objects(overlay, "ConfigMap") if one["metadata"]["name"].rpartition("-")[0] == service)
    environment = dict(config["data"])
    pod = service_of(overlay, service)["spec"]["template"]["spec"]
    mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    for name, value in environment.items():
        if name.endswith(("_FILE", "_DIR")) and value.startswith("/"):
            assert any(value == mount or value.startswith(mount + "/") for mount in mounts), name
        if name.endswith("_PASSWORD_FILE"):
            (tmp_path / name).write_text("x")
            (tmp_path / name).chmod(0o640)  # as fsGroup leaves it
            environment[name] = str(tmp_path / name)
    load_settings(SETTINGS[service], environment, component=service)
    environment[f"CASEMATE_{service.upper()}_LISTN"] = "127.0.0.1:1"
    with pytest.raises(Exception, match="LISTN"):
        load_settings(SETTINGS[service], environment, component=service)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_is_headless_spread_out_and_drains_before_it_is_killed(overlay: str, service: str) -> None:
    """One address per pod, for clients that go round them."""
    (address,) = (one for one in objects(overlay, "Service") if one["metadata"]["name"] == service)
    assert address["spec"]["clusterIP"] == "None"
    workload = service_of(overlay, service)
    backoff = dict(CHANNEL_OPTIONS)["grpc.max_reconnect_backoff_ms"]
    assert workload["spec"]["minReadySeconds"] * 1000 > int(backoff)
    pod = workload["spec"]["template"]["spec"]
    assert {spread["topologyKey"] for spread in pod["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    (container,) = (one for one in pod["containers"] if one["name"] == "service")
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = waits + DEFAULT_LAME_DUCK.total_seconds() + DEFAULT_GRACE.total_seconds()
    assert pod["terminationGracePeriodSeconds"] > drain
    assert "--answers" in container["livenessProbe"]["exec"]["command"]
    assert "--answers" not in container["readinessProbe"]["exec"]["command"]
    (identity,) = (volume for volume in pod["volumes"] if volume["name"] == "identity")
    assert set(identity) == {"name", IDENTITY[overlay]}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_maintenance_takes_one_replica_at_most(overlay: str, service: str) -> None:
    """The budget names the pods that there are."""
    (budget,) = (one for one in objects(overlay, "PodDisruptionBudget") if one["metadata"]["name"] == service)
    assert budget["spec"]["maxUnavailable"] == 1
    labels = service_of(overlay, service)["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_inference_scales_by_how_long_requests_wait() -> None:
    """And shrinks slower than connections end."""
    (scaler,) = objects("prod", "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "casemate_inference_queue_wait_microseconds"
    rules = (KUBERNETES / "components" / "observability" / "adapter-rules.yaml").read_text()
    assert metric["pods"]["metric"]["name"] in rules
    assert scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] > 600
    assert "replicas" not in service_of("prod", "inference")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_migrations_are_jobs_with_the_image_and_settings_of_their_service(overlay: str) -> None:
    """They need the databases, and no more."""
    jobs = {job["metadata"]["name"]: job for job in objects(overlay, "Job")}
    assert set(jobs) == {"auth-migrate", "datasets-migrate"}
    for name, job in jobs.items():
        service = name.removesuffix("-migrate")
        (container,) = job["spec"]["template"]["spec"]["containers"]
        serving = service_of(overlay, service)["spec"]["template"]["spec"]["containers"][0]
        assert container["image"] == serving["image"]
        assert container["envFrom"] == serving["envFrom"]
        assert container["args"] == ["migrate"]


@pytest.mark.parametrize("overlay", ["prod", "cert-manager", "spire"])
def test_databases_take_a_certificate_and_a_password_and_nothing_else(overlay: str) -> None:
    """Three clusters: wrapped data keys lie apart, with backups of their own."""
    clusters = {one["metadata"]["name"]: one for one in objects(overlay, "Cluster")}
    assert set(clusters) == {"auth-db", "datasets-db", "datakeys-db"}
    for cluster in clusters.values():
        (allowed, refused) = cluster["spec"]["postgresql"]["pg_hba"]
        assert allowed.startswith("hostssl casemate_")
        assert allowed.endswith("scram-sha-256 clientcert=verify-full")
        assert refused == "hostnossl all all all reject"
        assert cluster["spec"]["postgresql"]["parameters"]["ssl_min_protocol_version"] == "TLSv1.3"
        assert cluster["spec"]["enableSuperuserAccess"] is False
        assert cluster["spec"]["instances"] >= 3


# --- who may talk to whom: the policies, evaluated as a cluster would --------------------------------------------


def allows(overlay: str, source: Manifest, target: Manifest, port: int) -> bool:
    """Whether both ends' policies let `source` reach `target` on `port`. A pod is its labels, and its namespace's."""
    return _one_way(overlay, source, target, port, "Egress") and _one_way(overlay, target, source, port, "Ingress")


def _one_way(overlay: str, own: Manifest, other: Manifest, port: int, direction: str) -> bool:
    if own["namespace"] != "casemate":
        return True  # not ours to restrict
    key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    applying = [
        policy["spec"]
        for policy in objects(overlay, "NetworkPolicy")
        if direction in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], own["labels"])
    ]
    assert applying, "no policy applies: everything would be allowed"
    return any(
        any(entry["port"] == port for entry in rule["ports"]) and any(_is_peer(peer, other) for peer in rule[peers])
        for spec in applying
        for rule in spec.get(key, [])
    )


def _is_peer(peer: Manifest, other: Manifest) -> bool:
    if "ipBlock" in peer:
        return bool(other.get("outside"))
    if "namespaceSelector" in peer:
        spaces = {"kubernetes.io/metadata.name": other["namespace"], **other.get("namespace_labels", {})}
        if not _selects(peer["namespaceSelector"], spaces):
            return False
    elif other["namespace"] != "casemate":
        return False
    return "podSelector" not in peer or _selects(peer["podSelector"], other["labels"])


def _selects(selector: Manifest, labels: Manifest) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )


def ours(name: str, component: str = "service") -> Manifest:
    """A pod of ours."""
    return {
        "namespace": "casemate",
        "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/component": component},
    }


def database(name: str) -> Manifest:
    """A pod of CloudNativePG's."""
    return {"namespace": "casemate", "labels": {"cnpg.io/cluster": name}}


CALLER = {"namespace": "shop", "namespace_labels": {"casemate.dev/callers": "true"}, "labels": {}}
STRANGER = {"namespace": "shop", "labels": {}}
OUTSIDE = {"namespace": "", "outside": True, "labels": {}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_named_edges_are_open(overlay: str) -> None:
    """What a call, a feed, a release and a log entry need."""
    for source, target, port in (
        (CALLER, ours("auth"), 7401),
        (CALLER, ours("auth"), 7404),
        (CALLER, ours("datasets"), 7403),
        (CALLER, ours("inference"), 7402),
        (ours("datasets"), ours("auth"), 7401),
        (ours("inference"), ours("auth"), 7401),
        (ours("inference"), ours("datasets"), 7403),
        (ours("auth"), ours("datasets"), 7403),
    ):
        assert allows(overlay, source, target, port), (source, target, port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_else_is_closed(overlay: str) -> None:
    """Strangers, metrics for callers, inference near a database, and the way out of a caller's namespace."""
    closed = [
        (STRANGER, ours(service), port)
        for service, port in (("auth", 7401), ("auth", 7404), ("datasets", 7403), ("inference", 7402))
    ]
    closed += [
        (CALLER, ours(service), port) for service, port in (("auth", 7411), ("datasets", 7413), ("inference", 7412))
    ]
    closed += [(ours("inference"), database(name), 5432) for name in ("auth-db", "datasets-db", "datakeys-db")]
    closed += [
        (CALLER, database("auth-db"), 5432),
        (ours("auth"), ours("inference"), 7402),
        (ours("inference"), OUTSIDE, 80),
        (ours("auth"), CALLER, 443),
        (ours("inference"), {"namespace": "casemate", "labels": {"app.kubernetes.io/name": "postgres"}}, 5432),
    ]
    for source, target, port in closed:
        assert not allows(overlay, source, target, port), (source, target, port)


@pytest.mark.parametrize("overlay", ["prod", "cert-manager", "spire"])
def test_each_database_is_reached_by_its_service_alone(overlay: str) -> None:
    """auth-db by auth; the other two by datasets; their migrations too."""
    owners = {"auth-db": "auth", "datasets-db": "datasets", "datakeys-db": "datasets"}
    for name, owner in owners.items():
        for service in SERVICES:
            for component in ("service", "migration"):
                reached = allows(overlay, ours(service, component), database(name), 5432)
                assert reached == (service == owner), (service, component, name)


def test_the_secrets_of_the_dev_overlay_are_those_that_its_pods_mount(tmp_path: Path) -> None:
    """Made by the command of the recipe, from what the authority issued: each file by the name it is mounted under."""
    if shutil.which("kubectl") is None:
        pytest.skip("SKIPPED: kubectl makes the Secrets, and is not installed")
    clock = SystemClock()
    folders = DeploymentFolders(authority=tmp_path / "authority", issued=tmp_path / "issued")
    Deployment.open(
        folders,
        trust_domain="casemate.internal",
        lifetime=timedelta(hours=1),
        clock=clock,
        report=lambda _line: None,
        create=True,
    ).renew_due()
    made = subprocess.run(
        [KUBERNETES / "dev-secrets", folders.issued],
        env={**os.environ, "PYTHON": sys.executable},  # as an operator's shell would
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    secrets = {one["metadata"]["name"]: one["data"] for one in yaml.safe_load_all(made.stdout)}
    mounted = {
        volume["secret"]["secretName"]: volume["secret"]
        for _name, pod in pods("dev")
        for volume in pod["volumes"]
        if "secret" in volume
    }
    assert set(secrets) == set(mounted)
    for name, secret in mounted.items():
        for item in secret.get("items", []):
            assert item["key"] in secrets[name]
    sealed = tmp_path / "authority.json"
    sealed.write_bytes(base64.b64decode(secrets["auth-authority-key"]["authority.json"]))
    sealed.chmod(0o640)
    ring = LocalKeyRing.load(folders.secret("auth", "kek.json"))
    asyncio.run(AuthorityKey.load_or_create(ring, sealed, create=False))
