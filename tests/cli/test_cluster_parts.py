from __future__ import annotations

import socket
import stat

import pytest

from casemate.cli.certificates import Certificates
from casemate.cli.ports import Ports
from casemate.cli.state import SERVICES, StateDirectory
from casemate.errors import ConfigurationError
from casemate.pki.leaves import describe
from casemate.sealing.local import LocalKeyRing


def state_in(tmp_path) -> StateDirectory:
    state = StateDirectory(tmp_path / "state")
    state.create()
    return state


def opened(state: StateDirectory) -> Certificates:
    return Certificates.open(state, trust_domain="casemate.internal", report=lambda _line: None)


def test_port_in_use_is_named_and_free_ones_are_not():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        free = Ports.free()
        for crowded in (
            Ports({**free.grpc, "auth": taken}, free.http, free.metrics),
            Ports(free.grpc, {**free.http, "auth": taken}, free.metrics),
            Ports(free.grpc, free.http, {**free.metrics, "auth": taken}),
        ):
            with pytest.raises(ConfigurationError, match=f"port {taken};"):
                crowded.require_free()
        free.require_free()


def test_the_documented_ports_are_those_that_the_services_default_to():
    assert Ports.fixed().all() == (7401, 7402, 7403, 7404, 7411, 7412, 7413)
    assert len(set(Ports.free().all())) == len(Ports.fixed().all())


def test_state_directory_and_passwords_are_for_their_owner_alone(tmp_path):
    state = state_in(tmp_path)
    password = state.password("casemate_auth")
    assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.password_file("casemate_auth").stat().st_mode) == 0o600
    assert len(password.reveal()) >= 43
    assert state.password("casemate_auth") == password


def test_first_start_makes_leaves_and_the_second_leaves_them_alone(tmp_path):
    state = state_in(tmp_path)
    opened(state).renew_due()
    first = {service: describe(state.service_leaf(service)).thumbprint for service in SERVICES}
    opened(state).renew_due()
    assert {service: describe(state.service_leaf(service)).thumbprint for service in SERVICES} == first
    assert describe(state.client_leaf("casemate", "operator")).spiffe_id.endswith("/t/casemate/operator")


def test_lost_key_ring_refuses_to_start_and_a_restored_one_starts(tmp_path):
    state = state_in(tmp_path)
    opened(state)
    kept = state.kek("datasets").read_bytes()
    state.kek("datasets").unlink()
    with pytest.raises(ConfigurationError, match=r"datasets\.json is gone"):
        opened(state)
    assert not state.kek("datasets").exists()
    state.kek("datasets").touch(mode=0o600)
    state.kek("datasets").write_bytes(kept)
    opened(state).renew_due()


def test_another_key_ring_cannot_open_the_authority(tmp_path):
    state = state_in(tmp_path)
    opened(state)
    state.kek("pki").unlink()
    LocalKeyRing.create(state.kek("pki"))
    with pytest.raises(ConfigurationError, match="does not open"):
        opened(state)
