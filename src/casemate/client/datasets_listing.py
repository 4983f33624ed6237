"""The datasets that there are, as far as the session's caller may read them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from casemate.client.datasets_versions import DatasetVersions
from casemate.client.pages import every_page
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.transport.status import from_rpc_error


class DatasetNames(DatasetVersions):
    """The datasets of the session's tenant."""

    def listed(self, *, page_size: int = 0) -> Iterator[messages.ListedDataset]:
        """Those whose newest version the caller may read, by name; each page is asked for when it is needed.

        Args:
            page_size: of each page; 0 for what the service thinks good.
        """

        def ask(token: str) -> messages.ListDatasetsResponse:
            request = messages.ListDatasetsRequest(page_size=page_size, page_token=token)
            try:
                return self._stub.ListDatasets(request)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error

        for page in every_page(ask):
            yield from page.datasets
