"""The datasets of a tenant: pushing signed ones, pulling proven ones, and what is known of them."""

from __future__ import annotations

from casemate.client.datasets_listing import DatasetNames
from casemate.client.datasets_pull import DatasetPulls
from casemate.client.datasets_push import DatasetPushes, PushedVersion
from casemate.client.datasets_versions import ShreddedVersion
from casemate.client.reading import Cursor, PulledBatch, PulledDataset
from casemate.signing.batch_order import BatchOrder

__all__ = ["BatchOrder", "Cursor", "Datasets", "PulledBatch", "PulledDataset", "PushedVersion", "ShreddedVersion"]


class Datasets(DatasetPushes, DatasetPulls, DatasetNames):
    """The datasets of the session's tenant."""
