"""Formats of films: one file each, and the registry that everybody asks for suffixes, names and readers.

The registry knows the first bytes and the suffixes of each format, and imports nothing heavy: what decodes a format
is imported when a file of it is met.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.formats.base import Format, RadiographError
from cxr_pipeline.data.formats.dicom import Dicom
from cxr_pipeline.data.formats.heic import Heic
from cxr_pipeline.data.formats.jpeg2000 import Jpeg2000
from cxr_pipeline.data.formats.jpegls import JpegLs
from cxr_pipeline.data.formats.nifti import Nifti
from cxr_pipeline.data.formats.npy import Npy
from cxr_pipeline.data.formats.pictures import Bmp, Gif, Jpeg, WebP
from cxr_pipeline.data.formats.png import Png
from cxr_pipeline.data.formats.tiff import Tiff

GROUP = "cxr_pipeline.formats"
HEAD = 512  # bytes that tell a format
# DICOM first: a DICOM file's preamble may look like a TIFF, on purpose. JPEG-LS before JPEG: both begin alike.
BUILT_IN: tuple[type[Format], ...] = (Dicom, Png, JpegLs, Jpeg, Tiff, Bmp, Jpeg2000, WebP, Gif, Heic, Nifti, Npy)

# What people give by mistake, by its first bytes, and what to do with it.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "a PDF document. Export the film from it as PNG"),
    (0, b"PK\x03\x04", "a ZIP archive (or an office document). Unpack it, and give the folder"),
    (0, b"Rar!", "a RAR archive. Unpack it, and give the folder"),
    (0, b"7z\xbc\xaf", "a 7z archive. Unpack it, and give the folder"),
    (0, b"\x1f\x8b", "a gzip archive. Unpack it"),
    (0, b"\xff\x0a", "a JPEG XL picture. Save it as PNG"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture. Save it as PNG"),
    (0, b"II\xbc", "a JPEG XR picture. Save it as PNG"),
    (4, b"ftypavif", "an AVIF picture. Save it as PNG"),
    (4, b"ftyp", "a video. Save the film as a picture"),
    (0, b"8BPS", "a Photoshop file. Save it as PNG"),
    (0, b"NRRD", "a NRRD volume. Save the film as PNG or DICOM"),
    (0, b"ObjectType", "a MetaImage volume. Save the film as PNG or DICOM"),
    (0, b"\x89HDF", "an HDF5 container. Save the film as PNG or DICOM"),
    (0, b"<?xml", "a text in XML. Give the picture"),
    (0, b"<svg", "a drawing (SVG). Give the film as a picture"),
    (0, b"<!DOCTYPE", "a web page: the download failed? Fetch the film again"),
    (0, b"<html", "a web page: the download failed? Fetch the film again"),
    (0, b"version https://git-lfs", "a pointer of Git LFS and not the film. Run `git lfs pull`"),
)


class FormatError(CxrError, ValueError):
    """A format of somebody's own package that cannot be used."""


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Every format, those of entry points first, so that a package can take over one of ours.

    Raises:
        FormatError: an entry point names what is no `Format`.
    """
    own = []
    for point in entry_points(group=GROUP):
        try:
            kind = point.load()
        except Exception as error:
            raise FormatError(
                f"the format {point.name!r} of the entry point {point.value!r} cannot be loaded ({error}). "
                "Mend or remove the package that brings it"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Format)):
            raise FormatError(
                f"the entry point {point.value!r} of the group {GROUP} is {kind!r}. "
                "It must name a subclass of cxr_pipeline.data.formats.base.Format"
            )
        own.append(kind)
    return tuple(kind() for kind in (*own, *BUILT_IN))


def suffixes() -> frozenset[str]:
    """The suffixes of all formats, small letters, with the dot."""
    return frozenset(suffix for known in formats() for suffix in known.suffixes)


def labels() -> str:
    """The formats as a text lists them: "DICOM, PNG ... and NumPy"."""
    *most, last = [known.label for known in formats()]
    return f"{', '.join(most)} and {last}"


def recognise(head: bytes) -> Format | None:
    """The format of a file that begins with `head`, told by content; None where it is none of ours."""
    return next((known for known in formats() if known.matches(head)), None)


def tell(head: bytes, name: str) -> Format:
    """The format of a file: by its content, and where that says nothing, by its suffix.

    Args:
        head: its first `HEAD` bytes or more.
        name: its path, for errors and the suffix.

    Raises:
        RadiographError: it is none of the formats; what it is, is said where that is known.
    """
    found = recognise(head[:HEAD])
    if found is not None:
        return found
    for start, mark, what in _OTHERS:
        if head[start:].startswith(mark):
            raise RadiographError(name, f"this is {what}", "not_an_image")
    suffix = Path(name).suffix.lower()
    for known in formats():
        # The suffix alone counts only where a sound file may come without a mark in its content.
        if suffix in known.suffixes and known.suffix_suffices:
            return known
    raise RadiographError(
        name,
        f"its content is no image that can be read. Allowed are {labels()}, told by content and not by name",
        "not_an_image",
    )


def looks_like_image(path: Path) -> bool:
    """Whether a folder walk picks the file up: by its suffix, so that most need no look, or else by its first bytes."""
    if path.suffix.lower() in suffixes() or path.name.lower().endswith(".nii.gz"):
        return True
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            return False
        with open(path, "rb", buffering=0) as file:
            return recognise(file.read(HEAD)) is not None
    except OSError:
        return False
