"""The story: a supplier's signed digits become a signed model that a caller asks.

Every step goes through the public client, over mutual TLS, as its own person.
Told again on the same state, it finds each step done and changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from casemate.cli.certificates import OPERATOR
from casemate.cli.cluster import Cluster
from casemate.cli.keys import load_signing_key, write_signing_key
from casemate.client.admin import Administration
from casemate.client.datasets import Datasets, PulledDataset, PushedVersion
from casemate.client.models import Models, PublishedModel
from casemate.client.session import Session
from casemate.errors import AlreadyExists, Conflict, NotFound
from casemate.signing.keys import PublicKey, SigningKey
from casemate.signing.registration import sign_registration
from casemate.signing.signers import Role as SignerRole

TENANT = "acme"
DATASET = "digits"
MODEL = "digits"
CHUNK_BYTES = 16 * 1024
"""Small, so that a small dataset still has several chunks to prove."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Role:
    """A client of the story: what its tokens may be for, and what it is granted."""

    name: str
    audiences: tuple[str, ...]
    scopes: tuple[str, ...]
    grants: tuple[tuple[str, str], ...]


CAST = (
    Role(
        "supplier",
        ("datasets",),
        ("datasets.write", "datasets.read"),
        (("push", f"dataset/{DATASET}"), ("read", f"dataset/{DATASET}")),
    ),
    Role(
        "trainer",
        ("datasets", "inference"),
        ("datasets.read", "models.publish", "models.infer"),
        (("read", f"dataset/{DATASET}"), ("publish", f"model/{MODEL}"), ("describe", f"model/{MODEL}")),
    ),
    Role(
        "caller",
        ("inference",),
        ("models.infer", "reflection"),
        (("infer", f"model/{MODEL}"), ("describe", f"model/{MODEL}")),
    ),
    # Has a valid certificate and may have tokens; is granted nothing.
    Role("mallory", ("inference", "datasets"), ("models.infer", "datasets.read"), ()),
)


class Story:
    """The steps, on a running cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._sessions = contextlib.ExitStack()
        self._by_name: dict[tuple[str, str], Session] = {}

    def tell(self) -> None:
        """All steps, in order."""
        from casemate.cli import digits  # noqa: PLC0415  # loads scikit-learn

        with self._sessions:
            self.admit()
            training, _ = digits.split()
            self.supply(digits.to_records(training), digits.SCHEMA)
            pulled = self.pull()
            images = digits.from_records(pulled.records())
            onnx, accuracy = digits.train(images)
            self.publish(onnx, pulled.root, accuracy)

    def close(self) -> None:
        """Closes every session."""
        self._sessions.close()

    def session(self, name: str, tenant: str = TENANT) -> Session:
        """The session of one of the cast, with its own certificate."""
        if (tenant, name) not in self._by_name:
            certificates = self._cluster.certificates
            if certificates is None:
                raise NotFound("the cluster is not started")
            source = certificates.require_client(tenant, name)
            session = Session(source=source, endpoints=self._cluster.endpoints, trust_domain=self._cluster.trust_domain)
            self._sessions.callback(session.close)
            self._by_name[(tenant, name)] = session
        return self._by_name[(tenant, name)]

    def admit(self) -> None:
        """The operator admits the tenant, its clients with their grants, and the two signers."""
        administration = Administration(self.session(OPERATOR[1], OPERATOR[0]))
        _unless_done(lambda: administration.create_tenant(TENANT))
        present = {(grant.caller, grant.verb, grant.resource) for grant in administration.list_grants(TENANT)}
        for role in CAST:
            path = f"t/{TENANT}/{role.name}"
            self.session(role.name)  # so that each has a certificate from now on
            _unless_done(
                lambda role=role, path=path: administration.create_client(  # type: ignore[misc]
                    client_id=f"{TENANT}-{role.name}",
                    tenant=TENANT,
                    spiffe_id=f"spiffe://{self._cluster.trust_domain}/{path}",
                    audiences=role.audiences,
                    scopes=role.scopes,
                )
            )
            for verb, resource in role.grants:
                if (path, verb, resource) not in present:
                    administration.create_grant(tenant=TENANT, caller=path, verb=verb, resource=resource)
        self._register(administration, "supplier", "supplier")
        self._register(administration, "trainer", "publisher")

    def supply(self, records: list[bytes], schema: tuple[object, ...]) -> PushedVersion | None:
        """The supplier signs the records as the next version and pushes them; nothing if version 1 is there."""
        datasets = Datasets(self.session("supplier"))
        with contextlib.suppress(NotFound):
            if datasets.describe(DATASET).version >= 1:
                return None
        manifest = datasets.manifest(
            lambda: records,
            tenant=TENANT,
            dataset=DATASET,
            schema=schema,  # type: ignore[arg-type]  # Column; kept out of this module's imports
            chunk_bytes=CHUNK_BYTES,
        )
        return datasets.push(
            lambda: records, manifest=manifest, signing_key=self.signing_key("supplier"), chunk_bytes=CHUNK_BYTES
        )

    def pull(self) -> PulledDataset:
        """The trainer pulls version 1, trusting the supplier's key and no other."""
        return Datasets(self.session("trainer")).pull(DATASET, 1, tenant=TENANT, trusted=[self.supplier_key()])

    def publish(self, onnx: bytes, root: bytes, accuracy: float) -> PublishedModel | None:
        """The trainer publishes the model, naming the root; nothing if number 1 is there."""
        models = Models(self.session("trainer"))
        return _unless_done(
            lambda: models.publish(
                {"model.onnx": onnx},
                tenant=TENANT,
                model=MODEL,
                number=1,
                signing_key=self.signing_key("trainer"),
                dataset_roots=[root],
                metrics={"accuracy": accuracy},
            )
        )

    def supplier_key(self) -> PublicKey:
        """The supplier's public key, as the trainer got it out of band."""
        return self.signing_key("supplier").public

    def signing_key(self, name: str) -> SigningKey:
        """A signer's private key, made on first use and held by that signer alone."""
        path = self._cluster.state.signer(name)
        if not path.exists():
            write_signing_key(path, SigningKey.generate())
        return load_signing_key(path)

    def _register(self, administration: Administration, name: str, role: SignerRole) -> None:
        key = self.signing_key(name)
        audience = f"auth.{self._cluster.trust_domain}"
        proof = sign_registration(TENANT, role, key, audience)
        _unless_done(
            lambda: administration.register_signer(tenant=TENANT, role=role, public_key=key.public.der, proof=proof)
        )


def _unless_done(step: Callable[[], T]) -> T | None:
    """Runs a step that an earlier start may have done already."""
    try:
        return step()
    except (AlreadyExists, Conflict):
        return None
