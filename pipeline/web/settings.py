"""How a server was asked to run."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from cxr_pipeline.data.radiograph import MAX_PIXELS
from cxr_pipeline.web import WebError

KEY_LENGTH = 16  # characters that an API key has at least
_MB = 1_000_000


@dataclass(frozen=True)
class Settings:
    """Where to listen, who may ask, and how much is taken.

    Attributes:
        host: address to listen on.
        port: 0 takes any that is free.
        api_key: what callers must show; needed where others than this machine can reach the server.
        allow_hosts: further names by which callers may address a server that listens on this machine alone.
        keep: folder for the results of all jobs; None keeps nothing.
        max_upload_mb: of one film, in megabytes.
        max_job_mb: of all films of one request.
        max_megapixels: of one film.
        queue: films that may wait or be in work, of all jobs together.
        timeout: seconds that a request may wait for its answer.
        forget_after: minutes that a finished job is held after it was last asked for.
        max_jobs: finished jobs that are held; the oldest ones go first.
        root_path: where a reverse proxy puts the server, such as "/films"; empty at the root of its host.
        allow_origins: web sites whose pages may use the API from a browser, such as "https://viewer.example.org".
        language: of the page, see `texts.LANGUAGES`; None takes the browser's.
        per_address: connections that one address may hold; those of this machine are not counted.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allow_hosts: tuple[str, ...] = ()
    keep: Path | None = None
    max_upload_mb: float = 64
    max_job_mb: float = 1024
    max_megapixels: float = 50
    queue: int = 256
    timeout: float = 120
    forget_after: float = 15
    max_jobs: int = 100
    root_path: str = ""
    allow_origins: tuple[str, ...] = ()
    per_address: int = 64
    language: str | None = None

    def check(self) -> None:
        """Refuse what would be unsafe, before anything is loaded.

        Raises:
            WebError: reachable from elsewhere without a key, a key that can be guessed, or a path or origin that is
                none.
        """
        if self.api_key is not None and (len(self.api_key) < KEY_LENGTH or not self.api_key.isascii()):
            raise WebError(
                f"the API key has {len(self.api_key)} characters; it needs {KEY_LENGTH} or more, ASCII alone. "
                'Make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise WebError(
                f"--root-path must start with / and not end with it, such as /films. Received: {self.root_path!r}"
            )
        for origin in self.allow_origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise WebError(
                    "--allow-origin must be a scheme and a host, such as https://viewer.example.org. "
                    f"Received: {origin!r}"
                )
        if not self.local and self.api_key is None:
            raise WebError(
                f"--host {self.host} can be reached from other machines, and there is no API key. "
                "Set CXR_API_KEY (or --api-key) to a secret of 16 characters or more, or listen on 127.0.0.1"
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # a name: whatever it stands for
            return False

    @property
    def upload_bytes(self) -> int:
        """Of one film."""
        return round(self.max_upload_mb * _MB)

    @property
    def job_bytes(self) -> int:
        """Of all films of one request."""
        return round(max(self.max_job_mb, self.max_upload_mb) * _MB)

    @property
    def pixels(self) -> int:
        """Of one film; never more than the reader takes."""
        return min(round(self.max_megapixels * 1e6), MAX_PIXELS)
