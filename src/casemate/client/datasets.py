"""The datasets of a tenant: pushing signed ones, pulling proven ones, and what is known of them."""

from __future__ import annotations

from casemate.client.datasets_pull import DatasetPulls, PulledBatch, PulledDataset
from casemate.client.datasets_push import DatasetPushes, PushedVersion
from casemate.client.datasets_versions import ShreddedVersion

__all__ = ["Datasets", "PulledBatch", "PulledDataset", "PushedVersion", "ShreddedVersion"]


class Datasets(DatasetPushes, DatasetPulls):
    """The datasets of the session's tenant."""
