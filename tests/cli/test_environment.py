from __future__ import annotations

import pytest

from casemate.cli.environment import require_unset
from casemate.errors import ConfigurationError


@pytest.mark.parametrize("name", ["CASEMATE_AUTH_LISTEN", "CASEMATE_BOGUS", "SSLKEYLOGFILE", "GRPC_TRACE"])
def test_variable_that_would_be_ignored_or_reveal_secrets_is_refused_by_name(name):
    with pytest.raises(ConfigurationError, match=f"^{name} .*; unset it$"):
        require_unset({"PATH": "/bin", name: "canary"})
    require_unset({"PATH": "/bin", "CASEMATE_VECTORS": "somewhere"})


def test_all_of_them_are_named_and_no_value_is():
    with pytest.raises(ConfigurationError) as refusal:
        require_unset({"CASEMATE_A": "canary", "CASEMATE_B": "canary", "GRPC_TRACE": "canary"})
    assert all(name in str(refusal.value) for name in ("CASEMATE_A", "CASEMATE_B", "GRPC_TRACE"))
    assert "canary" not in str(refusal.value)
