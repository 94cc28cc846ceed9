"""A small HTTP client for the commands: one connection, one login, renewed when the server says that it is over.

Of the server's two APIs it understands both ways of saying no. Nothing here prints.
"""

import contextlib
import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote, urlencode, urlsplit

from openiodm.cli.failure import REFUSED, USAGE, Failure

DEFAULT_URL = "http://127.0.0.1:8743"
LOGIN = "/iocm/app/sec/v1.1.0/login"
TOKEN_OVER = "1010005"
THROTTLED = "1010009"
TIMEOUT_S = 60.0
MAX_IDLE_S = 20.0  # a connection that was idle for longer is not used again: the server may be closing it
LOGINS = 4  # tries of one call; another program's login with the same application ends ours
PATIENCE_S = 60.0  # how long a call waits for flow control to let it through
UPLOAD_PIECE = 256 * 1024
DOWNLOAD_PIECE = 64 * 1024

SAFE = frozenset({"GET", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True)
class Access:
    """Where the server is, and as whom to speak."""

    url: str
    app_id: str
    secret: str
    tls: ssl.SSLContext | None = None  # None: the system's authorities, no certificate of our own


def find_access(
    url: str | None,
    app_id: str | None,
    secret_file: Path | None,
    environ: Mapping[str, str] = os.environ,
    *,
    ca: Path | None = None,
    client_cert: str | None = None,
) -> Access:
    """Options win over the environment. The secret is never an option: others could read it in the process list.

    Raises:
        Failure: something is missing; it says how to give it.
    """
    application = app_id or environ.get("OPENIODM_APP_ID", "")
    if not application:
        raise Failure("which application? give --app-id or OPENIODM_APP_ID", USAGE)
    return Access(
        find_url(url, environ), application, _secret(secret_file, environ), find_tls(ca, client_cert, environ)
    )


def find_url(url: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The server's address: an option, or the environment, or the default."""
    return (url or environ.get("OPENIODM_URL") or DEFAULT_URL).rstrip("/")


def find_tls(
    ca: Path | None, client_cert: str | None, environ: Mapping[str, str] = os.environ
) -> ssl.SSLContext | None:
    """Whom to trust, and who we are: options, or the environment; None where nothing is said.

    Raises:
        Failure: a file cannot be used.
    """
    authorities = str(ca or environ.get("OPENIODM_CA", ""))
    shown = client_cert or environ.get("OPENIODM_CLIENT_CERT", "")
    if not authorities and not shown:
        return None
    certificate, _, key = shown.partition(",")
    try:
        context = ssl.create_default_context(cafile=authorities or None)
        if shown:
            context.load_cert_chain(certificate, key or None)
    except OSError as error:  # ssl.SSLError is one
        named = ", ".join(file for file in (authorities, certificate, key) if file)
        raise Failure(f"cannot use {named}: {error.strerror or error}", USAGE) from error
    return context


def _secret(secret_file: Path | None, environ: Mapping[str, str]) -> str:
    if secret_file is None:
        if secret := environ.get("OPENIODM_SECRET"):
            return secret
        if not (named := environ.get("OPENIODM_SECRET_FILE")):
            raise Failure(
                "the application's secret is missing: give OPENIODM_SECRET, OPENIODM_SECRET_FILE or --secret-file",
                USAGE,
            )
        secret_file = Path(named)
    return read_secret_file(secret_file)


def read_secret_file(path: Path) -> str:
    """A secret's file, without the line's end.

    Raises:
        Failure: it cannot be read, or is empty.
    """
    try:
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read the secret: {error}", USAGE) from error
    if not secret:
        raise Failure(f"{path} is empty", USAGE)
    return secret


class Refused(Failure):
    """The server said no. `code` names it: the contract's error_code, or the native API's reason."""

    def __init__(self, status: int, reason: str, detail: str, field: str | None) -> None:
        at = f", {field}" if field else ""
        super().__init__(f"{detail.rstrip('.')} ({reason}{at})", REFUSED)
        self.status = status
        self.reason = reason
        self.field = field

    @property
    def token_over(self) -> bool:
        """Would a new login help?"""
        return self.reason in {TOKEN_OVER, "token-invalid"}

    @property
    def throttled(self) -> bool:
        """Would waiting help?"""
        return self.reason in {THROTTLED, "throttled"}


class Client:
    """Calls of one application. Not for several threads at once."""

    def __init__(
        self,
        access: Access,
        *,
        timeout_s: float = TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        scheme, self._host, self._port, self._prefix = _parts(access.url)
        self.url = access.url
        self._access = access
        self._tls = (access.tls or ssl.create_default_context()) if scheme == "https" else None
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._now = now
        self._connection: http.client.HTTPConnection | None = None
        self._used_at = 0.0
        self._token: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; the login stays valid until it is over."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ----------------------------------------------------------------- calls

    def get(self, path: str, **query: Any) -> Any:
        """A GET; parameters that are None are left out."""
        return self.call("GET", path, query=query)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer's JSON, None for an empty one.

        Raises:
            Refused: the server said no.
            Failure: it cannot be reached, or answers what is no JSON.
        """
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})} if data is not None else dict(headers or {})

        def once() -> Any:
            return _json(self._send(method, path, query, data, sent))

        return self._patiently(once)

    def stream(self, path: str, **query: Any) -> Iterator[bytes]:
        """A GET whose answer may be of any size, in pieces."""

        def open_() -> http.client.HTTPResponse:
            response = self._open("GET", path, query, None, {})
            if response.status >= 300:
                _check(response)
            return response

        response = self._patiently(open_)
        try:
            while piece := response.read1(DOWNLOAD_PIECE):
                yield piece
            if response.length:  # announced and never sent: `read1` keeps quiet about it
                raise http.client.IncompleteRead(b"", response.length)
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the answer of {self.url} broke off: {error}") from error
        finally:
            self.close()

    def send_lines(self, path: str, lines: Iterable[bytes]) -> list[Any]:
        """A POST of NDJSON whose answer is NDJSON.

        At most as many lines as the server takes before it begins to answer (500): nothing is read meanwhile.
        """
        data = b"".join(line + b"\n" for line in lines)

        def once() -> list[Any]:
            answer = self._send("POST", path, None, data, {"Content-Type": "application/x-ndjson"})
            return [json.loads(line) for line in answer.splitlines() if line.strip()]

        result: list[Any] = self._patiently(once)
        return result

    def upload(
        self, path: str, query: Mapping[str, Any], file: IO[bytes], length: int, sent: Callable[[int], None]
    ) -> Any:
        """A POST of a file, in pieces; `sent` is told each piece's size."""

        def pieces() -> Iterator[bytes]:
            file.seek(0)
            while piece := file.read(UPLOAD_PIECE):
                yield piece
                sent(len(piece))

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}

        def once() -> Any:
            return _json(self._send("POST", path, query, pieces(), headers))

        return self._patiently(once)

    # ------------------------------------------------------------------ login

    def login(self) -> None:
        """A new access token; it ends every earlier one of the application (contract 2.1)."""
        try:
            form = urlencode({"appId": self._access.app_id, "secret": self._access.secret}).encode()
        except UnicodeEncodeError:  # it would tell the secret
            raise Failure("the application's id or its secret is not UTF-8", USAGE) from None
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        self._token = None
        self._token = _json(self._send("POST", LOGIN, None, form, headers))["accessToken"]

    def _patiently(self, once: Callable[[], Any]) -> Any:
        """Logs in, and again when the token is over; waits when there were too many calls."""
        logins = 0
        until = self._now() + PATIENCE_S
        while True:
            if self._token is None:
                self.login()
                logins += 1
            try:
                return once()
            except Refused as refused:
                if refused.token_over and logins < LOGINS:
                    self._token = None
                elif refused.throttled and self._now() < until:
                    self._sleep(1.0)
                else:
                    raise

    # ------------------------------------------------------------------- wire

    def _send(
        self, method: str, path: str, query: Mapping[str, Any] | None, data: Any, headers: Mapping[str, str]
    ) -> bytes:
        response = self._open(method, path, query, data, headers)
        body = _check(response)
        self._used_at = self._now()
        if response.will_close:
            self.close()
        return body

    def _open(
        self, method: str, path: str, query: Mapping[str, Any] | None, data: Any, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        target = self._prefix + path
        given = {k: _text(str(v), k) for k, v in (query or {}).items() if v is not None}
        if given:
            target += "?" + urlencode(given)
        sent = {"Accept": "application/json", **headers}
        if self._token is not None:
            sent |= {"app_key": self._access.app_id, "Authorization": f"Bearer {self._token}"}
        if self._connection is not None and self._now() - self._used_at > MAX_IDLE_S:
            self.close()
        fresh = self._connection is None
        try:
            return self._request(method, target, data, sent)
        except (OSError, http.client.HTTPException) as error:
            answered = self._early_answer()
            self.close()
            if answered is not None:
                return answered
            # A kept connection may have been closed by the server just now; what is safe to repeat is repeated.
            if fresh or method not in SAFE:
                raise self._unreachable(error) from error
        try:
            return self._request(method, target, data, sent)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error

    def _request(self, method: str, target: str, data: Any, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request(method, target, data, dict(headers))
        return self._connection.getresponse()

    def _early_answer(self) -> http.client.HTTPResponse | None:
        """A refusal that came while a body was still being sent, and the connection closed after it."""
        connection = self._connection
        if connection is None or connection.sock is None:
            return None
        with contextlib.suppress(OSError, http.client.HTTPException):
            response = http.client.HTTPResponse(connection.sock)
            response.begin()
            return response
        return None

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _unreachable(self, error: Exception) -> Failure:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Failure(f"cannot reach {self.url}: {reason}")


def segment(text: str) -> str:
    """A name as one segment of a path.

    Raises:
        Failure: it is no text.
    """
    return quote(_text(text, "the name"), safe="")


def _text(text: str, what: str) -> str:
    """What came with the command line may be any bytes, kept as lone surrogates: nothing that a request can say."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Failure(f"{what} is not UTF-8: {text}", USAGE) from error
    return text


def _parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and the begin of every path.

    Raises:
        Failure: it is no URL of a server.
    """
    wrong = Failure(f"the server's address is not a URL: {url}", USAGE)
    try:
        parts = urlsplit(url)
        host, port, prefix = parts.hostname or "", parts.port, parts.path.rstrip("/")
        host.encode("idna")  # as it will be looked up
        if host and prefix.isascii() and parts.scheme in {"http", "https"}:
            return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), prefix
    except ValueError as error:
        raise wrong from error
    raise wrong


def _check(response: http.client.HTTPResponse) -> bytes:
    """The body of a good answer.

    Raises:
        Refused: the answer is a refusal. HTTP 200 may carry one too (contract 1.3).
    """
    try:
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"the answer broke off: {error}") from error
    refused = _refusal(response.status, body)
    if refused is not None:
        raise refused
    return body


def _refusal(status: int, body: bytes) -> Refused | None:
    try:
        said = json.loads(body) if body else None
    except ValueError:
        said = None
    if isinstance(said, dict) and said.get("error_code") is not None:
        return Refused(status, str(said["error_code"]), str(said.get("error_desc", "")), None)
    if status < 300:
        return None
    if isinstance(said, dict) and "reason" in said:
        return Refused(status, str(said["reason"]), str(said.get("detail", "")), said.get("field"))
    return Refused(status, f"HTTP {status}", "the answer is not one of this server's", None)


def _json(body: bytes) -> Any:
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise Failure("the answer is not JSON; is this the address of an OpenIODM server?") from error
