"""KMS as moto has it, made strict where moto is not, and faulty where a test asks.

moto lets a disabled key decrypt, and one that is about to be deleted, and rewraps what
is another key's. This server stands before it, asks it for the key's state, and refuses as KMS does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

_USES_A_KEY = {"Encrypt", "Decrypt", "ReEncrypt", "GenerateDataKey", "Sign", "GetPublicKey"}
_LISTS = "ListKeyRotations"  # not of a key that is about to be deleted
_REFUSALS = {"Disabled": "DisabledException", "PendingDeletion": "KMSInvalidStateException"}


@dataclass
class FaultyKms:
    """The server and what it does wrong now.

    Attributes:
        refusal: error code and HTTP status that every call gets.
        refusals: codes that the next calls get, one each, before all goes well again.
        odd: a body that every call gets with status 200, whatever it asked.
        slow: whether no call is answered until the server ends.
        alters: fields of answers that are replaced, by operation.
        calls: the operations so far.
    """

    upstream: str
    http: aiohttp.ClientSession
    url: str = ""
    refusal: tuple[str, int] | None = None
    refusals: deque[tuple[str, int]] = field(default_factory=deque)
    odd: bytes | None = None
    slow: bool = False
    alters: dict[str, dict[str, str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    def give_another_plaintext(self) -> None:
        """From now on, whatever is decrypted comes out as some other key."""
        self.alters["Decrypt"] = {"Plaintext": base64.b64encode(secrets.token_bytes(32)).decode()}

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        operation = request.headers["X-Amz-Target"].partition(".")[2]
        self.calls.append(operation)
        if self.slow:
            await self.ending.wait()
        if self.odd is not None:
            return web.Response(body=self.odd, content_type="application/x-amz-json-1.1")
        if self.refusal or self.refusals:
            return _refused(*(self.refusals.popleft() if self.refusals else self.refusal))
        headers = {name: request.headers[name] for name in ("X-Amz-Target", "Authorization", "X-Amz-Date")}
        if operation in {"Decrypt", "ReEncrypt"} and _is_of_another_key(json.loads(body)):
            return _refused("IncorrectKeyException", 400)
        if operation in {*_USES_A_KEY, _LISTS}:
            code = await self._refusal_of_state(json.loads(body), headers)
            if code is not None and (operation != _LISTS or code == _REFUSALS["PendingDeletion"]):
                return _refused(code, 400)
        status, answer = await self._forward(headers, body)
        if operation == "GetPublicKey" and answer.get("KeyId") == json.loads(body)["KeyId"].rpartition("/")[2]:
            answer["KeyId"] = json.loads(body)["KeyId"]  # moto says the bare name
        if status == 200:
            answer |= self.alters.get(operation, {})
        return web.Response(status=status, body=json.dumps(answer), content_type="application/x-amz-json-1.1")

    async def _refusal_of_state(self, arguments: dict[str, str], headers: dict[str, str]) -> str | None:
        key = arguments.get("KeyId") or arguments["SourceKeyId"]
        asked = headers | {"X-Amz-Target": "TrentService.DescribeKey"}
        _, described = await self._forward(asked, json.dumps({"KeyId": key}).encode())
        return _REFUSALS.get(described.get("KeyMetadata", {}).get("KeyState", ""))

    async def _forward(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, object]]:
        headers = headers | {"Content-Type": "application/x-amz-json-1.1"}
        async with self.http.post(self.upstream, data=body, headers=headers) as answered:
            return answered.status, json.loads(await answered.read())


@asynccontextmanager
async def faulty_kms(upstream: str) -> AsyncIterator[FaultyKms]:
    """The double before moto's server at `upstream`, on a loopback port of its own."""
    async with aiohttp.ClientSession() as http:
        double = FaultyKms(upstream=upstream, http=http)
        application = web.Application()
        application.router.add_post("/", double.answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        double.url = f"http://{host}:{port}"
        try:
            yield double
        finally:
            double.ending.set()
            await runner.cleanup()


def _is_of_another_key(arguments: dict[str, str]) -> bool:
    """Whether the ciphertext, which begins with its key's name in moto, is of another key than is asked for.

    moto denies access then, or does not look at all.
    """
    asked = (arguments.get("KeyId") or arguments["SourceKeyId"]).rpartition("/")[2]
    return not base64.b64decode(arguments["CiphertextBlob"]).startswith(asked.encode())


def _refused(code: str, status: int) -> web.Response:
    body = json.dumps({"__type": code, "message": "as the test asked"})
    return web.Response(status=status, body=body, content_type="application/x-amz-json-1.1")
