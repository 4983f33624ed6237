"""Whatever happens in whatever order, a gate that remembers decides as one that has just been started.

The bound that the cache is allowed, 60 s of trust, turns out not to be needed: what
a hit skips is the signature alone, and that a removed key ends at once.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from casemate.errors import CasemateError, Reason
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.records import Revocation, RevocationKind
from tests.gate.world import ECHO, TokenMint, World, auth_context, bearer, grant, thumbprint_of

MINTS = [TokenMint("EdDSA"), TokenMint("EdDSA"), TokenMint("ES256")]
CLIENTS = ["one", "two"]
LEAVES: list[Path] = []
METHOD = ECHO + "Unary"
SECONDS = st.integers(0, 150) | st.sampled_from([0.001, 4.999, 5, 29, 31, 59, 60, 61, 299, 300, 301])


class StoppedClock:
    """Both clocks stand still until they are moved."""

    def __init__(self) -> None:
        self.wall = datetime.now(UTC).replace(microsecond=0)
        self.steady = time.monotonic()

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.steady


class WarmAndCold(RuleBasedStateMachine):
    """Two gates over one trust: one lives through everything, the other is made for each question."""

    tokens = Bundle("tokens")

    @initialize()
    def begin(self):
        self.clock = StoppedClock()
        self.world = World(clock=self.clock)
        self.leaf = LEAVES[0]
        self.keys = {mint.key.kid: mint.key for mint in MINTS[:2]}
        self.revocations, self.grants = [], [grant()]
        self.texts, self.streams = [], {}
        self.tell()
        for mint, client in zip(MINTS[:2], CLIENTS, strict=True):
            self.issue(mint=mint, client=client)

    def tell(self):
        self.world.publish(
            keys=tuple(self.keys.values()), revocations=tuple(self.revocations), grants=tuple(self.grants)
        )

    @rule(
        target=tokens,
        mint=st.sampled_from(MINTS),
        client=st.sampled_from(CLIENTS),
        late=st.sampled_from([0, 0, 0, 5, 6, -6]),
        lives=st.sampled_from([300, 300, 60, 10, 1]),
        session=st.sampled_from([..., "s1", "s2"]),
        nbf=st.sampled_from([..., ..., 3, 10]),
    )
    def issue(self, *, mint, client="one", late=0, lives=300, session=..., nbf=...):
        now = self.clock.now() + timedelta(seconds=late)
        claims = mint.claims(now=now, thumbprint=self.thumbprint(), client_id=client, sid=session)
        claims["exp"] = claims["iat"] + lives
        if nbf is not ...:
            claims["nbf"] = claims["iat"] + nbf
        return self.known(mint.token(claims))

    @rule(target=tokens, token=tokens)
    def forge(self, token):
        head, _, signature = token.rpartition(".")
        return self.known(f"{head}.{signature[:5]}{'A' if signature[5] != 'A' else 'B'}{signature[6:]}")

    def known(self, token):
        self.texts.append(token)
        return token

    @rule(seconds=SECONDS, heard=st.booleans())
    def wait(self, seconds, *, heard=False):
        self.clock.wall += timedelta(seconds=seconds)
        self.clock.steady += seconds
        if heard:
            self.world.hear()

    @rule(seconds=st.sampled_from([-3_600, -61, -7, -1, 1, 59]))
    def set_the_wall_clock(self, seconds):
        self.clock.wall += timedelta(seconds=seconds)

    @rule()
    def hear(self):
        self.world.hear()

    @rule(mint=st.sampled_from(MINTS))
    def add_key(self, mint):
        self.keys[mint.key.kid] = mint.key
        self.tell()

    @rule(mint=st.sampled_from(MINTS))
    def remove_key(self, mint):
        self.keys.pop(mint.key.kid, None)
        self.tell()

    @rule(
        kind=st.sampled_from(
            [
                RevocationKind.CLIENT,
                RevocationKind.SESSION,
                RevocationKind.KEY,
                RevocationKind.CERTIFICATE,
                RevocationKind.TOKEN,
            ]
        ),
        which=st.integers(0, 2),
        until=st.sampled_from([None, 10, 100]),
        since=st.sampled_from([None, 0, -20]),
    )
    def revoke(self, kind, which, until, since):
        values = {
            RevocationKind.CLIENT: CLIENTS[which % 2],
            RevocationKind.SESSION: f"s{which}",
            RevocationKind.KEY: MINTS[which].key.kid,
            RevocationKind.CERTIFICATE: self.thumbprint() if which == 0 else "x" * 43,
            RevocationKind.TOKEN: f"token-{which}",
        }
        now = self.clock.now()
        self.revocations.append(
            Revocation(
                id=f"revocation-{len(self.revocations)}",
                kind=kind,
                value=values[kind],
                not_before=None if since is None else now + timedelta(seconds=since),
                expires_at=None if until is None else now + timedelta(seconds=until),
            )
        )
        self.tell()

    @rule()
    def forget_revocations(self):
        self.revocations.clear()
        self.tell()

    @rule(lives=st.sampled_from([None, 30]))
    def give_grant(self, lives):
        self.grants = [grant(expires_at=None if lives is None else self.clock.now() + timedelta(seconds=lives))]
        self.tell()

    @rule()
    def take_grant(self):
        self.grants = []
        self.tell()

    @invariant()
    def both_gates_say_the_same_of_every_call_and_no_stream_outlives_its_right(self):
        for token in self.texts[-4:]:
            warm, running = self.asked(self.world.gate, token)
            cold, _ = self.asked(self.world.build_gate(TokenCache()), token)
            # A token that is expired and whose key is gone too may be refused for either: one gate still knew
            # when it ends, the other has no key to read it with.
            assert warm == cold or {warm, cold} == {Reason.TOKEN_EXPIRED, Reason.TOKEN_INVALID}
            stream = self.streams.setdefault(token, running) if running is not None else self.streams.get(token)
            if stream is not None and cold != "allowed":
                with pytest.raises(CasemateError):
                    self.world.gate.recheck(*stream)

    def thumbprint(self):
        return thumbprint_of(self.leaf)

    def asked(self, gate, token):
        """What the gate says: `allowed`, or the reason why not; and the call, if it runs."""
        admission = None
        try:
            admission = gate.at_headers(METHOD, bearer(token), request_id="r")
            caller = gate.at_message(admission, auth_context(self.leaf))
            gate.authorize(admission, caller, "dataset/digits")
        except CasemateError as error:
            return error.reason, None
        finally:
            if admission is not None:
                admission.release()
        return "allowed", (admission, caller)


@pytest.fixture(autouse=True)
def _leaves(leaf):
    LEAVES[:] = [leaf("client", tenant="acme", name="trainer")]


TestWarmAndCold = pytest.mark.usefixtures("_leaves")(WarmAndCold.TestCase)
TestWarmAndCold.settings = settings(
    max_examples=250, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_sequence_that_a_naive_cache_gets_wrong(leaf):
    """Allowed twice, then one event: the next use is refused at once, with its reason."""
    LEAVES[:] = [leaf("client", tenant="acme", name="trainer")]
    for event, reason in (
        (lambda machine: machine.remove_key(MINTS[0]), "TOKEN_INVALID"),
        (lambda machine: machine.set_the_wall_clock(-3_600), "TOKEN_INVALID"),
        (lambda machine: machine.revoke(RevocationKind.CLIENT, 0, None, None), "TOKEN_REVOKED"),
        (lambda machine: machine.wait(300) or machine.hear(), "TOKEN_EXPIRED"),
        (lambda machine: machine.take_grant(), "RESOURCE_NOT_FOUND"),
        (lambda machine: machine.wait(301), "TRUST_STALE"),
    ):
        machine = WarmAndCold()
        machine.begin()
        token = machine.issue(mint=MINTS[0])
        assert machine.asked(machine.world.gate, token)[0] == "allowed"
        assert machine.asked(machine.world.gate, token)[0] == "allowed"
        event(machine)
        assert machine.asked(machine.world.gate, token)[0] == reason
