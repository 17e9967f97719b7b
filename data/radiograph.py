"""One reader for every format: any file to a film of float32 grey levels, bright = dense, upright.

The format is told by the file's first bytes, and by its name only where these say nothing. What cannot be read, or is
no radiograph, raises `RadiographError` with the file's name, what is wrong, and what to do; nothing else leaves `read`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data import formats
from cxr_pipeline.data.formats import looks_like_image
from cxr_pipeline.data.formats.base import (
    MAX_BYTES,
    MAX_PIXELS,
    MIN_SIDE,
    Decoded,
    Format,
    RadiographError,
    check_size,
    short,
)
from cxr_pipeline.data.formats.small import Small, Wanted, means, step_for
from cxr_pipeline.data.geometry import Frame

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Radiograph",
    "RadiographError",
    "check_size",
    "looks_like_image",
    "read",
    "stretched",
]

_MOST_FILE_BYTES = 1_000_000_000  # of a file as it lies on the disk; a film of 100 megapixels has 200 million
# How C libraries say that they got no memory.
_NO_MEMORY = ("insufficient memory", "bad_alloc", "failed to allocate", "out of memory", "cannot allocate")


@dataclass
class Radiograph:
    """A film as read.

    Attributes:
        pixels: (H, W) float32 in [0, 1], bright = dense, upright as it is displayed: the native pixels that every mask
            and box refers to, or fewer where the film is held `small`. See `on`.
        id: name of the film in a run, unique there.
        source: path as given.
        size: (height, width) of the film in native pixels.
        spacing: millimetres a pixel (row, column), where the file says so.
        format: the name of its format, see `data.formats`.
        bits: bits a sample holds.
        meta: what a DICOM file says of the film: modality, body_part, view, lateral, age_years, photometric,
            transfer_syntax. `warnings`: see the property. `against`: pairs of a code and a sentence, what speaks
            against judging the picture as one film, see `data.content`.
        aspect: height of a pixel divided by its width. Networks see the film with square pixels: give it to
            `Frame.letterbox`.
        small: how `pixels` lie on the film, where they are fewer than `size` says.
        grids: all of the film on squares, by their side, made of all its pixels where these are not kept.
        counted: `grey_levels` of all its pixels, where these are not kept.
    """

    pixels: np.ndarray
    id: str
    source: str
    size: tuple[int, int]
    spacing: tuple[float, float] | None = None
    format: str = ""
    bits: int = 8
    meta: dict[str, Any] = field(default_factory=dict)
    aspect: float = 1.0
    small: Small | None = None
    grids: dict[int, np.ndarray] = field(default_factory=dict)
    counted: int | None = None

    def step(self, least: int | None) -> int:
        """The side in pixels of the squares whose means leave the film's long side `least` of them; 1 for all pixels.

        Films of oblong pixels have no such squares.
        """
        return 1 if least is None or self.aspect != 1 else step_for(*self.size, least)

    def on(self, frame: Frame, least: int | None = None) -> np.ndarray:
        """The film (h, w) float32 on the grid of a frame, however many of its pixels are here. Not to be written to.

        Args:
            frame: of this film.
            least: what is seen are means of squares of pixels, as large as leaves the long side so many of them. The
                answer is then the same whether all pixels were kept, or no more than these. None takes all.
        """
        side = frame.grid[0]
        if side in self.grids and frame == Frame.letterbox(self.size, side):
            return self.grids[side]
        pixels, small = self.pixels, self.small or Small(self.size, 1, 0.5)
        by = max(1, self.step(least) // small.scale)
        pixels, small = means(pixels, by), small.coarser(by)
        return frame.to_grid(pixels) if small.scale == 1 else frame.small_to_grid(pixels, small.scale, small.centre)

    @cached_property
    def shown(self) -> np.ndarray:
        """See `stretched`, of its pixels; kept, as overlay and report both show it. Not to be written to."""
        return stretched(self.pixels)

    @property
    def grey_levels(self) -> int:
        """See `data.content.levels_in`."""
        from cxr_pipeline.data.content import levels_in

        return levels_in(self.pixels) if self.counted is None else self.counted

    @property
    def warnings(self) -> list[str]:
        """Sentences on what was assumed because the file is silent or contradicts itself."""
        return self.meta.setdefault("warnings", [])


def stretched(film: np.ndarray) -> np.ndarray:
    """A film (H, W) float32 as uint8, from its 0.5th to its 99.5th percentile: for looking only."""
    step = max(1, round((film.size / 16_000) ** 0.5))  # sorting a part of the pixels tells the same
    low, high = map(float, np.percentile(film[::step, ::step], [0.5, 99.5]))
    scale = 255 / max(high - low, 1e-3)
    # Two passes in place of five. What is brighter ends at 255; what is darker would be turned over.
    return cv2.convertScaleAbs(np.maximum(film, low), alpha=scale, beta=-low * scale)


def read(
    path: str | Path,
    *,
    id: str | None = None,
    least: int | None = None,
    rough: bool = True,
    wanted: Wanted | None = None,
) -> Radiograph:
    """Read a film.

    Integer samples are divided by the full range of their depth (a 16-bit file whose film fits into 8, 10, 12, 14
    bits is taken to hold so many), signed and float ones by the range they span, colour becomes grey (ITU-R BT.601),
    transparent pixels black, and EXIF orientation is applied. DICOM: see `data.formats.dicom_scale`.

    Args:
        path: the file.
        id: name in the run; the file's stem by default.
        least: pixels that the film's long side has to keep: a plain JPEG, or JPEG 2000 in a plain DICOM header, is then
            decoded at a half, a quarter or an eighth of its size where that is enough. None decodes every film whole.
        rough: False decodes so only what then gets the score of the whole film, to half a point: JPEG 2000 of ten bits
            and more.
        wanted: what is kept of a film that was decoded whole, and looked at: the means of squares of its pixels take
            their place where that is enough. None keeps all.

    Raises:
        RadiographError: always this one, whatever is wrong with the file.
    """
    name = str(path)
    raw = _bytes(path)
    kind = formats.tell(raw, name)
    if kind.missing():
        raise RadiographError(
            path,
            f"this is a {kind.label} file, which needs {', '.join(kind.missing())}. Install it with "
            f"pip install 'cxr-pipeline[{kind.extra}]', or save the film as PNG",
            "needs_extra",
        )
    name_in_run = id if id is not None else Path(path).stem
    if least is not None and (film := _small(kind, raw, name, name_in_run, least, rough)) is not None:
        return film
    try:
        decoded = kind.decode(raw, name)
        _check_pixels(decoded, name)
    except RadiographError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY):
            raise RadiographError(
                path, "decoding it needs more memory than a film may take. Scale the film down", "too_large"
            ) from None
        raise RadiographError(
            path, f"the {kind.label} file is damaged or cut off ({short(error)}). Export or copy it again", "damaged"
        ) from error
    film = _film(decoded, kind, name, name_in_run)
    return film if wanted is None else _lean(film, wanted)


def _lean(film: Radiograph, wanted: Wanted) -> Radiograph:
    """A film with no more than what is wanted of it; with all, where it is small or has oblong pixels."""
    step = film.step(wanted.least)
    if step == 1:
        return film
    return replace(
        film,
        pixels=means(film.pixels, step),
        small=Small(film.size, 1, 0.5).coarser(step),
        grids={side: film.on(Frame.letterbox(film.size, side)) for side in wanted.grids},
        counted=film.grey_levels,
    )


def _small(kind: Format, raw: bytes, name: str, id: str, least: int, rough: bool) -> Radiograph | None:
    """The film decoded small; None where anything about it is not plain: then it is decoded whole, which says what."""
    try:
        decoded = kind.decode_small(raw, name, least, rough=rough)
        if decoded is None:
            return None
        _check_pixels(decoded, name)
    except Exception:  # the whole decoding says why
        return None
    film = _film(decoded, kind, name, id)
    plain = film.aspect == 1 and not film.meta.get("warnings") and not film.meta.get("against")
    return film if plain else None


def _bytes(path: str | Path) -> bytes:
    try:
        size = Path(path).stat().st_size
        if size > _MOST_FILE_BYTES:
            raise RadiographError(
                path,
                f"the file has {size / 1e6:.0f} MB, over the limit of {_MOST_FILE_BYTES / 1e6:.0f}. "
                "Export the film alone",
                "too_large",
            )
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise RadiographError(path, "there is no such file. Check the path", "missing") from None
    except IsADirectoryError:
        raise RadiographError(path, "this is a folder. Give its files, or the folder as input", "folder") from None
    except PermissionError:
        raise RadiographError(path, "no permission to read it. Change its access rights", "permission") from None
    except RadiographError:
        raise
    except (OSError, ValueError) as error:
        raise RadiographError(
            path, f"it cannot be opened ({error}). Check the disk or the path", "unreadable"
        ) from None
    if not raw:
        raise RadiographError(path, "the file is empty (0 bytes). Export or copy it again", "empty_file")
    return raw


def _film(decoded: Decoded, kind: Format, name: str, id: str) -> Radiograph:
    from cxr_pipeline.data.content import findings

    film = Radiograph(
        decoded.pixels,
        id,
        name,
        decoded.small.native if decoded.small is not None else (decoded.pixels.shape[0], decoded.pixels.shape[1]),
        decoded.spacing,
        kind.name,
        decoded.bits,
        dict(decoded.meta),
        decoded.aspect,
        decoded.small,
    )
    against, remarks = findings(decoded.pixels, decoded.colour)
    if against:
        film.meta["against"] = against
    if decoded.warnings or remarks:
        film.meta["warnings"] = [*decoded.warnings, *remarks]
    return film


def _check_pixels(film: Decoded, name: str) -> None:
    check_size(name, *film.pixels.shape)
    low, high = float(film.pixels.min()), float(film.pixels.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise RadiographError(name, f"its grey levels are {low:g} to {high:g}. Export the film again", "not_finite")
    if high - low < 1e-6:
        raise RadiographError(name, "every pixel has the same grey level. Export the film again", "flat")
