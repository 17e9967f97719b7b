"""One reader for every format: any file to a film of float32 grey levels, bright = dense, upright.

The format is told by the file's first bytes, never by its name. What cannot be read, or is no radiograph, raises
`RadiographError` with the file's name, what is wrong, and what to do; nothing else leaves `read`.
"""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.configs.errors import CxrError

warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is said once, by our error

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"})
MAX_PIXELS = 200_000_000  # larger is no film but a bomb, or a mistake; checked before anything is decoded
MIN_SIDE = 32  # no lung can be told from another on less
FORMATS = "PNG, JPEG, TIFF, BMP and DICOM"

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"BM", "bmp"),
)
# What a 16-bit sample may really hold: detectors store 10, 12 or 14 bits in 16-bit files and leave the rest empty.
_DEPTHS = (8, 10, 12, 14, 16)


class RadiographError(CxrError, ValueError):
    """A file that is not read: `reason` in words, `code` as one word, `refused` where it is sound but no chest film."""

    def __init__(self, path: str | Path, reason: str, code: str = "unreadable", *, refused: bool = False) -> None:
        self.path, self.reason, self.code, self.refused = str(path), reason, code, refused
        super().__init__(f"{Path(path).name}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:  # so that it passes between processes
        return _again, (self.path, self.reason, self.code, self.refused)


def _again(path: str, reason: str, code: str, refused: bool) -> RadiographError:
    return RadiographError(path, reason, code, refused=refused)


@dataclass
class Radiograph:
    """A film as read.

    Attributes:
        pixels: (H, W) float32 in [0, 1], bright = dense, upright as it is displayed. These are the native pixels that
            every mask and box refers to.
        id: name of the film in a run, unique there.
        source: path as given.
        size: (height, width) of `pixels`.
        spacing: millimetres a pixel (row, column), where the file says so.
        format: "png", "jpeg", "tiff", "bmp" or "dicom".
        bits: bits a sample holds.
        meta: what a DICOM file says of the film: modality, body_part, view, age_years, photometric, transfer_syntax.
    """

    pixels: np.ndarray
    id: str
    source: str
    size: tuple[int, int]
    spacing: tuple[float, float] | None = None
    format: str = ""
    bits: int = 8
    meta: dict[str, Any] = field(default_factory=dict)


def looks_like_image(path: Path) -> bool:
    """Whether a folder walk picks the file up: by its suffix, so that most need no look, or else by its first bytes."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            return False
        with open(path, "rb", buffering=0) as file:
            head = file.read(132)
        kind = _format(head, path.name)
    except (OSError, RadiographError):
        return False
    return kind != "bmp" or head[6:10] == bytes(4)  # reserved, zero; a text may well begin with BM


def read(path: str | Path, *, id: str | None = None) -> Radiograph:
    """Read a film.

    Integer samples are divided by the full range of their depth (a 16-bit file whose largest value fits into 8, 10,
    12 or 14 bits is taken to hold so many), colour becomes grey (ITU-R BT.601), transparent pixels black, and EXIF
    orientation is applied. DICOM: see `data.formats.dicom.decode`.

    Args:
        path: the file.
        id: name in the run; the file's stem by default.

    Raises:
        RadiographError: always this one, whatever is wrong with the file.
    """
    name = str(path)
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise RadiographError(path, "there is no such file. Check the path", "missing") from None
    except IsADirectoryError:
        raise RadiographError(path, "this is a folder. Give its files, or the folder as input", "folder") from None
    except PermissionError:
        raise RadiographError(path, "no permission to read it. Change its access rights", "permission") from None
    except (OSError, ValueError) as error:
        raise RadiographError(
            path, f"it cannot be opened ({error}). Check the disk or the path", "unreadable"
        ) from None
    if not raw:
        raise RadiographError(path, "the file is empty (0 bytes). Export or copy it again", "empty_file")
    kind = _format(raw, name)
    try:
        film = _decode(raw, kind, name)
    except RadiographError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise RadiographError(
            path, f"the {kind.upper()} file is damaged or cut off ({_short(error)}). Export or copy it again", "damaged"
        ) from error
    film.id = id if id is not None else Path(path).stem
    film.source = name
    _check_pixels(film, name)
    return film


def _format(raw: bytes, name: str) -> str:
    if raw[128:132] == b"DICM":  # first: a DICOM file's preamble may look like a TIFF, on purpose
        return "dicom"
    for magic, kind in _MAGIC:
        if raw.startswith(magic):
            return kind
    # Old DICOM files come without the preamble: they start with an element of group 2 or 8, little endian.
    if Path(name).suffix.lower() in {".dcm", ".dicom"} and raw[:2] in (b"\x02\x00", b"\x08\x00"):
        return "dicom"
    raise RadiographError(
        name,
        f"its content is no image that can be read. Allowed are {FORMATS}, told by content and not by name",
        "not_an_image",
    )


def _decode(raw: bytes, kind: str, name: str) -> Radiograph:
    if kind == "dicom":
        from cxr_pipeline.data.formats.dicom import decode

        return decode(raw, name)
    samples, orientation = _png(raw, name) if kind == "png" else _with_pillow(raw, kind, name)
    pixels, bits = _to_grey(samples, name)
    pixels = _upright(pixels, orientation)
    return Radiograph(pixels, "", name, pixels.shape, None, kind, bits)


def check_size(name: str, height: int, width: int) -> None:
    """Refuse a film by its header, before its pixels take memory.

    Raises:
        RadiographError: over MAX_PIXELS, or a side under MIN_SIDE.
    """
    if height * width > MAX_PIXELS:
        raise RadiographError(
            name,
            f"{width}x{height} pixels are {height * width / 1e6:.0f} megapixels, over the limit of "
            f"{MAX_PIXELS / 1e6:.0f}. Scale the film down",
            "too_large",
        )
    if min(height, width) < MIN_SIDE:
        raise RadiographError(
            name,
            f"{width}x{height} pixels are too few; at least {MIN_SIDE} a side are needed. Export the film larger",
            "too_small",
            refused=True,
        )


def _png(raw: bytes, name: str) -> tuple[np.ndarray, int]:
    """Samples and EXIF orientation; every chunk's checksum is verified, because decoders forgive a cut file."""
    width, height = int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
    check_size(name, height, width)
    at, orientation, seen = 8, 1, b""
    view = memoryview(raw)
    while seen != b"IEND":
        length = int.from_bytes(raw[at : at + 4], "big")
        end = at + 12 + length
        if len(raw) < at + 12 or end > len(raw):
            raise RadiographError(
                name, f"the file is cut off after {len(raw)} bytes. Export or copy it again", "truncated"
            )
        seen = raw[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(raw[end - 4 : end], "big"):
            raise RadiographError(name, "its data do not match their checksum. Export or copy it again", "damaged")
        if seen == b"eXIf":
            orientation = _exif_orientation(b"Exif\x00\x00" + raw[at + 8 : end - 4])
        elif seen == b"acTL":
            raise RadiographError(name, "it is an animation. Give a film as one picture", "multi_frame", refused=True)
        at = end
    samples = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise RadiographError(name, "the PNG file is damaged. Export or copy it again", "damaged")
    return samples, orientation


def _exif_orientation(block: bytes) -> int:
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(block)
        return int(exif.get(0x0112, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1


def _with_pillow(raw: bytes, kind: str, name: str) -> tuple[np.ndarray, int]:
    """Samples, colours in OpenCV's order, and EXIF orientation.

    Pillow is strict where OpenCV 4 fills a cut file with grey.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # check_size is our limit; Pillow's would warn on stderr
    try:
        image = Image.open(io.BytesIO(raw), formats=[kind.upper()])
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RadiographError(
            name, f"the {kind.upper()} file is damaged or cut off ({_short(error)}). Export or copy it again", "damaged"
        ) from error
    check_size(name, image.height, image.width)
    if getattr(image, "n_frames", 1) > 1 and kind == "tiff":
        raise RadiographError(
            name, f"it holds {image.n_frames} pages. Save the film as a file of its own", "multi_frame", refused=True
        )
    try:
        orientation = int(image.getexif().get(0x0112, 1))
    except Exception:
        orientation = 1
    try:
        image.load()
        if kind == "tiff":
            orientation = 1  # Pillow has applied it by now
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise RadiographError(
            name, f"the file is damaged or cut off ({_short(error)}). Export or copy it again", "truncated"
        ) from error
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    samples = np.asarray(image)
    if samples.dtype == bool:
        samples = samples.astype(np.uint8) * 255
    if kind == "tiff":
        # Pillow turns MinIsWhite round for 1 and 8 bits only, and narrows 16-bit colour.
        tags = image.tag_v2 if hasattr(image, "tag_v2") else {}
        depth = tags.get(258, (8,))
        depth = max(depth) if isinstance(depth, tuple) else depth
        if depth == 16 and samples.dtype == np.uint8:
            samples = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
            if samples is None:
                raise RadiographError(
                    name, "16-bit colour TIFF of this kind is not read. Save it as grey", "unreadable"
                )
            return samples, orientation
        if tags.get(262) == 0 and samples.dtype in (np.uint16, np.int32):
            samples = (1 << depth) - 1 - samples
    if samples.ndim == 3 and samples.shape[2] >= 3:
        samples = samples[..., [2, 1, 0, *range(3, samples.shape[2])]]
    return samples, orientation


def _to_grey(samples: np.ndarray, name: str) -> tuple[np.ndarray, int]:
    """(H, W) float32 in [0, 1] and the bits a sample holds, of any samples that a decoder gives."""
    if samples.dtype.kind == "f":
        grey, bits = samples.astype(np.float32), 8 * samples.dtype.itemsize
        if not np.isfinite(grey).all():
            raise RadiographError(
                name, "some grey levels are infinite or not a number. Export the film again", "not_finite"
            )
        low, high = float(grey.min()), float(grey.max())
        if low < 0 or high > 1:
            grey = (grey - low) / max(high - low, np.finfo(np.float32).tiny)
    else:
        largest = int(samples.max())
        if samples.dtype == np.uint8:
            bits = 8
        else:
            bits = next((depth for depth in _DEPTHS if largest < 1 << depth), 32)
        grey = samples.astype(np.float32)
        grey *= np.float32(1.0 / ((1 << bits) - 1))
    if grey.ndim == 2:
        return grey, bits
    channels = grey.shape[2]
    alpha = grey[..., -1] if channels in (2, 4) else None
    if channels in (1, 2):
        grey = grey[..., 0]
    else:
        grey = cv2.cvtColor(np.ascontiguousarray(grey[..., :3]), cv2.COLOR_BGR2GRAY)
    if alpha is not None:
        full = np.float32(((1 << bits) - 1) / (255 if samples.dtype == np.uint8 else 65535))
        grey = grey * np.clip(alpha * full, 0, 1)
    return np.ascontiguousarray(grey), bits


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (Exif 2.32, tag 274); other values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    flips = {2: (False, True), 3: (True, True), 4: (True, False), 6: (False, True), 7: (True, True), 8: (True, False)}
    down, across = flips.get(orientation, (False, False))
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def _check_pixels(film: Radiograph, name: str) -> None:
    check_size(name, *film.pixels.shape)
    low, high = float(film.pixels.min()), float(film.pixels.max())
    if high - low < 1e-6:
        raise RadiographError(name, "every pixel has the same grey level. Export the film again", "flat")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
