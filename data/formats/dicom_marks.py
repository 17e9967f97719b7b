"""How a DICOM file is told by its first bytes. Apart from the rest, because every file of a folder walk is asked."""

from __future__ import annotations

from typing import Literal

PREFIX = 128  # bytes before the letters DICM
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` is DICOM: by its mark, or by elements of group 2 or 8 in a row."""
    if head[PREFIX : PREFIX + 4] == b"DICM" or head.startswith(b"DICM\x02\x00"):
        return True
    return any(_walks(head, little) for little in (True, False))


def _walks(head: bytes, little: bool) -> bool:
    """Whether `head` is a row of data elements without preamble, in ascending order, of group 2 and 8 at first."""
    order: Literal["little", "big"] = "little" if little else "big"
    at, last, seen = 0, (0, -1), 0
    while at + 8 <= len(head) and seen < 4:
        tag = int.from_bytes(head[at : at + 2], order), int.from_bytes(head[at + 2 : at + 4], order)
        if tag <= last or (seen == 0 and tag[0] not in (2, 8)) or tag[0] > 0x7FE0:
            return False
        vr = head[at + 4 : at + 6]
        if vr in _VRS:
            long = vr in LONG_VRS
            length = int.from_bytes(head[at + 8 : at + 12] if long else head[at + 6 : at + 8], order)
            at += 12 if long else 8
        elif little:
            length = int.from_bytes(head[at + 4 : at + 8], order)
            at += 8
        else:
            return False
        if length == 0xFFFFFFFF:  # a sequence: what follows is of another kind
            return seen >= 1
        if length > 1 << 16:
            return False
        at, last, seen = at + length, tag, seen + 1
    return seen >= 2
