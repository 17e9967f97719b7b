"""Names that stand for patients, studies and dates: the same each time at one site, and of no use to anybody else."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import uuid
from dataclasses import dataclass, field
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import PRIVATE, write_new

SECRET, SECRET_FILE = "CXR_SITE_SECRET", "CXR_SITE_SECRET_FILE"
_LEAST = 16  # characters of a secret that nobody guesses
_LONGEST_SHIFT = 3650  # days


class SecretError(CxrError, ValueError):
    """The site's secret cannot be used; says why, and what to do."""


def site_secret() -> bytes:
    """The site's secret: CXR_SITE_SECRET, else the file CXR_SITE_SECRET_FILE, else one in the user's own settings.

    A file that does not exist is made, for its owner alone. Who has the secret can tell whether a patient is among the
    pseudonyms; who loses it gets other pseudonyms.

    Raises:
        SecretError: it is too short, others may read its file, or the file cannot be read or made.
    """
    given = os.environ.get(SECRET)
    if given is not None:
        return _checked(given, SECRET)
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = Path(os.environ.get(SECRET_FILE) or settings / "cxr-pipeline" / "site-secret")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # On the disk before it is used: with another secret, patients would get other pseudonyms.
            write_new(path, f"{secrets.token_hex(32)}\n".encode(), mode=PRIVATE)
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SecretError(f"others may read the site's secret {path}. Take that from them: chmod 600 {path}")
        return _checked(path.read_text(encoding="utf-8").strip(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(
            f"the site's secret {path} cannot be read or made ({error}). Set {SECRET_FILE} to another file, or {SECRET}"
        ) from error


def _checked(secret: str, where: str) -> bytes:
    if len(secret) < _LEAST:
        raise SecretError(
            f"the site's secret in {where} has {len(secret)} characters; {_LEAST} are the least. Make one: "
            "openssl rand -hex 32"
        )
    return secret.encode()


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms by a secret (HMAC-SHA256). Empty values stay empty."""

    secret: bytes = field(repr=False)

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.new(self.secret, f"{kind}\0{value}".encode("utf-8", "backslashreplace"), sha256).digest()

    def name(self, kind: str, value: str) -> str:
        """A letter for the kind ("patient", "accession"), and 16 hex digits."""
        return f"{kind[0].upper()}{self._digest(kind, value).hex()[:16]}" if value else ""

    def uid(self, uid: str) -> str:
        """A UID for a UID, whatever it is of, so that references between files still hold."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=4).int}" if uid else ""

    def shift(self, patient: str) -> int:
        """Days by which all dates of a patient are moved: -3650 to -1."""
        return -1 - int.from_bytes(self._digest("shift", patient)[:8], "big") % _LONGEST_SHIFT

    def date(self, value: str, patient: str) -> str:
        """A date YYYYMMDD moved by the patient's days, so that intervals stay; empty where it is no date."""
        try:
            day = date(int(value[:4]), int(value[4:6]), int(value[6:8]))
            return (day + timedelta(days=self.shift(patient))).strftime("%Y%m%d").zfill(8)
        except (ValueError, OverflowError):
            return ""
