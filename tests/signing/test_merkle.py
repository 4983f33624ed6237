"""Merkle trees: the vectors of others, the definition itself, and damage."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import DigestMismatch, OutOfRange
from casemate.signing.merkle import (
    MerkleTree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)
from tests.signing import vectors

sizes = st.integers(1, 70)


def leaves(size: int) -> list[bytes]:
    return [leaf_hash(b"%d" % number) for number in range(size)]


def defined_root(nodes: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1, word for word."""
    if not nodes:
        return hashlib.sha256().digest()
    if len(nodes) == 1:
        return nodes[0]
    split = 1
    while split * 2 < len(nodes):
        split *= 2
    return node_hash(defined_root(nodes[:split]), defined_root(nodes[split:]))


def outcome(call, *arguments) -> bool:
    try:
        call(*arguments)
    except DigestMismatch:
        return False
    return True


def decoded(case: dict, *names: str) -> list[bytes]:
    return [base64.b64decode(case[name] or "") for name in names]


def proof_of(case: dict) -> list[bytes]:
    return [base64.b64decode(item) for item in case["proof"] or []]


def test_inclusion_vectors_are_judged_as_stated():
    """transparency-dev/merkle testdata/inclusion."""
    cases = vectors.merkle("inclusion")
    for case in cases:
        leaf, tree_root = decoded(case, "leafHash", "root")
        held = outcome(verify_inclusion, leaf, case["leafIdx"], case["treeSize"], proof_of(case), tree_root)
        assert held is not case["wantErr"], case["desc"]
    assert len(cases) == 98


def test_consistency_vectors_are_judged_as_stated():
    """transparency-dev/merkle testdata/consistency."""
    cases = vectors.merkle("consistency")
    for case in cases:
        first, second = decoded(case, "root1", "root2")
        held = outcome(verify_consistency, case["size1"], case["size2"], first, second, proof_of(case))
        assert held is not case["wantErr"], case["desc"]
    assert len(cases) == 98


def test_hashes_are_those_of_rfc_6962():
    assert root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert leaf_hash(b"L123456").hex().startswith("395aa064")
    assert leaf_hash(b"L12", memoryview(b""), b"3456") == leaf_hash(b"L123456"), "pieces are hashed as one"
    assert node_hash(b"N123", b"N456").hex().startswith("aa217fe8")


@given(st.integers(0, 70))
def test_the_root_is_the_one_of_the_definition(size):
    assert root(leaves(size)) == defined_root(leaves(size))


@given(sizes, st.data())
def test_every_leaf_has_a_proof_that_verifies_only_as_it_is(size, data):
    tree = MerkleTree(leaves(size))
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index)
    assert proof == inclusion_proof(leaves(size), index)
    leaf = leaves(size)[index]
    verify_inclusion(leaf, index, size, proof, tree.root)
    other = data.draw(st.integers(0, size).filter(lambda n: n != index))
    for arguments in [
        (leaf_hash(b"other"), index, size, proof, tree.root),
        (leaf, other, size, proof, tree.root),
        (leaf, -1, size, proof, tree.root),
        (leaf, index, size, [*proof, bytes(32)], tree.root),
        (leaf, index, size, proof, leaf_hash(b"other")),
        (leaf, index, size, [bytes(33), *proof[1:]], tree.root),
    ]:
        with pytest.raises(DigestMismatch):
            verify_inclusion(*arguments)
    if proof:
        with pytest.raises(DigestMismatch):
            verify_inclusion(leaf, index, size, proof[:-1], tree.root)


@given(sizes, st.data())
def test_every_prefix_has_a_proof_that_verifies_only_as_it_is(size, data):
    first_size = data.draw(st.integers(1, size))
    proof = consistency_proof(leaves(size), first_size)
    first, second = root(leaves(first_size)), root(leaves(size))
    verify_consistency(first_size, size, first, second, proof)
    for arguments in [
        (first_size, size, leaf_hash(b"other"), second, proof),
        (first_size, size, first, leaf_hash(b"other"), proof),
        (first_size, size, first, second, [*proof, bytes(32)]),
        (0, size, first, second, proof),
        (size + 1, size, first, second, proof),
    ]:
        with pytest.raises(DigestMismatch):
            verify_consistency(*arguments)
    if proof:
        with pytest.raises(DigestMismatch):
            verify_consistency(first_size, size, first, second, proof[:-1])


def test_there_is_no_proof_outside_of_the_tree():
    assert inclusion_proof(leaves(3), 2)
    for index in (-1, 3):
        with pytest.raises(OutOfRange):
            inclusion_proof(leaves(3), index)
    assert consistency_proof(leaves(3), 3) == []
    for size in (0, 4):
        with pytest.raises(OutOfRange):
            consistency_proof(leaves(3), size)


@given(st.binary(max_size=40), st.integers(), st.integers(), st.lists(st.binary(max_size=40), max_size=5), st.binary())
def test_verification_raises_nothing_but_our_error(leaf, index, size, proof, tree_root):
    outcome(verify_inclusion, leaf, index, size, proof, tree_root)
    outcome(verify_consistency, index, size, leaf, tree_root, proof)
