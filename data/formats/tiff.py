"""TIFF of every kind that films come in: 1 to 32 bits, signed, float, planes apart, BigTIFF, with a thumbnail page."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import Decoded, Format, RadiographError, check_size, short

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by our error
MAX_PAGES = 16  # read of a file, to tell a film with thumbnails from a stack
_WHITE_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 2, 3, 5, 6, 8  # PhotometricInterpretation
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_JPEG = (6, 7)  # JPEG compression, old and new


class Tiff(Format):
    """TIFF and BigTIFF, little and big endian."""

    name: ClassVar[str] = "tiff"
    label: ClassVar[str] = "TIFF"
    suffixes: ClassVar[tuple[str, ...]] = (".tif", ".tiff")

    def matches(self, head: bytes) -> bool:
        """By byte order and version."""
        return head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00\x08\x00", b"MM\x00+\x00\x08"))

    def decode(self, raw: bytes, name: str) -> Decoded:
        """The one page that is a film; reduced copies and masks of it are passed over."""
        import tifffile

        try:
            with tifffile.TiffFile(io.BytesIO(raw)) as file:
                page = _film_page(file, name)
                _check(page, raw, name)
                samples, inverted = _samples(page, raw, name)
                orientation = page.tags.get(274)
        except (tifffile.TiffFileError, OSError, EOFError, KeyError, IndexError) as error:
            raise RadiographError(
                name, f"the TIFF file is damaged or cut off ({short(error)}). Export or copy it again", "damaged"
            ) from error
        turn = int(orientation.value) if orientation is not None and isinstance(orientation.value, int) else 1
        return grey.film(samples, name, orientation=turn, inverted=inverted)


def _film_page(file: TiffFile, name: str) -> TiffPage:
    """The largest page, where all others are reduced copies or masks of it.

    Raises:
        RadiographError: several films.
    """
    pages = []
    for number, page in enumerate(file.pages):  # read one by one, so that a file of 40,000 pages costs no time
        if number == MAX_PAGES:
            raise RadiographError(
                name,
                f"it holds more than {MAX_PAGES} pages. Save the film as a file of its own",
                "multi_frame",
                refused=True,
            )
        pages.append(page.aspage())
    if not pages:
        raise RadiographError(name, "the TIFF file is damaged or cut off: it has no page. Export it again", "damaged")
    film = max(pages, key=lambda page: page.imagelength * page.imagewidth)
    others = [page for page in pages if page is not film and not _is_copy(page, film)]
    if others:
        raise RadiographError(
            name, f"it holds {len(others) + 1} pages. Save the film as a file of its own", "multi_frame", refused=True
        )
    return film


def _is_copy(page: TiffPage, film: TiffPage) -> bool:
    """Whether a page is a reduced copy or a mask of the film: by its flag, or by half the size and the same shape."""
    if int(page.subfiletype or 0) & (_REDUCED | _MASK):
        return True
    half = page.imagewidth * 2 <= film.imagewidth
    shape = page.imagewidth * film.imagelength, film.imagewidth * page.imagelength
    return half and abs(shape[0] - shape[1]) <= 0.05 * max(shape)


def _check(page: TiffPage, raw: bytes, name: str) -> None:
    """Size and completeness by the header."""
    frames = page.imagedepth or 1
    if frames > 1:
        raise RadiographError(name, f"it is a volume of {frames} slices. Save one film", "multi_frame", refused=True)
    check_size(name, page.imagelength, page.imagewidth, page.samplesperpixel, max(1, page.bitspersample / 8))
    ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if not ends or max(ends) > len(raw):
        raise RadiographError(
            name,
            f"the file is cut off after {len(raw)} bytes; its header says {max(ends, default=0)}. "
            "Export or copy it again",
            "truncated",
        )
    if page.compression == 1 and sum(page.databytecounts) * 8 < (
        page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample
    ):
        raise RadiographError(
            name, "its strips hold fewer bytes than its size needs. Export or copy it again", "truncated"
        )


def _samples(page: TiffPage, raw: bytes, name: str) -> tuple[np.ndarray, bool]:
    """Samples (H, W) or (H, W, C) in RGB order, and whether 0 is white."""
    photometric = int(page.photometric)
    if photometric in (_SEPARATED, _YCBCR, _LAB) or int(page.compression) in _JPEG:
        return _by_pillow(raw, page, name), False
    try:
        samples = np.asarray(page.asarray())
    except Exception as error:
        kind = getattr(page.compression, "name", page.compression)  # a number where it is an unknown one
        raise RadiographError(
            name,
            f"its pixels cannot be decoded ({kind}: {short(error)}). Export or copy it again",
            "truncated",
        ) from error
    if samples.dtype.kind not in "buif":
        raise RadiographError(name, f"its samples are {samples.dtype}. Save the film as grey", "not_a_film")
    samples = samples.reshape([side for side, axis in zip(samples.shape, page.axes, strict=True) if axis != "Z"])
    if samples.ndim == 3 and page.planarconfig == 2:  # planes apart
        samples = np.moveaxis(samples, 0, -1)
    bits = int(page.bitspersample)
    if photometric == _PALETTE and page.colormap is not None:
        table = np.asarray(page.colormap)  # (3, N) uint16; some programs write 8 bits of it
        return np.moveaxis(table, 0, -1)[np.minimum(samples, table.shape[1] - 1)], False
    if samples.dtype.kind == "u" and bits < 8:
        samples = (samples.astype(np.float32) * (255 / ((1 << bits) - 1))).round().astype(np.uint8)
    if samples.ndim == 3:
        samples = _known_channels(samples, page, photometric)
    return _black_is_zero(samples, photometric == _WHITE_IS_ZERO)


def _black_is_zero(samples: np.ndarray, inverted: bool) -> tuple[np.ndarray, bool]:
    """Samples, and whether 0 is still white: a film of fewer bits that was inverted in all 16 is turned back here."""
    if inverted and samples.dtype == np.uint16 and int(samples.min()) >= 3 << 14:
        return np.uint16(65535) - samples, False
    return samples, inverted


def _known_channels(samples: np.ndarray, page: TiffPage, photometric: int) -> np.ndarray:
    """Grey or colour, with alpha where the file names it so; channels of unknown meaning are left out."""
    colours = 3 if photometric == _RGB else 1
    if samples.shape[2] <= colours:
        return samples
    extra = [int(one) for one in page.extrasamples or ()]
    kept = list(range(colours))
    alpha = next((place for place, kind in enumerate(extra) if kind in (1, 2)), None)
    if alpha is not None and colours + alpha < samples.shape[2]:
        kept.append(colours + alpha)
    return samples[..., kept]


def _by_pillow(raw: bytes, page: TiffPage, name: str) -> np.ndarray:
    from cxr_pipeline.data.formats.pictures import loaded, opened

    image = opened(raw, "TIFF", "TIFF", name)
    image.seek(page.index)
    samples = loaded(image, name)
    turned = page.tags.get(274)
    if turned is not None and turned.value not in (None, 1):
        # Pillow has turned it, and `decode` turns every page: give the page as it is stored.
        samples = _as_stored(samples, int(turned.value))
    return samples


def _as_stored(samples: np.ndarray, orientation: int) -> np.ndarray:
    back = {6: 8, 8: 6}.get(orientation, orientation)  # the others undo themselves
    if samples.ndim == 2:
        return grey.upright(samples, back)
    return np.stack([grey.upright(samples[..., channel], back) for channel in range(samples.shape[2])], axis=-1)
