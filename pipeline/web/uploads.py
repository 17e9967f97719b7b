"""Uploads: from a multipart request to files with names that the server chose, looked at before they are decoded."""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from cxr_pipeline.data import formats
from cxr_pipeline.data.formats.base import RadiographError
from cxr_pipeline.web.answers import ApiError
from cxr_pipeline.web.settings import Settings

_BLOCK = 1 << 20
_LONGEST_NAME = 120
_DEFLATED = "1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian: the whole data set is one zlib stream
_RATIO = 16  # bytes per pixel that a data set may unfold to


@dataclass
class Upload:
    """A film as it came in.

    Attributes:
        name: what the caller called it, for people to read; never part of a path.
        path: where it lies, under a name of the server's.
        sha256: of its bytes.
        problem: why it is not even tried, where that shows before decoding.
    """

    name: str
    path: Path
    sha256: str
    problem: RadiographError | None = None


async def receive(request: Request, folder: Path, settings: Settings, most: int) -> list[Upload]:
    """The films in the fields `file` of a multipart request, stored in `folder` as film-0001 and so on.

    Args:
        folder: of this request alone; exists.
        most: films that the request may hold.

    Raises:
        ApiError: no multipart, no film, or too many.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        shown = kind.partition(";")[0].strip()[:60] or "none"
        raise ApiError(
            415, "not_multipart", f"the content type is {shown}. Send multipart/form-data with the film as field `file`"
        )
    if not parse_options_header(kind)[1].get(b"boundary"):
        raise ApiError(400, "malformed", "the content type names no boundary. Let your HTTP library set the header")
    # Small texts beside the files do no harm; more fields than that are no form of ours.
    async with request.form(max_files=most + 1, max_fields=16) as form:
        given = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
        if not given:
            raise ApiError(422, "no_file", "there is no file in the field `file`. Attach the film under that name")
        if len(given) > most or any(isinstance(v, UploadFile) for k, v in form.multi_items() if k != "file"):
            raise ApiError(
                413,
                "too_many_files",
                f"the request holds {len(form.multi_items())} files; allowed are {most}, all in the field `file`. "
                "Send several requests, or use `pipeline run` for whole folders",
            )
        films = []
        for number, one in enumerate(given, 1):
            path = folder / f"film-{number:04d}"
            name = shown_name(one.filename or "", path.name)
            films.append(await run_in_threadpool(_store, one.file, path, name, settings))
        return films


def _store(source: BinaryIO, path: Path, name: str, settings: Settings) -> Upload:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        while block := source.read(_BLOCK):
            size += len(block)
            if size > settings.upload_bytes:
                break
            digest.update(block)
            file.write(block)
    upload = Upload(name, path, digest.hexdigest())
    try:
        if size > settings.upload_bytes:
            raise RadiographError(
                path,
                f"it has more than {settings.max_upload_mb:g} MB, the limit for a film. "
                "Export it smaller, or start the server with a larger --max-upload-mb",
                "too_large",
            )
        check(path, settings.pixels)
    except RadiographError as error:
        upload.problem = error
        path.unlink()
    return upload


def shown_name(given: str, otherwise: str) -> str:
    """A file's name as it may be shown: no folders, no control characters, no start that spreadsheets obey."""
    name = re.split(r"[/\\]", given)[-1]
    name = "".join(letter for letter in name if letter.isprintable()).lstrip("=+-@ ")
    return name[:_LONGEST_NAME].strip() or otherwise


def check(path: Path, most: int) -> None:
    """Refuse by its header what is no image, or would take too much memory. What else is wrong, the reader tells.

    Args:
        most: pixels allowed.

    Raises:
        RadiographError: with code not_an_image, too_large or empty_file.
    """
    with path.open("rb") as file:
        start = file.read(formats.HEAD)
    if not start:
        raise RadiographError(path, "the file is empty (0 bytes). Export or copy it again", "empty_file")
    kind = formats.tell(start, str(path))
    size = _dicom_size(path, most) if kind.name == "dicom" else _image_size(path)
    if size is not None and size[0] * size[1] > most:
        raise RadiographError(
            path,
            f"{size[1]}x{size[0]} pixels are {size[0] * size[1] / 1e6:.0f} megapixels, over the limit of "
            f"{most / 1e6:g}. Scale the film down, or start the server with a larger --max-megapixels",
            "too_large",
        )


def _image_size(path: Path) -> tuple[int, int] | None:
    """Height and width by the header; None where Pillow cannot tell: the reader has limits of its own."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Image.DecompressionBombError:
        raise RadiographError(path, "it has far too many pixels. Scale the film down", "too_large") from None
    except Exception:  # damaged, or a format that Pillow does not know
        return None


def _dicom_size(path: Path, most: int) -> tuple[int, int] | None:
    import pydicom
    from pydicom.filereader import read_file_meta_info

    try:
        marked = True
        if str(read_file_meta_info(path).get("TransferSyntaxUID", "")) == _DEFLATED:
            _check_deflated(path, most)
    except RadiographError:
        raise
    except Exception:
        marked = False
    try:
        header = pydicom.dcmread(path, force=not marked, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return int(header.Rows), int(header.Columns)
    except Exception:
        return None


def _check_deflated(path: Path, most: int) -> None:
    """Unfold a deflated data set, keeping nothing, to see that it stays within reason."""
    with path.open("rb") as file:
        file.seek(132)
        length_element = file.read(12)  # (0002,0000) UL: how long the file's own header is
        file.seek(144 + int.from_bytes(length_element[8:12], "little"))
        unfold, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not unfold.eof and (block := file.read(_BLOCK)):
            while block:
                size += len(unfold.decompress(block, _BLOCK))
                block = unfold.unconsumed_tail
                if size > _RATIO * most:
                    raise RadiographError(
                        path, f"it unfolds to more than {size / 1e6:.0f} MB. Export it uncompressed", "too_large"
                    )
