"""A key-encryption key in a PKCS#11 token, such as an HSM or SoftHSM.

The key is a non-extractable AES-256 key object. Its versions are objects of one
label; CKA_ID holds a version's number, big-endian, so `pkcs11-tool --keygen
--id 02` makes one too. The data key is encrypted with CKM_AES_GCM, since
C_WrapKey takes no associated data, and the plain data key is ours anyway. The
nonce is ours as well: a module that insists on choosing it is not supported.

PKCS#11 knows no disabled key; we take CKA_ENCRYPT or CKA_DECRYPT being false for
that. It has no pending deletion: C_DestroyObject is at once and for ever.

If this fails: whoever has the PIN, the token and the database opens the rows of
that service, as long as they have the token.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass, SecretKey, Session
from pkcs11 import exceptions as p11
from pkcs11.types import DecryptMixin, EncryptMixin

from casemate.errors import ConfigurationError, Conflict, FailedPrecondition, Reason, StoredDataUnreadable
from casemate.sealing.encoding import length_prefixed
from casemate.sealing.kek import KekState, KekStatus
from casemate.sealing.keys import DATA_KEY_BYTES, DataKey, KeyContext, WrappedKey
from casemate.sealing.pkcs11_token import Pkcs11Token, is_certain, translated

_WRAP_LABEL: Final = b"casemate/pkcs11-wrap@v1"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_KEY_BYTES: Final = 32
_STAGED_SUFFIX: Final = " (being made)"
_POSSIBLE: Final = frozenset({KekStatus.ENABLED, KekStatus.DISABLED, KekStatus.DESTROYED})


class Pkcs11Key:
    """All versions of one key-encryption key in a token. Implements `kek.KeyEncryptionKey`.

    Versions are looked up at each call, so a rotation by another process is seen at once.

    Args:
        token: the token, logged in.
        label: the label of the key objects.
    """

    __slots__ = ("_kek_id", "_label", "_token")

    def __init__(self, *, token: Pkcs11Token, label: str) -> None:
        self._token = token
        self._label = label
        # Without the serial number: a token restored to other hardware has another.
        self._kek_id = f"pkcs11:token={token.label};object={label}"

    @classmethod
    async def create(cls, *, token: Pkcs11Token, label: str) -> Pkcs11Key:
        """A new key with one version.

        Raises:
            ConfigurationError: the token has a key of that label.
            Conflict: as `rotate`.
        """
        key = cls(token=token, label=label)

        def generate(session: Session) -> None:
            key._require_none(session)
            with key._staged(session) as staged:
                key._require_none(session)
                _publish(staged, label, 1)

        await token.run(generate, writing=True)
        return key

    async def rotate(self) -> int:
        """Makes one version more, which wraps from now on, and gives its number.

        Raises:
            FailedPrecondition: there is no version to follow.
            Conflict: another process is about to make one, or was cut off while it did. Nothing was changed.
        """

        def generate(session: Session) -> int:
            self._current(session)
            with self._staged(session) as staged:
                # Looked up again: who made one before us is seen now, and who comes after sees us.
                number = self._current(session)[0] + 1
                _publish(staged, self._label, number)
            return number

        return await self._token.run(generate, writing=True)

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """See `kek.KeyEncryptionKey`. The key comes from the operating system's generator."""
        key = DataKey.generate()
        return key, await self.wrap(key, context)

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""

        def encrypt(session: Session) -> tuple[int, bytes]:
            number, kek = self._current(session)
            if not isinstance(kek, EncryptMixin):  # A class by what CKA_ENCRYPT says.
                raise _refused(f"{self._kek_id} is disabled: CKA_ENCRYPT is false")
            return number, _encrypt(kek, key, self._associated_data(context, number))

        number, ciphertext = await self._token.run(encrypt)
        return WrappedKey(
            kek_id=self._kek_id, kek_version=number, ciphertext=ciphertext, context_sha256=context.sha256()
        )

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """See `kek.KeyEncryptionKey`."""
        wrapped.require(kek_id=self._kek_id, context=context)
        if len(wrapped.ciphertext) != _NONCE_BYTES + DATA_KEY_BYTES + _TAG_BYTES:
            raise StoredDataUnreadable(f"wrapped bytes for {context} have the wrong length")
        associated = self._associated_data(context, wrapped.kek_version)

        def decrypt(session: Session) -> bytes:
            versions = self._versions(session)
            if not versions:
                raise _refused(f"token has no key {self._kek_id}")
            kek = versions.get(wrapped.kek_version)
            if kek is None:
                raise StoredDataUnreadable(f"wrapped under version {wrapped.kek_version}, which {self._kek_id} has not")
            if not isinstance(kek, DecryptMixin):
                raise _refused(f"{self._kek_id} is disabled: CKA_DECRYPT is false")
            return _decrypt(kek, wrapped.ciphertext, associated)

        return DataKey(await self._token.run(decrypt))

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        return await self.wrap(await self.unwrap(wrapped, context), context)

    async def state(self) -> KekState:
        """See `kek.KeyEncryptionKey`. PENDING_DELETION is not possible here."""

        def look(session: Session) -> tuple[int, KekStatus]:
            versions = self._versions(session)
            if not versions:
                return 0, KekStatus.DESTROYED
            newest = max(versions)
            kek = versions[newest]
            usable = isinstance(kek, EncryptMixin) and isinstance(kek, DecryptMixin)
            return newest, KekStatus.ENABLED if usable else KekStatus.DISABLED

        number, status = await self._token.run(look)
        return KekState(kek_id=self._kek_id, current_version=number, status=status, possible=_POSSIBLE)

    def _require_none(self, session: Session) -> None:
        if self._versions(session):
            raise ConfigurationError(f"there is a key already, and it is not replaced: {self._kek_id}")

    @contextmanager
    def _staged(self, session: Session) -> Iterator[SecretKey]:
        """A new key that nobody uses yet, under a label of its own, and the only such one in the token.

        Two versions of one number would bar every use of the key, and whichever was destroyed
        again might have wrapped something meanwhile. So a number is chosen by whoever finds
        nobody else about to choose; of two who find each other both give way.
        """
        label = self._label + _STAGED_SUFFIX
        staged = _generate(session, label)
        try:
            sought = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label}
            if len(list(session.get_objects(sought))) > 1:
                raise Conflict(
                    f"another process adds a version to {self._kek_id}: try again. If none does, one was cut off: "
                    f"destroy the object {label}, which has wrapped nothing"
                )
            yield staged
        except BaseException:
            with suppress(p11.PKCS11Error):
                staged.destroy()
            raise

    def _current(self, session: Session) -> tuple[int, SecretKey]:
        versions = self._versions(session)
        if not versions:
            raise _refused(f"token has no key {self._kek_id}")
        newest = max(versions)
        return newest, versions[newest]

    def _versions(self, session: Session) -> dict[int, SecretKey]:
        """Every version by its number, each proven to stay inside the token."""
        versions: dict[int, SecretKey] = {}
        sought = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: self._label}
        for found in list(session.get_objects(sought)):  # To its end: a session has one search at a time.
            if not isinstance(found, SecretKey):
                raise _refused(f"{self._kek_id} is not a secret key")
            identifier = bytes(found[Attribute.ID])
            number = int.from_bytes(identifier)
            if not 0 < len(identifier) <= 4 or number == 0 or number in versions:
                raise _refused(f"{self._kek_id} has an object whose CKA_ID is no version of its own")
            _require_confined(found, self._kek_id)
            versions[number] = found
        return versions

    def _associated_data(self, context: KeyContext, version: int) -> bytes:
        return _WRAP_LABEL + length_prefixed(self._kek_id.encode(), struct.pack(">I", version), context.to_bytes())


