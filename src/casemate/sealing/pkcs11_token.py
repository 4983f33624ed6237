"""One login to a PKCS#11 token, and the one thread that talks to it.

A module serialises or forbids concurrent calls in one session, and its calls
block. So all of them run on one thread, in one session; a login counts for the
whole process. A lost session is opened again by the next call.

Needs the extra `casemate[pkcs11]`, and a module such as libsofthsm2.so. After a
fork a module must be loaded anew: open the token in the process that uses it.

If this fails: a second program with the PIN uses the keys. It cannot read them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

import pkcs11
from pkcs11 import exceptions as p11

from casemate.errors import CasemateError, ConfigurationError, FailedPrecondition, Reason, Unavailable
from casemate.sealing.dedicated_thread import DedicatedThread
from casemate.secret import Secret

T = TypeVar("T")

DEFAULT_TIMEOUT: Final = timedelta(seconds=10)

_LOST: Final = (
    p11.SessionHandleInvalid,
    p11.SessionClosed,
    p11.DeviceRemoved,
    p11.DeviceError,
    p11.TokenNotPresent,
    p11.TokenNotRecognised,
    p11.NoSuchToken,
    p11.SlotIDInvalid,
    p11.UserNotLoggedIn,
)
_PIN_REFUSED: Final = (p11.PinIncorrect, p11.PinInvalid, p11.PinLenRange, p11.PinLocked, p11.PinExpired)
_KEY_REFUSED: Final = (
    p11.FunctionNotSupported,
    p11.FunctionRejected,
    p11.KeyHandleInvalid,
    p11.KeySizeRange,
    p11.KeyTypeInconsistent,
    p11.MechanismInvalid,
    p11.MechanismParamInvalid,
    p11.ObjectHandleInvalid,
    p11.TokenWriteProtected,
    p11.SessionReadOnly,
)
_KEY_FUNCTION_NOT_PERMITTED: Final = "0x68"  # CKR_KEY_FUNCTION_NOT_PERMITTED, which the library has no class for


class Pkcs11Token:
    """A token, logged in. Made by `open`; every `pkcs11.Pkcs11Key` of the process shares it."""

    __slots__ = ("_label", "_module", "_pin", "_pin_refused", "_session", "_thread", "_timeout")

    def __init__(self, *, module: Path, label: str, pin: Secret[str], timeout: timedelta) -> None:
        self._module = module
        self._label = label
        self._pin = pin
        self._pin_refused = False
        self._timeout = timeout
        self._session: pkcs11.Session | None = None
        self._thread = DedicatedThread(name="pkcs11")

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        module: Path,
        label: str,
        pin: Secret[str],
        timeout: timedelta = DEFAULT_TIMEOUT,  # noqa: ASYNC109  # of each later call
    ) -> AsyncIterator[Pkcs11Token]:
        """The token called `label`, logged in until the block ends.

        Args:
            module: the shared library of the module's maker.
            label: the token's label.
            pin: the user's PIN. One that is refused is not tried again, since a
                token locks itself after a few.
            timeout: for each call, the wait for the calls before it included.

        Raises:
            ConfigurationError: no such module or token, the PIN is refused, or
                this process is logged in to the token already.
            Unavailable: the module does not answer in time.
        """
        token = cls(module=module, label=label, pin=pin, timeout=timeout)
        try:
            await token._thread.run(token._log_in, timeout=timeout)
            yield token
        finally:
            with suppress(Unavailable):  # A device that hangs is left to the end of the process.
                await token._thread.run(token._log_out, timeout=timeout)
            token.close()

    @property
    def label(self) -> str:
        """The token's label."""
        return self._label

    def close(self) -> None:
        """Ends the thread, after the calls that wait. `open` does it."""
        self._thread.close()

    async def run(self, job: Callable[[pkcs11.Session], T], *, writing: bool = False) -> T:
        """What `job` makes of the session, on the token's thread.

        Args:
            job: calls of the module and nothing that waits for anything else.
            writing: whether it makes or changes objects; it gets a session of its own then.

        Raises:
            Unavailable: the module failed, the token is not there, or did not answer in time.
            FailedPrecondition: the module refuses the key or the PIN.
        """
        return await self._thread.run(lambda: self._guarded(job, writing=writing), timeout=self._timeout)

    def _guarded(self, job: Callable[[pkcs11.Session], T], *, writing: bool) -> T:
        session = self._session if self._session is not None else self._log_in_again()
        try:
            if not writing:
                return job(session)
            with session.token.open(rw=True) as own:  # Logged in already: a login is the process's.
                return job(own)
        except p11.PKCS11Error as error:
            if isinstance(error, _LOST):
                self._log_out()
            raise translated(error) from error

    def _log_in_again(self) -> pkcs11.Session:
        """The login of a process that runs already, for which a refusal is no mistake in its configuration."""
        try:
            return self._log_in()
        except ConfigurationError as error:
            if self._pin_refused:
                raise FailedPrecondition(str(error), reason=Reason.KEY_NOT_ACTIVE) from error
            raise Unavailable(str(error)) from error

    def _log_in(self) -> pkcs11.Session:
        if self._pin_refused:
            raise ConfigurationError(f"token {self._label} refused the PIN, which is not tried again")
        try:
            library = pkcs11.lib(str(self._module))
            token = library.get_token(token_label=self._label)
            self._session = token.open(user_pin=self._pin.reveal())
        except _PIN_REFUSED as error:
            self._pin_refused = True
            raise ConfigurationError(f"token {self._label} refuses the PIN: {type(error).__name__}") from error
        except p11.UserAlreadyLoggedIn as error:
            message = f"this process is logged in to token {self._label} already: share one Pkcs11Token"
            raise ConfigurationError(message) from error
        except (p11.NoSuchToken, p11.MultipleTokensReturned) as error:
            message = f"not exactly one token is called {self._label} in {self._module}"
            raise ConfigurationError(message) from error
        except p11.PKCS11Error as error:
            raise ConfigurationError(f"{self._module} gives no token {self._label}: {_name(error)}") from error
        return self._session

    def _log_out(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(p11.PKCS11Error):  # Lost already.
                session.close()


def translated(error: p11.PKCS11Error) -> CasemateError:
    """What a module answered, as one of ours; never for bytes that it does not decrypt."""
    if isinstance(error, _KEY_REFUSED) or _KEY_FUNCTION_NOT_PERMITTED in str(error).split():
        return FailedPrecondition(f"the token refuses the key: {_name(error)}", reason=Reason.KEY_NOT_ACTIVE)
    return Unavailable(f"the token cannot answer: {_name(error)}")


def is_certain(error: p11.PKCS11Error) -> bool:
    """Whether the error says by itself that the token or the key is at fault, not the bytes given."""
    return isinstance(error, (*_LOST, *_KEY_REFUSED)) or _KEY_FUNCTION_NOT_PERMITTED in str(error).split()


def _name(error: p11.PKCS11Error) -> str:
    return f"{type(error).__name__} {error}".strip()
