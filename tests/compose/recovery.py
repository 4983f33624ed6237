"""A backup from inside the network of the databases, and the loss of everything that it holds."""

from __future__ import annotations

import json

from tests.compose.cluster import ComposeCluster
from tests.compose.story import ToldStory
from tests.compose.waiting import eventually

SERVING = ("auth", "datasets", "inference")
LOST = (
    *("postgres-state", "auth-state", "datasets-state", "inference-repository"),
    *("auth-audit", "datasets-audit", "inference-audit"),
)
BACKUPS, DATAKEYS = "/var/lib/casemate/backups", "/var/lib/casemate/datakeys"


class Recovery:
    """`docker compose run --rm backup …`, and the cluster that it brings back."""

    def __init__(self, cluster: ComposeCluster, told: ToldStory) -> None:
        self._cluster = cluster
        self._told = told
        self._folders: dict[str, str] = {}

    def back_up(self) -> str:
        """While all goes on, over TLS 1.3 with a verified name, a client certificate and a password; and verified."""
        made = self._backup("create", "--to", BACKUPS, "--datakeys-to", DATAKEYS)
        self._folders = {one["class"]: one["folder"] for one in made["backups"]}
        assert set(self._folders) == {"rows", "datakeys", "log"}
        for folder in self._folders.values():
            assert self._backup("verify", folder)["holds"]
        # What comes after it is what the newer log has to take away, or to count as lost.
        self._folders["log"] = self._backup("create", "--to", BACKUPS, "--only", "log")["backups"][0]["folder"]
        return f"{sum(one['bytes'] for one in made['backups']):,} bytes in {made['seconds']} s"

    def require_dumped_by_certificate(self) -> None:
        """By PostgreSQL's own log: the backup's program came by TLS 1.3, as the role that its certificate names."""
        said = self._cluster.engine.logs(self._cluster.container("postgres"))
        for role in ("casemate_auth", "casemate_datasets", "casemate_datakeys"):
            lines = [
                line
                for line in said.splitlines()
                if "application_name=casemate-backup" in line and f"user={role} " in line
            ]
            assert lines, f"no dump of {role}"
            assert all("SSL enabled (protocol=TLSv1.3" in line for line in lines), lines

    def lose_everything(self) -> str:
        """Databases, models, sealed keys and audits are gone; the keys, the certificates and the backup are not."""
        engine = self._cluster.engine
        for service in ("postgres", "bootstrap", "migrate", *SERVING, *(f"{name}-2" for name in SERVING)):
            if container := self._cluster.container(service):
                engine.docker("rm", "--force", container)
        self._cluster.lose(*LOST)
        self._cluster.up("postgres")
        rows, datakeys, log = (self._folders[name] for name in ("rows", "datakeys", "log"))
        done = self._backup("restore", "--rows", rows, "--datakeys", datakeys, "--log", log)
        # By name: what else a profile brought up is still there.
        self._cluster.up(*SERVING, *(f"{name}-2" for name in SERVING))
        # Every token ended with the restore.
        for who in ("caller", "trainer", "supplier"):
            self._told.story.session(who).forget_tokens()
        eventually(self._told.require_rows)
        eventually(self._told.require_answers)
        return f"restored in {done['seconds']} s; rows proven, predictions right"

    def _backup(self, command: str, *arguments: str) -> dict:
        return json.loads(self._cluster.run("backup", command, "--from-environment", "--json", *arguments))