def _generate(session: Session, label: str) -> SecretKey:
    template: dict[Attribute, Any] = {
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.ENCRYPT: True,
        Attribute.DECRYPT: True,
        Attribute.WRAP: False,
        Attribute.UNWRAP: False,
        Attribute.SIGN: False,
        Attribute.VERIFY: False,
        Attribute.DERIVE: False,
    }
    return session.generate_key(KeyType.AES, _KEY_BYTES * 8, label=label, store=True, template=template)


def _publish(staged: SecretKey, label: str, number: int) -> None:
    """Makes a staged key the version of that number; it is one from the moment that it has the label."""
    staged[Attribute.ID] = struct.pack(">I", number)
    staged[Attribute.LABEL] = label


def _require_confined(kek: SecretKey, kek_id: str) -> None:
    if kek.key_type is not KeyType.AES or kek[Attribute.VALUE_LEN] != _KEY_BYTES:
        raise _refused(f"{kek_id} is not an AES key of 256 bits")
    if kek[Attribute.EXTRACTABLE] or not kek[Attribute.SENSITIVE]:
        raise _refused(f"{kek_id} can be read out of the token")


def _encrypt(kek: EncryptMixin, key: DataKey, associated: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    parameters = _gcm(nonce, associated)
    # Revealed here and in no local: a traceback may be printed with them.
    return nonce + _bytes(kek.encrypt(key.reveal(), mechanism=Mechanism.AES_GCM, mechanism_param=parameters))


def _decrypt(kek: DecryptMixin, ciphertext: bytes, associated: bytes) -> bytes:
    nonce, sealed = ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:]
    try:
        return _bytes(kek.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=_gcm(nonce, associated)))
    except p11.PKCS11Error as error:
        # Modules disagree on the code for a tag that does not fit: SoftHSM says CKR_GENERAL_ERROR, which
        # may as well mean a broken token. One that opens what it has just sealed is not broken.
        if is_certain(error) or not _works(kek):
            raise translated(error) from error
        raise StoredDataUnreadable("wrapped bytes do not authenticate") from error


def _works(kek: DecryptMixin) -> bool:
    probe, associated = DataKey.generate(), b"casemate/pkcs11-probe@v1"
    if not isinstance(kek, EncryptMixin):
        return True  # It may decrypt only. That it was found shows that the token answers.
    try:
        sealed = _encrypt(kek, probe, associated)
        parameters = _gcm(sealed[:_NONCE_BYTES], associated)
        opened = kek.decrypt(sealed[_NONCE_BYTES:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
    except p11.PKCS11Error:
        return False
    return _bytes(opened) == probe.reveal()


def _bytes(answer: bytes | Iterator[bytes]) -> bytes:
    """The library gives bytes for bytes, which its types do not say."""
    return answer if isinstance(answer, bytes) else b"".join(answer)


def _gcm(nonce: bytes, associated: bytes) -> GCMParams:
    return GCMParams(nonce, associated, _TAG_BYTES * 8)


def _refused(detail: str) -> FailedPrecondition:
    return FailedPrecondition(detail, reason=Reason.KEY_NOT_ACTIVE)
