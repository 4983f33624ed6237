"""A cluster whose state can be lost: what people hold, what they know, and what a backup run leaves."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.cli.certificates import OPERATOR
from casemate.cli.cluster import Cluster
from casemate.cli.ports import Ports
from casemate.cli.state import StateDirectory
from casemate.cli.story import TENANT, Story
from casemate.client.admin import Administration
from casemate.client.log import LogReader
from casemate.transport.status import from_rpc_error
from tests.services.auth.identities import Signatory, exchange_grant, issuer_message
from tests.support.up import CASEMATE

DOMAIN = "casemate.internal"
KEYS = ("auth", "datasets", "inference", "pki")


def size_of(reader: LogReader) -> int:
    """How many entries the log shows."""
    return int(reader.checkpoint().checkpoint.splitlines()[1])


class Drill:
    """A state directory, the backups of it, and the cluster while it runs."""

    def __init__(self, root: Path) -> None:
        self.state = StateDirectory(root / "state")
        self.backups = root / "backups"
        self.cluster = self._new()
        self.idp = Signatory(kid="k1")

    def _new(self) -> Cluster:
        return Cluster(state=self.state, ports=Ports.free(), trust_domain=DOMAIN, report=print)

    @asynccontextmanager
    async def running(self):
        self.cluster = self._new()
        story = Story(self.cluster)
        try:
            await self.cluster.start()
            yield story
        finally:
            story.close()
            await self.cluster.stop()

    def operator(self, story: Story) -> Administration:
        return Administration(story.session(OPERATOR[1], OPERATOR[0]))

    def begin_family(self, story: Story) -> str:
        """A refresh token that a gateway got for a person."""
        self.operator(story).create_client(
            client_id="acme-gateway",
            tenant=TENANT,
            spiffe_id=f"spiffe://{DOMAIN}/t/{TENANT}/gateway",
            audiences=("inference",),
            scopes=("models.infer",),
        )
        stub = CredentialServiceStub(story.session(OPERATOR[1], OPERATOR[0]).channel("auth"))
        from casemate.auth.v1 import credential_service_pb2 as credentials

        stub.RegisterIssuer(credentials.RegisterIssuerRequest(issuer=issuer_message(self.idp)))
        stub.CreateExchangeGrant(exchange_grant())
        request = tokens.ExchangeTokenRequest(
            subject_token=self.idp.about(),
            subject_token_type=tokens.SUBJECT_TOKEN_TYPE_JWT,
            audience="inference",
            request_refresh_token=True,
        )
        return self._tokens(story).ExchangeToken(request).refresh_token

    def refresh(self, story: Story, token: str) -> str:
        try:
            return self._tokens(story).RefreshToken(tokens.RefreshTokenRequest(refresh_token=token)).refresh_token
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def _tokens(self, story: Story) -> TokenServiceStub:
        from casemate.transport.channel import RotatingChannel

        session = story.session("gateway")
        channel = RotatingChannel(
            target=self.cluster.endpoints.auth, service_name=f"auth.{DOMAIN}", source=session.source
        )
        return TokenServiceStub(channel)

    async def logged(self, story: Story, kind: str, **body: object) -> None:
        """Returns once the log has been told of a change."""
        reader = LogReader(story.session(OPERATOR[1], OPERATOR[0]))

        def told() -> bool:
            entries = [json.loads(shown.entry) for shown in reader.entries(0, size_of(reader))]
            return any(entry["kind"] == kind and body.items() <= entry["body"].items() for entry in entries)

        async with asyncio.timeout(30):
            while not await asyncio.to_thread(told):
                await asyncio.sleep(0.1)

    async def casemate(self, *arguments: object, status: int = 0) -> str:
        """Runs the command as an operator would; gives what it said."""
        done = await asyncio.to_thread(
            subprocess.run,
            [CASEMATE, "--state", self.state.root, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stdout if status == 0 else done.stderr

    async def interrupt(self, *arguments: object) -> None:
        """Runs the command, and kills it when the databases are back, and no key is in its place."""
        process = await asyncio.create_subprocess_exec(
            CASEMATE, "--state", str(self.state.root), *map(str, arguments), stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(60):
            while not (self.state.root / "restore.keys").exists():
                assert process.returncode is None
                await asyncio.sleep(0.005)
        process.kill()
        await process.wait()

    async def back_up(self, *arguments: object) -> dict[str, Path]:
        said = json.loads(await self.casemate("backup", "create", "--to", self.backups, "--json", *arguments))
        return {one["class"]: Path(one["folder"]) for one in said["backups"]}

    async def lose_everything(self, new_root: Path) -> None:
        """Another machine: the key-encryption keys were kept apart, and people have their own keys."""
        await self.cluster.postgres.erase()
        old, self.state = self.state, StateDirectory(new_root / "state")
        self.state.create()
        for owner in KEYS:
            shutil.copy(old.kek(owner), self.state.kek(owner))
        shutil.copytree(old.root / "signers", self.state.root / "signers", dirs_exist_ok=True)
        shutil.rmtree(old.root)

    async def erase(self) -> None:
        await self._new().postgres.erase()
