"""The formats that Pillow decodes: JPEG, BMP, WebP and GIF. It is strict where OpenCV fills a cut file with grey."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import Decoded, Format, RadiographError, check_size, short

if TYPE_CHECKING:
    from PIL.Image import Image

warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is said once, by our error


class _Picture(Format):
    """A picture of 8 bits that Pillow opens."""

    pillow: ClassVar[str]  # its name there

    def decode(self, raw: bytes, name: str) -> Decoded:
        """Samples by Pillow, and EXIF orientation."""
        image = opened(raw, self.pillow, self.label, name)
        check_size(name, image.height, image.width, max(3, len(image.getbands())))
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise RadiographError(
                name,
                f"it holds {frames} pictures. Save the film as a file of its own",
                "multi_frame",
                refused=True,
            )
        return grey.film(loaded(image, name), name, orientation=orientation_of(image))


def opened(raw: bytes, pillow: str, label: str, name: str) -> Image:
    """A picture whose header Pillow has read.

    Raises:
        RadiographError: it cannot.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # check_size is our limit; Pillow's would warn on stderr
    try:
        return Image.open(io.BytesIO(raw), formats=[pillow])
    except UnidentifiedImageError:
        raise RadiographError(
            name,
            f"the {label} file is damaged or cut off: its header makes no sense. Export or copy it again",
            "damaged",
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise RadiographError(
            name, f"the {label} file is damaged or cut off ({short(error)}). Export or copy it again", "damaged"
        ) from error


def orientation_of(image: Image) -> int:
    """EXIF orientation of an opened picture; 1 where it says none."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def loaded(image: Image, name: str) -> np.ndarray:
    """The samples of an opened picture: (H, W) or (H, W, C) in RGB order, bool, integer or float.

    Raises:
        RadiographError: the file is damaged or cut off.
    """
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise RadiographError(
            name, f"the file is damaged or cut off ({short(error)}). Export or copy it again", "truncated"
        ) from error
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return np.asarray(image)


class Jpeg(_Picture):
    """JPEG: baseline and progressive by Pillow; lossless and 12-bit by imagecodecs, as Pillow has no decoder."""

    name: ClassVar[str] = "jpeg"
    label: ClassVar[str] = "JPEG"
    suffixes: ClassVar[tuple[str, ...]] = (".jpg", ".jpeg", ".jpe", ".jfif")
    pillow: ClassVar[str] = "JPEG"

    def matches(self, head: bytes) -> bool:
        """By the start of an image and a marker after it."""
        return head.startswith(b"\xff\xd8\xff")

    def decode(self, raw: bytes, name: str) -> Decoded:
        """Samples, and EXIF orientation."""
        from cxr_pipeline.data.formats.codecs import decode_jpeg, jpeg_header

        header = jpeg_header(raw)
        if header is None or not header.unusual:
            return super().decode(raw, name)
        check_size(name, header.height, header.width, header.components, 2)
        if b"\xff\xd9" not in raw.rstrip(b"\0")[-64:]:  # the decoder would leave the rest of the film black
            raise RadiographError(name, "this JPEG file is cut off. Copy or export it again", "truncated")
        return grey.film(decode_jpeg(raw), name)

    def decode_small(self, raw: bytes, name: str, least: int, *, rough: bool = True) -> Decoded | None:
        """By the decoder itself, as means of squares, but rounded to eight bits: rough. Of upright films alone."""
        from cxr_pipeline.data.formats.codecs import jpeg_header
        from cxr_pipeline.data.formats.small import Small, step_for

        header = jpeg_header(raw) if rough else None
        if header is None or header.unusual or header.components not in (1, 3):
            return None
        native = header.height, header.width
        step = step_for(*native, least)
        image = opened(raw, self.pillow, self.label, name) if step > 1 else None
        if image is None or (image.height, image.width) != native or orientation_of(image) != 1:
            return None
        check_size(name, *native, 3)
        image.draft(None, (native[1] // step, native[0] // step))  # at least so large
        samples = loaded(image, name)
        if samples.shape[:2] != (-(-native[0] // step), -(-native[1] // step)):
            return None
        film = grey.film(samples, name)
        film.small = Small(native, step, step / 2, rough=True)
        return film


class Bmp(_Picture):
    """Windows bitmaps."""

    name: ClassVar[str] = "bmp"
    label: ClassVar[str] = "BMP"
    suffixes: ClassVar[tuple[str, ...]] = (".bmp", ".dib")
    pillow: ClassVar[str] = "BMP"

    def matches(self, head: bytes) -> bool:
        """By its letters and the reserved zeros: a text may well begin with BM."""
        return head.startswith(b"BM") and head[6:10] == bytes(4)


class WebP(_Picture):
    """WebP, lossy and lossless."""

    name: ClassVar[str] = "webp"
    label: ClassVar[str] = "WebP"
    suffixes: ClassVar[tuple[str, ...]] = (".webp",)
    pillow: ClassVar[str] = "WEBP"

    def matches(self, head: bytes) -> bool:
        """By the form of its RIFF container."""
        return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


class Gif(_Picture):
    """GIF with one picture."""

    name: ClassVar[str] = "gif"
    label: ClassVar[str] = "GIF"
    suffixes: ClassVar[tuple[str, ...]] = (".gif",)
    pillow: ClassVar[str] = "GIF"

    def matches(self, head: bytes) -> bool:
        """By its version."""
        return head.startswith((b"GIF87a", b"GIF89a"))
