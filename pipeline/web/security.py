"""What stands in front of every request: host, key, size, and the headers, log line and figures of every answer."""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import time
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
        self._names = _LOCAL_NAMES | {settings.host.strip("[]").lower(), *(n.lower() for n in settings.allow_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

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
            self._check_caller(scope, headers)
            await self.app(scope, self._bounded(scope, headers, receive), guarded_send)
        except ApiError as error:
            if not status:
                await problem(error)(scope, receive, guarded_send)
        except Exception as error:
            _log.error("a request raised %s", where(error))
            if not status:
                await problem(_unforeseen(error))(scope, receive, guarded_send)
        finally:
            self._count(scope, status, time.monotonic() - begun)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """A log line and figures, by the route and not the path, which holds ids."""
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(method, route, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        _log.info("%s %s %d %.0f ms", method, route, status, 1000 * seconds)

    def _check_caller(self, scope: Scope, headers: Headers) -> None:
        if self._key is None:
            self._check_names(headers)
        elif scope["path"] not in OPEN and not scope["path"].startswith("/pages/"):
            self._check_key(headers)

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
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise ApiError(
                403, "other_origin", "another web site sent this request. Open the server's own page, or set an API key"
            )

    def _check_key(self, headers: Headers) -> None:
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, value = headers.get("authorization", "").partition(" ")
            given = value.strip() if scheme.lower() == "bearer" else ""
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key):
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
        }.get(scope["path"], _SMALL)
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > limit:
            raise _too_large(limit)
        size, deadline, over = 0, time.monotonic() + _UPLOAD, False

        async def bounded() -> Message:
            nonlocal size, over
            if over:
                return await receive()
            try:
                left = deadline - time.monotonic()
                message = await asyncio.wait_for(receive(), max(0.0, min(_IDLE, left)))
            except (asyncio.TimeoutError, TimeoutError):
                raise ApiError(408, "stalled", f"nothing came for {_IDLE:g} s. Send the film again") from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                over = not message.get("more_body", False)
                if size > limit:
                    raise _too_large(limit)
            return message

        return bounded


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
