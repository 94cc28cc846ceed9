"""hawkBit's Direct Device Integration API, version 1: the sixteen operations, as one ASGI application.

Order of checks for every request: path (404), method (405), limits (429), credential (401), device (404), media types
(406, 415), body (400). A poll that changes nothing costs one indexed read and no write.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import quote, unquote

import structlog
from starlette.types import Receive, Scope, Send

from openiodm.access.model import ApplicationKey, Product, hash_authority, hash_secret
from openiodm.access.request_limit import Asks, RequestLimit
from openiodm.campaigns.model import LogEntry, UpgradeKey
from openiodm.campaigns.reports import Outcome
from openiodm.campaigns.rollout import Answer, Contact, Progress, What, asks_confirmation, offers_bytes, wants_contact
from openiodm.campaigns.states import FINAL, UpgradeEvent, UpgradeState
from openiodm.clock import SECOND, Clock, Instant
from openiodm.devices.model import DeviceKey
from openiodm.errors import Reason, Refusal, Unavailable
from openiodm.http.clients import client_address, last_of, peer_of
from openiodm.protocols import ranges
from openiodm.protocols.ddi import answers, codec, session
from openiodm.protocols.ddi.answers import ErrorCode
from openiodm.protocols.ddi.codec import DdiFormatError
from openiodm.protocols.ddi.negotiation import Media, choose_media, etag_of, media_of
from openiodm.protocols.ddi.session import Base
from openiodm.protocols.download import Asked, Downloads
from openiodm.protocols.etags import match_etag
from openiodm.protocols.port import Contacted, Credential, DeviceDirectory, File, KnownDevice, PackageAway
from openiodm.protocols.signed import SignedLinks

log = structlog.get_logger(__name__)

AUTHORITY = re.compile(r"x-authority(-[0-9]{1,2})?")
MAX_AUTHORITIES = 10  # of one request
SCHEMES = ("http", "https")
CREDENTIALS = {"gatewaytoken": Credential.GATEWAY, "targettoken": Credential.TARGET}
DEFAULT_TENANT = "DEFAULT"  # agents send it in any case; then the token alone decides the application
NO_TEXT = "\ufffd"  # what percent-encoded bytes that are no UTF-8 are read as: one id for many devices
MAX_CONTROLLER_ID = 256  # characters, as the contract's nodeId


class Campaigns(Protocol):
    """What this protocol asks of the core."""

    async def signal(self, device: DeviceKey, what: What) -> Outcome:
        """Durable when it returns."""
        ...


class Devices(Protocol):
    """What this protocol asks of the devices room. Everything is durable when it returns."""

    async def self_register(self, application: ApplicationKey, node_id: str, product: Product, address: str) -> object:
        """The device of that node id, new or not."""
        ...

    async def told_attributes(self, device: DeviceKey, mode: str, data: Mapping[str, str | None]) -> None:
        """configData: keeps it, and lets a version that is in it count."""
        ...

    async def told_installed(self, device: DeviceKey, name: str, version: str) -> bool:
        """installedBase: what the device says it runs; True when that was news."""
        ...

    async def set_auto_confirm(self, device: DeviceKey, state: codec.AutoConfirm | None) -> bool:
        """Switches auto-confirmation; False when it was so already."""
        ...

    def seen(self, device: DeviceKey, address: str, *, activated: bool) -> None:
        """Notes a contact, the first one unless `activated`; written in bulk, later."""
        ...


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: tuple[str, ...]  # after the controller id
    tenant: str
    node_id: str
    headers: Mapping[str, str]
    query: str
    base: Base
    address: str
    proxied: bool  # by one that is trusted
    receive: Receive
    send: Send


@dataclass(frozen=True, slots=True)
class _Caller:
    """An authenticated request with its device."""

    contacted: Contacted
    device: KnownDevice


class _Answer(Exception):
    """Ends a request early with an error answer."""

    def __init__(
        self, status: int, code: ErrorCode | None = None, message: str = "", *, retry_after_s: int = 0
    ) -> None:
        super().__init__(status)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def _is_default(tenant: str) -> bool:
    return tenant.upper() == DEFAULT_TENANT


def _not_found(message: str) -> _Answer:
    return _Answer(404, ErrorCode.ENTITY_NOT_FOUND, message)


Handler = Callable[["DdiServer", _Request, _Caller], Awaitable[None]]


class DdiServer:
    """The ASGI application."""

    def __init__(
        self,
        directory: DeviceDirectory,
        campaigns: Campaigns,
        devices: Devices,
        downloads: Downloads,
        clock: Clock,
        limit: RequestLimit,
        *,
        poll_seconds: int,
        device_url: str = "",
        links: SignedLinks | None = None,
        trusted_proxies: frozenset[str] = frozenset(),
    ) -> None:
        self._directory = directory
        self._campaigns = campaigns
        self._devices = devices
        self._downloads = downloads
        self._links = links
        self._clock = clock
        self._limit = limit
        self._poll_seconds = poll_seconds
        self._device_url = device_url.rstrip("/")
        self._trusted_proxies = trusted_proxies

    @staticmethod
    def serves(path: str) -> bool:
        """Is it a path of this API? `/{tenant}/controller/v1/...`."""
        parts = path.split("/", 4)
        return len(parts) > 4 and parts[2] == "controller" and parts[3] == "v1"

    @staticmethod
    def kind_of(path: str) -> str:
        """What a path of this API is for: poll, report, download or other."""
        below = path.split("/")[5:]
        if below in ([], [""]):
            return "poll"
        if below[-1] == "feedback":
            return "report"
        return "download" if below[0] == "softwaremodules" and len(below) == 4 else "other"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        request = self._request(scope, receive, send)
        try:
            await self._dispatch(request)
        except _Answer as answer:
            await _error(request, answer)
        except DdiFormatError as error:
            code = answers.error_code_of(error)
            await _error(request, _Answer(answers.STATUS_OF[code], code, str(error)))
        except Refusal as refusal:
            await _error(request, _refused(refusal))
        except Unavailable as error:
            # Not 503: SWUpdate takes that for a refusal of its credentials.
            log.warning("ddi_request_not_served", path=scope["path"], error=str(error))
            await _error(request, _Answer(500, None, "the database cannot be had now"))
        except Exception:
            log.exception("ddi_request_failed", path=scope["path"])
            await _error(request, _Answer(500, None, "internal server error"))

    def _request(self, scope: Scope, receive: Receive, send: Send) -> _Request:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        parts = [unquote(p) for p in raw.decode("latin-1").split("/")]
        if len(parts) < 5:  # a slash of the API came as %2F: this is no path of it
            parts += [NO_TEXT] * (6 - len(parts))
        tenant, node_id = parts[1], parts[4]
        at = raw.decode("latin-1").split("/")[:5]
        if _is_default(tenant):
            at[1] = DEFAULT_TENANT  # as hawkBit: older Zephyrs ask for `default`, and take links with `DEFAULT` alone
        url = self._url(scope, headers)
        return _Request(
            method=scope["method"],
            path=tuple(parts[5:]),
            tenant=tenant,
            node_id=node_id,
            headers=headers,
            query=scope["query_string"].decode("latin-1"),
            base=Base(url + "/".join(at), url.startswith("https:")),
            address=client_address(scope, self._trusted_proxies),
            proxied=peer_of(scope) in self._trusted_proxies,
            receive=receive,
            send=send,
        )

    def _url(self, scope: Scope, headers: Mapping[str, str]) -> str:
        if self._device_url:
            return self._device_url
        scheme, host = scope["scheme"], headers.get("host", "")
        if peer_of(scope) in self._trusted_proxies:
            told = last_of(scope, b"x-forwarded-proto").lower()
            scheme = told if told in SCHEMES else scheme
            host = last_of(scope, b"x-forwarded-host") or host
        if not host:
            name, port = scope["server"]
            host = f"{name}:{port}"
        return f"{scheme}://{host}"

    async def _dispatch(self, request: _Request) -> None:
        methods = _operations(request.path)
        if methods is None:
            raise _not_found("there is no such resource")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = sorted({*methods, *({"HEAD"} if "GET" in methods else ())})
            await _reply(request, 405, headers={"allow": ", ".join(allowed)})
            return
        if NO_TEXT in request.node_id or "\0" in request.node_id:
            raise _Answer(400, ErrorCode.CONSTRAINT_VIOLATION, "the controller id is no text")
        shown = tuple(_credentials(request))
        sender = hash((request.tenant.lower(), request.node_id, shown))
        await self._its_turn(request, sender, handler)
        contacted = await self._authenticate(request, shown)
        if contacted is None:
            self._limit.failed(request.address, sender)
            raise _Answer(401)
        self._limit.accepted(sender)
        if contacted.device is None:
            if handler not in (DdiServer._poll, DdiServer._confirmation_status):
                raise _not_found(f"there is no target {request.node_id}")
            contacted = await self._first_contact(request, contacted, shown)
        assert contacted.device is not None
        self._devices.seen(contacted.device.key, request.address, activated=contacted.device.activated)
        await handler(self, request, _Caller(contacted, contacted.device))

    async def _its_turn(self, request: _Request, sender: Hashable, handler: "Handler") -> None:
        """Waits for it, or refuses; the database has not been asked yet."""
        turn = self._limit.device(request.address, sender, _ASKS.get(handler, Asks.ANYTHING))
        if turn.refused:
            raise _Answer(429, None, turn.why, retry_after_s=turn.retry_after_s)
        if turn.wait:
            await asyncio.sleep(turn.wait / SECOND)

    async def _authenticate(self, request: _Request, shown: Sequence[tuple[Credential, str]]) -> Contacted | None:
        for credential, token_hash in shown:
            contacted = await self._directory.contact(credential, token_hash, request.node_id)
            if contacted is not None and (
                _is_default(request.tenant) or request.tenant.lower() == contacted.app_id.lower()
            ):
                return contacted
        return None

    async def _first_contact(
        self, request: _Request, contacted: Contacted, shown: Sequence[tuple[Credential, str]]
    ) -> Contacted:
        """A gateway token speaks for it: it is registered now. Many first contacts at once agree on one row."""
        assert contacted.gateway_product is not None
        if not 0 < len(request.node_id) <= MAX_CONTROLLER_ID:
            raise _Answer(
                400, ErrorCode.CONSTRAINT_VIOLATION, f"a controller id has 1 to {MAX_CONTROLLER_ID} characters"
            )
        await self._devices.self_register(
            contacted.application, request.node_id, contacted.gateway_product, request.address
        )
        again = await self._authenticate(request, shown)
        if again is None:
            raise _Answer(401)
        return again

    async def _granted(self, caller: _Caller, now: Instant) -> Contacted:
        """The caller after its turn, if it is due one: the grant is committed before it is told."""
        s = caller.contacted.standing
        if s is None or not wants_contact(s, now):
            return caller.contacted
        outcome = await self._campaigns.signal(caller.device.key, Contact())
        standing = outcome.standing
        if standing is not None and standing.state in FINAL:
            standing = None
        return replace(caller.contacted, standing=standing)

    # -- operations 1, 9: what is there to do?

    async def _poll(self, request: _Request, caller: _Caller) -> None:
        media = _accepted(request)
        now = self._clock.now()
        contacted = await self._granted(caller, now)
        body = answers.encode_poll(session.poll(contacted, request.base, self._poll_seconds, now), media)
        await _cacheable(request, body, media)

    async def _confirmation_status(self, request: _Request, caller: _Caller) -> None:
        media = _accepted(request)
        now = self._clock.now()
        s = (await self._granted(caller, now)).standing
        base = f"{request.base.url}/confirmationBase"
        state = None if caller.device.auto_confirm is None else answers.auto_confirm_state(caller.device.auto_confirm)
        waiting = s is not None and asks_confirmation(s, now)
        status = answers.ConfirmationStatus(
            auto_confirm=state,
            activate=f"{base}/activateAutoConfirm" if state is None else None,
            deactivate=None if state is None else f"{base}/deactivateAutoConfirm",
            confirmation_base=f"{base}/{s.action_id}" if s is not None and waiting else None,
        )
        await _cacheable(request, answers.encode_confirmation_status(status, media), media)

    # -- operations 2, 8: what the device says of itself

    async def _config_data(self, request: _Request, caller: _Caller) -> None:
        told = codec.decode_config_data(*await _body(request))
        await self._devices.told_attributes(caller.device.key, told.mode.value, told.data)
        await _reply(request, 200)

    async def _told_installed(self, request: _Request, caller: _Caller) -> None:
        told = codec.decode_installed_base(*await _body(request))
        news = await self._devices.told_installed(caller.device.key, told.name, told.version)
        await _reply(request, 201 if news else 200)

    # -- operations 3, 7, 10, 14: what to install

    async def _deployment(self, request: _Request, caller: _Caller) -> None:
        s, action_id = caller.contacted.standing, codec.parse_action_id(request.path[1])
        if s is None or not session.is_offered(s) or s.action_id != action_id:
            raise _not_found(f"there is no deployment {action_id}")
        await self._send_deployment(request, caller.contacted, answers.encode_deployment, "RUNNING")

    async def _confirmation_base(self, request: _Request, caller: _Caller) -> None:
        s, action_id = caller.contacted.standing, codec.parse_action_id(request.path[1])
        if s is None or not asks_confirmation(s, self._clock.now()) or s.action_id != action_id:
            raise _not_found(f"no action {action_id} waits for confirmation")
        await self._send_deployment(request, caller.contacted, answers.encode_confirmation, "WAIT_FOR_CONFIRMATION")

    async def _send_deployment(
        self, request: _Request, contacted: Contacted, encode: Callable[..., bytes], status: str
    ) -> None:
        media = _accepted(request)
        s, file = contacted.standing, contacted.file
        assert s is not None
        assert s.action_id is not None
        assert file is not None
        history = await self._history(request, s.upgrade, s.action_id, status)
        # Law 7 holds before an address is told that nobody asks of later.
        links = self._links if offers_bytes(s) else None
        bytes_url = None if links is None else links.url(file, self._clock.now())
        deployment = session.deployment(s.action_id, file, request.base, history, bytes_url)
        await _cacheable(request, encode(deployment, media, secure=request.base.secure), media)

    async def _history(
        self, request: _Request, upgrade: UpgradeKey, action_id: int, status: str
    ) -> answers.ActionHistory | None:
        count = codec.parse_history(_query(request.query, "actionHistory"))
        if not count:
            return None
        return answers.ActionHistory(status, tuple(await self._directory.kept_log(upgrade, action_id, count)))

    async def _installed_base(self, request: _Request, caller: _Caller) -> None:
        media = _accepted(request)
        action_id = codec.parse_action_id(request.path[1])
        installed = await self._directory.installed(caller.device.key, action_id)
        if installed is None:
            raise _not_found(f"there is no installed action {action_id}")
        history = await self._history(request, installed.upgrade, action_id, "FINISHED")
        deployment = session.deployment(action_id, installed.file, request.base, history)
        await _cacheable(request, answers.encode_deployment(deployment, media, secure=request.base.secure), media)

    async def _artifacts(self, request: _Request, caller: _Caller) -> None:
        media = _accepted(request)
        file = await self._listed(caller, request.path[1])
        if file is None:
            raise _not_found("there is no such software module")
        body = answers.encode_artifacts((session.artifact(file, request.base),), media, secure=request.base.secure)
        await _cacheable(request, body, media)

    async def _listed(self, caller: _Caller, module_id: str) -> File | None:
        """The package of the open attempt or of the last one that succeeded; its bytes are for the open one alone."""
        open_one = caller.contacted.file
        if open_one is not None and session.may_download(caller.contacted, module_id, open_one.name):
            return open_one
        if caller.device.installed_action_id is None:
            return None
        last = await self._directory.installed(caller.device.key, caller.device.installed_action_id)
        return last.file if last is not None and last.file.file_id == module_id else None

    # -- operations 4, 6, 11: feedback

    async def _feedback(self, request: _Request, caller: _Caller) -> None:
        action_id = codec.parse_action_id(request.path[1])
        feedback = codec.decode_feedback(*await _body(request))
        what = session.report(action_id, feedback, caller.contacted.standing)
        await self._signal(request, caller, what)

    async def _cancel_feedback(self, request: _Request, caller: _Caller) -> None:
        action_id = codec.parse_action_id(request.path[1])
        feedback = codec.decode_feedback(*await _body(request))
        await self._signal(request, caller, session.cancel_answer(action_id, feedback))

    async def _confirmation_feedback(self, request: _Request, caller: _Caller) -> None:
        action_id = codec.parse_action_id(request.path[1])
        answer = codec.decode_confirmation(*await _body(request))
        await self._signal(request, caller, session.confirmation(action_id, answer))

    async def _signal(self, request: _Request, caller: _Caller, what: What) -> None:
        outcome = await self._campaigns.signal(caller.device.key, what)
        match outcome.answer:
            case Answer.DONE:
                await _reply(request, 200)
            case Answer.GONE:
                raise _Answer(410, None, "the action is no longer active")
            case Answer.UNKNOWN:
                raise _not_found("there is no such action")

    # -- operation 5: which action to stop

    async def _cancel(self, request: _Request, caller: _Caller) -> None:
        media = _accepted(request)
        s, action_id = caller.contacted.standing, codec.parse_action_id(request.path[1])
        if s is None or not session.is_cancelled(s) or s.action_id != action_id:
            raise _not_found(f"there is no cancellation of {action_id}")
        await _cacheable(request, answers.encode_cancel(action_id, media), media)

    # -- operations 12, 13: auto-confirmation

    async def _activate_auto_confirm(self, request: _Request, caller: _Caller) -> None:
        raw = await _read(request)
        wish = codec.decode_auto_confirm(raw, media_of(request.headers.get("content-type")))
        if not await self._devices.set_auto_confirm(caller.device.key, wish):
            raise _Answer(409, ErrorCode.AUTO_CONFIRM_ACTIVE, "auto-confirmation is active already")
        await _reply(request, 200)

    async def _deactivate_auto_confirm(self, request: _Request, caller: _Caller) -> None:
        await self._devices.set_auto_confirm(caller.device.key, None)
        await _reply(request, 200)

    # -- operations 15, 16: the bytes

    async def _artifact(self, request: _Request, caller: _Caller) -> None:
        contacted, file, name = caller.contacted, caller.contacted.file, request.path[3]
        if file is not None and session.may_download(contacted, request.path[1], name):
            await self._download(request, caller)
        elif file is not None and session.may_download(contacted, request.path[1], name.removesuffix(".MD5SUM")):
            disposition = ranges.content_disposition(name)
            body = answers.encode_md5sum(file.md5, file.name)
            await _reply(request, 200, body, "text/plain;charset=utf-8", {"content-disposition": disposition})
        else:
            raise _not_found("there is no such artifact")

    async def _download(self, request: _Request, caller: _Caller) -> None:
        file, s = caller.contacted.file, caller.contacted.standing
        assert file is not None
        assert s is not None
        assert s.action_id is not None
        plan = ranges.plan(request.headers, file.size, f'"{file.sha1}"', file.stored_at, method=request.method)
        sends = plan.status in (200, 206) and request.method == "GET"
        if sends and s.state is UpgradeState.OFFERED:
            begun = Progress(s.action_id, LogEntry("download"), UpgradeEvent.DOWNLOAD_STARTED)
            if (await self._campaigns.signal(caller.device.key, begun)).answer is not Answer.DONE:
                raise _not_found("there is no such artifact")

        async def still_allowed() -> bool:
            current = await self._directory.current(s.upgrade)
            return current is not None and current.action_id == s.action_id and offers_bytes(current)

        asked = Asked(request.method, request.headers, request.proxied, request.receive, request.send)
        headers = {"Content-Disposition": ranges.content_disposition(file.name)}
        try:
            complete = await self._downloads.send(asked, file.sha256, plan, headers, still_allowed)
        except FileNotFoundError as error:
            log.error("package_file_missing", file_id=file.file_id, sha256=file.sha256)
            raise _not_found("the artifact is not in the store") from error
        except PackageAway as error:
            log.error("package_away", sha256=file.sha256, error=str(error))
            raise _Answer(503, None, "the artifact cannot be had now") from error
        if not complete:
            log.info("download_broken_off", device=caller.device.device_id, action_id=s.action_id)


_POLL: dict[str, Handler] = {"GET": DdiServer._poll}
_ONE: dict[str, dict[str, Handler]] = {
    "configData": {"PUT": DdiServer._config_data},
    "installedBase": {"PUT": DdiServer._told_installed},
    "confirmationBase": {"GET": DdiServer._confirmation_status},
}
_TWO: dict[str, dict[str, Handler]] = {
    "deploymentBase": {"GET": DdiServer._deployment},
    "cancelAction": {"GET": DdiServer._cancel},
    "installedBase": {"GET": DdiServer._installed_base},
    "confirmationBase": {"GET": DdiServer._confirmation_base},
}
_AUTO_CONFIRM: dict[str, dict[str, Handler]] = {
    "activateAutoConfirm": {"POST": DdiServer._activate_auto_confirm},
    "deactivateAutoConfirm": {"POST": DdiServer._deactivate_auto_confirm},
}
_FEEDBACK: dict[str, dict[str, Handler]] = {
    "deploymentBase": {"POST": DdiServer._feedback},
    "cancelAction": {"POST": DdiServer._cancel_feedback},
    "confirmationBase": {"POST": DdiServer._confirmation_feedback},
}
_ASKS: dict[Handler, Asks] = {
    DdiServer._feedback: Asks.TO_REPORT,
    DdiServer._cancel_feedback: Asks.TO_REPORT,
    DdiServer._confirmation_feedback: Asks.TO_REPORT,
    DdiServer._artifact: Asks.BYTES,
}


def _operations(path: tuple[str, ...]) -> dict[str, Handler] | None:
    """The methods of a path below the controller id, or None when there is no such resource."""
    match path:
        case () | ("",):
            return _POLL
        case (name,):
            return _ONE.get(name)
        case ("confirmationBase", name) if name in _AUTO_CONFIRM:
            return _AUTO_CONFIRM[name]
        case (name, _):
            return _TWO.get(name)
        case ("softwaremodules", _, "artifacts"):
            return {"GET": DdiServer._artifacts}
        case ("softwaremodules", _, "artifacts", _):
            return {"GET": DdiServer._artifact}
        case (name, _, "feedback"):
            return _FEEDBACK.get(name)
        case _:
            return None


def _accepted(request: _Request) -> Media:
    media = choose_media(request.headers.get("accept"))
    if media is None:
        raise _Answer(406)
    return media


def _credentials(request: _Request) -> Iterator[tuple[Credential, str]]:
    """What a request shows, with its hash: a token; else, by a trusted proxy, whose certificate it saw.

    The proxy names the device in X-Controller-Id, and the authorities that signed for it in X-Authority (several by
    comma or semicolon) or in X-Authority-0, -1 and on.
    """
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    credential = CREDENTIALS.get(kind.lower())
    if credential is not None and token:
        yield credential, hash_secret(token.strip())
    elif request.proxied and request.headers.get("x-controller-id") == request.node_id:
        told = [value for name, value in sorted(request.headers.items()) if AUTHORITY.fullmatch(name)]
        named = [a for a in re.split("[,;]", ",".join(told)) if a.strip()]
        for authority in named[:MAX_AUTHORITIES]:
            yield Credential.GATEWAY, hash_authority(authority)


async def _body(request: _Request) -> tuple[bytes, Media]:
    media = media_of(request.headers.get("content-type"))
    if media is None:
        raise _Answer(415)
    return await _read(request), media


async def _read(request: _Request) -> bytes:
    """The whole body, refused as soon as it is larger than a DDI body can be."""
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _Answer(400)
        body += message.get("body", b"")
        if len(body) > codec.BODY_BYTES:
            raise _Answer(413)
        more = message.get("more_body", False)
    return bytes(body)


def _query(query: str, name: str) -> str | None:
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            return value
    return None


async def _cacheable(request: _Request, body: bytes, media: Media) -> None:
    etag = etag_of(body)
    headers = {"etag": etag, "vary": "Accept"}
    if match_etag(request.headers.get("if-none-match"), etag):
        await _reply(request, 304, headers=headers)
        return
    await _reply(request, 200, body, media.content_type, headers)


async def _error(request: _Request, answer: _Answer) -> None:
    if answer.status in (401, 406, 415):  # no body, or none that the client would take
        await _reply(request, answer.status)
        return
    error = answers.ErrorBody(error_code=answer.code, message=answer.message)
    headers = {"retry-after": str(answer.retry_after_s)} if answer.retry_after_s else None
    await _reply(request, answer.status, answers.encode_error(error, Media.JSON), Media.JSON.content_type, headers)


def _refused(refusal: Refusal) -> _Answer:
    if refusal.reason is Reason.DEVICE_LIMIT or (refusal.reason is Reason.BAD_INPUT and refusal.field == "data"):
        return _Answer(429, ErrorCode.TOO_MANY_ENTRIES, refusal.detail)
    return _Answer(400, ErrorCode.CONSTRAINT_VIOLATION, refusal.detail)


async def _reply(
    request: _Request, status: int, body: bytes = b"", content_type: str = "", headers: Mapping[str, str] | None = None
) -> None:
    raw: list[tuple[bytes, bytes]] = []
    if content_type:
        raw.append((b"content-type", content_type.encode("latin-1")))
    if status != 304:
        raw.append((b"content-length", str(len(body)).encode()))
    for name, value in (headers or {}).items():
        raw.append((name.encode("latin-1"), value.encode("latin-1")))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": raw}
    await request.send(start)
    await request.send({"type": "http.response.body", "body": body})
