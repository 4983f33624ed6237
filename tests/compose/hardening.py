"""Whether the containers that run are as hard as the file says, asked of the engine and of the kernel."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import tempfile
from pathlib import Path

import asyncpg
import pytest

from tests.compose.cluster import ComposeCluster

RUNNING = ("pki", "postgres", "auth", "datasets", "inference")


def require_hardened(cluster: ComposeCluster) -> None:
    """Every line of the compose file's hardening, on every container that runs."""
    for service in RUNNING:
        found = cluster.inspect(service)
        host, config = found["HostConfig"], found["Config"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert not host["Privileged"], service
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"]), service
        assert config["User"] == "65532:65532", service
        assert 0 < host["PidsLimit"] <= 256, service
        assert 0 < host["Memory"] <= 1 << 30, service
        assert 0 < host["NanoCpus"] <= 2_000_000_000, service
        assert all("noexec" in options for options in host["Tmpfs"].values()), service
        assert {"Name": "core", "Hard": 0, "Soft": 0} in host["Ulimits"], service
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}, service
        assert host["RestartPolicy"]["Name"] == "on-failure", service
        published = [binding for bindings in host["PortBindings"].values() for binding in bindings]
        assert all(ipaddress.ip_address(binding["HostIp"]).is_loopback for binding in published), service
        passed = " ".join(config["Env"])
        assert "PASSWORD=" not in passed, service
        _require_powerless(found["State"]["Pid"], service)


def _require_powerless(pid: int, service: str) -> None:
    """The same, of the kernel."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["65532"] * 4, service
    assert status["NoNewPrivs"] == "1", service
    assert status["Seccomp"] == "2", service
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}, service


def require_split_networks(cluster: ComposeCluster) -> None:
    """Inference does not find PostgreSQL, the authority finds nobody, and neither network inside has a way out."""
    joined = {
        service: {
            name.removeprefix(f"{cluster.project}_") for name in cluster.inspect(service)["NetworkSettings"]["Networks"]
        }
        for service in RUNNING
    }
    assert joined == {
        "pki": {"none"},
        "postgres": {"db"},
        "auth": {"edge", "internal", "db"},
        "datasets": {"edge", "internal", "db"},
        "inference": {"edge", "internal"},
    }
    for network in ("internal", "db"):
        assert (
            cluster.engine.docker(
                "network", "inspect", "--format", "{{.Internal}}", f"{cluster.project}_{network}"
            ).strip()
            == "true"
        )
    finds = "import socket; socket.getaddrinfo('postgres.casemate.internal', 5432)"
    assert cluster.engine.answers("exec", cluster.container("auth"), "python3", "-c", finds)
    assert not cluster.engine.answers("exec", cluster.container("inference"), "python3", "-c", finds)


def require_nothing_writable(cluster: ComposeCluster) -> None:
    """What runs in a container can write where its volumes are, and nowhere else."""
    write = "import pathlib,sys; pathlib.Path(sys.argv[1]).write_text('x')"
    for service in ("auth", "datasets", "inference"):
        container = cluster.container(service)
        for path in ("/app/x", "/etc/x", "/run/casemate/x", "/run/casemate/secrets/kek.json", "/x"):
            assert not cluster.engine.answers("exec", container, "python3", "-c", write, path), (service, path)
        assert cluster.engine.answers("exec", container, "python3", "-c", write, "/tmp/x"), service  # noqa: S108  # the container's own


def require_silent(cluster: ComposeCluster) -> None:
    """No library reports home: onnxruntime says so in the log when it cannot keep its device's number."""
    environment = cluster.inspect("inference")["Config"]["Env"]
    assert "ORT_DISABLE_TELEMETRY=1" in environment
    assert "telemetry" not in cluster.engine.logs(cluster.container("inference")).lower()


def require_database_shut(cluster: ComposeCluster) -> None:
    """PostgreSQL wants TLS 1.3, a certificate that names the role, and its password: each one missing is refused."""
    asyncio.run(_try_database(cluster))


def database_address(cluster: ComposeCluster) -> str:
    """Where PostgreSQL is; only the machine itself and the network `db` get there."""
    return cluster.inspect("postgres")["NetworkSettings"]["Networks"][f"{cluster.project}_db"]["IPAddress"]


async def _try_database(cluster: ComposeCluster) -> None:
    address = database_address(cluster)
    password = _read(cluster, "auth", "secrets/casemate_auth").decode()
    folder = Path(tempfile.mkdtemp(dir=cluster.state.root))
    own, others, service = (
        _leaf(cluster, folder / name, owner, place)
        for name, owner, place in (
            ("own", "auth", "database/casemate_auth"),
            ("others", "datasets", "database/casemate_datasets"),
            ("service", "auth", "service"),
        )
    )

    async def connect(leaf: Path | None, *, secret: str = password, database: str = "casemate_auth", old: bool = False):
        connection = await asyncpg.connect(
            host=address, user="casemate_auth", password=secret, database=database, timeout=10,
            ssl=False if leaf is None else _context(own, leaf, old=old),
        )  # fmt: skip
        try:
            return await connection.fetchval("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        finally:
            await connection.close()

    assert await connect(own) == "TLSv1.3"
    refused = (asyncpg.PostgresError, ssl.SSLError, ConnectionError)
    for attempt in (
        lambda: connect(None),  # in clear
        lambda: connect(own, old=True),
        lambda: connect(own, secret="not the password"),
        lambda: connect(others),
        lambda: connect(service),  # names nobody to PostgreSQL
        lambda: connect(own, database="casemate_datasets"),
        lambda: connect(own, database="postgres"),
    ):
        with pytest.raises(refused):
            await attempt()
    assert await connect(own) == "TLSv1.3"


def _context(own: Path, leaf: Path, *, old: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # dialled by its address; the services verify the name
    context.load_verify_locations(own / "ca.pem")
    context.load_cert_chain(leaf / "cert.pem", leaf / "key.pem")
    if old:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def _leaf(cluster: ComposeCluster, folder: Path, owner: str, place: str) -> Path:
    folder.mkdir(parents=True)
    for file in ("key.pem", "cert.pem", "ca.pem"):
        (folder / file).touch(mode=0o600)
        (folder / file).write_bytes(_read(cluster, owner, f"{place}/{file}"))
    return folder


def _read(cluster: ComposeCluster, owner: str, path: str) -> bytes:
    """A file that the authority issued, as root of the machine can read it."""
    return cluster.read_file("pki", f"/var/lib/casemate/issued/{owner}/{path}")
