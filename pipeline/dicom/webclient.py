"""The client of DICOMweb services, with what every call needs: who is asking, which certificates, how long to wait."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests

from cxr_pipeline.dicom import NodeError

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient

AUTH = "CXR_DICOMWEB_AUTH"  # holds the header Authorization, such as `Bearer TOKEN` or `Basic BASE64`
HTTP_ERRORS = (requests.RequestException, OSError)
_TIMEOUT = (10, 120)  # seconds to connect, and without a byte of the answer


def client(url: str, ca: Path | None = None) -> DICOMwebClient:
    """A client of the service at `url`; the secret comes from the environment, never from the command line.

    Args:
        ca: file of certificates to check the server's against; None for the system's own.

    Raises:
        NodeError: the address is none, or holds a password.
    """
    from dicomweb_client import DICOMwebClient

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise NodeError(f"a DICOMweb service is named like https://pacs.example.org/dicom-web. Received: {url!r}")
    if parts.username or parts.password:
        raise NodeError(
            f"the address of {parts.hostname} holds a password, which everybody on this machine can read. Put the "
            f"header Authorization into the environment variable {AUTH}"
        )
    session = requests.Session()
    secret = os.environ.get(AUTH)
    if secret:
        session.headers["Authorization"] = secret
        session.trust_env = False  # or requests would prefer what a file .netrc says of the host
        session.proxies = requests.utils.getproxies()
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    if ca is not None:
        session.verify = str(ca)
    made = DICOMwebClient(url, session=session, timeout=_TIMEOUT, permissive_uid=True)
    made.set_http_retry_params(retry=False)  # who calls tries again, and says so
    return made


def wrong_status(error: Exception) -> int | None:
    """The HTTP status of an error; None where the server gave none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def explained(error: Exception, url: str) -> str:
    """What went wrong with a service, and what to do."""
    status = wrong_status(error)
    if status in (401, 403):
        state = "is not accepted" if os.environ.get(AUTH) else "is not set"
        return (
            f"{url} answers {status}: it wants to know who asks. The environment variable {AUTH} {state}; it holds the "
            "whole header, such as 'Bearer TOKEN' or 'Basic BASE64'"
        )
    if status == 404:
        return f"{url} answers 404: there is no DICOMweb service at this address. Check its path, such as /dicom-web"
    if status is not None:
        return f"{url} answers {status} ({_short(error)}). Check the query, or ask who runs the server"
    if isinstance(error, requests.exceptions.SSLError):
        return f"{url}: its certificate is not trusted ({_short(error)}). Name its authority in REQUESTS_CA_BUNDLE"
    return f"{url} cannot be reached ({_short(error)}). Check the address, and whether the server runs"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
