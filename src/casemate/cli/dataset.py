"""`casemate dataset …`: what there is to do with signed datasets."""

from __future__ import annotations

import click

from casemate.cli.dataset_push import manifest, push, push_signed
from casemate.cli.dataset_read import describe, pull
from casemate.cli.dataset_shred import shred, verify_receipt
from casemate.cli.dataset_versions import compromise, label, labels, lineage, list_datasets, retain


@click.group("dataset")
def dataset_command() -> None:
    """Signed datasets."""


for _command in (
    push,
    manifest,
    push_signed,
    pull,
    describe,
    list_datasets,
    label,
    labels,
    lineage,
    compromise,
    retain,
    shred,
    verify_receipt,
):
    dataset_command.add_command(_command)
