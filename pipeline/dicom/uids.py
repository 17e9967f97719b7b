"""UIDs that stay the same for the same film, weights and version, so that what is sent again makes no doubles."""

from __future__ import annotations

import uuid

# Fixed for ever: another value would give every object a new UID.
_SPACE = uuid.UUID("6e0a5c0c-0f0e-5b56-9f0b-0c2f5d0a9d57")


def stable_uid(*parts: str) -> str:
    """A UID made of text alone: the same parts, in the same order, always give the same one.

    Returns:
        "2.25." and a UUID as a decimal number (PS3.5 B.2); at most 44 characters.
    """
    named = "\0".join(part.replace("\\", "\\\\").replace("\0", "\\0") for part in parts)
    return f"2.25.{uuid.uuid5(_SPACE, named).int}"
