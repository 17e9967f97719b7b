"""What stands in front of every request: host, key, size, and the headers, log line and figures of every answer."""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import time
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_pipeline.stages.apply import where
from cxr_pipeline.web.answers import ApiError
from cxr_pipeline.web.metrics import Metrics
from cxr_pipeline.web.settings import Settings

OPEN = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/favicon.ico"})  # beside /pages/: nothing of a film
_OVERHEAD = 64_000  # bytes of a multipart request that are not its films, for each of them
_SMALL = 64_000  # bytes of a request that brings no film
_IDLE = 30.0  # seconds that an upload may stall
_GRACE = 10.0  # seconds before its rate counts
_RATE = 8_000.0  # bytes per second that it needs at least, on the whole
_GUESS, _LONGEST_GUESS = 0.1, 5.0  # seconds that the answer to a wrong key waits: the first, and at most
_FORGIVEN = 300.0  # seconds after which an address's wrong keys are forgotten
_REMEMBERED = 10_000  # addresses
_UPLOAD = 900.0  # seconds that it may take in all
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}

_log = logging.getLogger("cxr.web")


class Guard:
    """ASGI middleware: refuses before anything is read, bounds what is read, never lets an exception out."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._key = settings.api_key.encode() if settings.api_key is not None else None
        self._guesses = Guesses()
        self._names = _LOCAL_NAMES | {settings.host.strip("[]").lower(), *(n.lower() for n in settings.allow_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, inner = time.monotonic(), 0, scope

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            inner = self._normal(scope)
            await self._check_caller(inner, headers)
            await self.app(inner, self._bounded(inner, headers, receive), guarded_send)
        except ApiError as error:
            if not status:
                await problem(error)(scope, receive, guarded_send)
        except Exception as error:
            _log.error("a request raised %s", where(error))
            if not status:
                await problem(_unforeseen(error))(scope, receive, guarded_send)
        finally:
            self._count(scope, inner, status, time.monotonic() - begun)

    def _normal(self, scope: Scope) -> Scope:
        """The request as the application sees it: the path below --root-path, whether or not a proxy cut that off.

        HEAD is GET whose body is not sent (by uvicorn, which still sees HEAD), and never deletes a job.
        """
        root, path = self.settings.root_path, scope["path"]
        if root and path != root and not path.startswith(root + "/"):
            path = root + path
        out = {**scope, "path": path, "root_path": root}
        if scope["method"] == "HEAD":
            out |= {"method": "GET", "query_string": b""}
        return out

    def _below_root(self, scope: Scope) -> str:
        return scope["path"][len(self.settings.root_path) :] or "/"

    def _count(self, scope: Scope, inner: Scope, status: int, seconds: float) -> None:
        """A log line and figures, by the route and not the path, which holds ids."""
        route = getattr(inner.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(method, route, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        _log.info("%s %s %d %.0f ms", method, route, status, 1000 * seconds)

    async def _check_caller(self, scope: Scope, headers: Headers) -> None:
        path = self._below_root(scope)
        if self._key is None:
            self._check_names(headers)
        elif path not in OPEN and not path.startswith("/pages/"):
            await self._check_key(self._key, scope, headers)

    def _check_names(self, headers: Headers) -> None:
        """Without a key, a page of another site must not reach us through the browser of who runs this.

        By the name in Host, where its own name was made to point here (DNS rebinding), or by Origin.
        """
        host = headers.get("host", "")
        if (_hostname(host) or "") not in self._names:
            raise ApiError(
                400,
                "wrong_host",
                "the request names a host that this server does not answer to. Address it as localhost, or start it "
                "with --allow-host NAME",
            )
        origin = headers.get("origin")
        if origin is None or origin in self.settings.allow_origins:
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            raise ApiError(
                403, "other_origin", "another web site sent this request. Open the server's own page, or set an API key"
            )

    async def _check_key(self, key: bytes, scope: Scope, headers: Headers) -> None:
        """The right key is never slowed down, whoever guesses beside it: all callers of a proxy have its address."""
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, value = headers.get("authorization", "").partition(" ")
            given = value.strip() if scheme.lower() == "bearer" else ""
        if not hmac.compare_digest(given.encode("utf-8", "replace"), key):
            if given:
                await asyncio.sleep(self._guesses.wait((scope.get("client") or ("",))[0]))
            raise ApiError(
                401,
                "no_key" if not given else "wrong_key",
                "the API key is missing or wrong. Send it as header X-API-Key, or as Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )

    def _bounded(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """`receive` with an end: to the bytes, and to the time."""
        limit = {
            "/v1/analyze": self.settings.upload_bytes + _OVERHEAD,
            "/v1/jobs": self.settings.job_bytes + _OVERHEAD * self.settings.queue,
        }.get(self._below_root(scope), _SMALL)
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > limit:
            raise _too_large(limit)
        size, over, begun = 0, False, time.monotonic()

        async def bounded() -> Message:
            nonlocal size, over
            if over:
                return await receive()
            ends = begun + min(_UPLOAD, _GRACE + size / _RATE)  # by then the next bytes must be here
            try:
                message = await asyncio.wait_for(receive(), max(0.0, min(_IDLE, ends - time.monotonic())))
            except (asyncio.TimeoutError, TimeoutError):
                raise ApiError(
                    408,
                    "stalled",
                    f"the upload stalled, or came slower than {_RATE / 1000:g} KB/s. Send the film again",
                    {"Connection": "close"},
                ) from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                over = not message.get("more_body", False)
                if size > limit:
                    raise _too_large(limit)
            return message

        return bounded


class Guesses:
    """How long the answer to a wrong key waits: longer for each of the last minutes' from the same address."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address -> number, when

    def wait(self, address: str) -> float:
        """Count a wrong key; the seconds to wait before it is answered."""
        now = time.monotonic()
        number, last = self._wrong.pop(address, (0, now))
        number = 0 if now - last > _FORGIVEN else number
        self._wrong[address] = (number + 1, now)
        if len(self._wrong) > _REMEMBERED:
            self._wrong.popitem(last=False)
        return min(_LONGEST_GUESS, _GUESS * 2 ** min(number, 30))


def _unforeseen(error: Exception) -> ApiError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ApiError(503, "disk_full", "the server's disk is full. Try again later", {"Retry-After": "60"})
    return ApiError(500, "internal", "the server failed. Tell who runs it; its log says where")


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        "too_large",
        f"the request has more than {limit / 1e6:.1f} MB. Send fewer or smaller films, or start the server with a "
        "larger --max-upload-mb or --max-job-mb",
        {"Connection": "close"},
    )


def problem(error: ApiError) -> JSONResponse:
    """An error as the API answers it."""
    return JSONResponse({"code": error.code, "message": error.message}, error.status, error.headers)
