"""What losing the key-encryption keys means is said at the first start, and remembered as said."""

from __future__ import annotations

from casemate.cli.audiences import RememberedAudiences
from casemate.cli.cluster import Cluster
from casemate.cli.ports import Ports
from casemate.cli.state import StateDirectory
from casemate.cli.up import _announce


def test_what_losing_the_key_encryption_keys_means_is_said_once(tmp_path, capsys):
    state = StateDirectory(tmp_path)
    cluster = Cluster(state=state, ports=Ports.fixed(), trust_domain="casemate.internal", report=print)
    _announce(cluster, RememberedAudiences(state.audiences), 1.0)
    first = capsys.readouterr().out
    assert first.count(f"key-encryption keys are files in {tmp_path / 'kek'}. Without them nothing opens again") == 1
    _announce(cluster, RememberedAudiences(state.audiences), 1.0)
    second = capsys.readouterr().out
    assert "key-encryption" not in second
    assert "Ctrl-C stops everything" in second
