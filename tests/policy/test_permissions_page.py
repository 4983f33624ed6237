"""docs/permissions.md says what the descriptors say."""

from __future__ import annotations

from casemate.gate.adapters.own_policies import own_policies
from protos.permissions import PAGE, page


def test_the_page_is_up_to_date():
    """If this fails: run `make permissions`, and look at the difference before you commit it."""
    assert PAGE.read_text() == page(own_policies())


def test_every_method_has_its_row_with_what_it_asks_for():
    rows = page(own_policies()).splitlines()
    assert sum(row.startswith("| `") for row in rows) == len(list(own_policies()))
    assert (
        "| `PullDataset` | token, scope `datasets.read` | `read` on dataset/{dataset}[/{version}] | yes | yes | yes |"
        in rows
    )
    assert "| `RecordRelease` | certificate of inference |  | yes | yes | yes |" in rows
