"""What every format of films has in common: its description, what it decodes to, the limits, and the one error."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cxr_pipeline.configs.errors import CxrError

if TYPE_CHECKING:
    from cxr_pipeline.data.formats.small import Small

MAX_PIXELS = 100_000_000  # larger is no film but a bomb, or a mistake. The largest scans of films have 60 million
MAX_BYTES = 400_000_000  # that the samples of a file may unfold to; both are checked before anything is decoded
MIN_SIDE = 32  # no lung can be told from another on less


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
class Decoded:
    """What a format makes of a file.

    Attributes:
        pixels: (H, W) float32 in [0, 1], bright = dense, upright.
        bits: bits a sample holds.
        spacing: millimetres a pixel (row, column), where the file says so.
        aspect: height of a pixel divided by its width.
        colour: (h, w, 3) uint8 RGB at most 512 px a side, where the file is in colour; None for grey.
        meta: what the file's header says of the film.
        warnings: sentences on what was assumed because the file is silent or contradicts itself.
        small: how the pixels lie on the film, where they are fewer than the film has.
    """

    pixels: np.ndarray
    bits: int = 8
    spacing: tuple[float, float] | None = None
    aspect: float = 1.0
    colour: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    small: Small | None = None


class Format:
    """A format of films: one subclass in a file of its own, and one line in the registry.

    A package of your own adds one through the entry point group `cxr_pipeline.formats`, which names the subclass.

    Attributes:
        name: one word, as it stands in `Radiograph.format`.
        label: as people write it.
        suffixes: of file names, small letters, with the dot; a folder walk picks these up without looking inside.
        requires: modules that decoding needs beyond the base installation.
        extra: of this package, that installs them.
        suffix_suffices: whether a file is of this format by its suffix alone, whatever its content: for formats whose
            files may come without a mark.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "formats"
    suffix_suffices: ClassVar[bool] = False

    def matches(self, head: bytes) -> bool:
        """Whether a file that begins with `head` (up to 512 bytes) is of this format."""
        raise NotImplementedError

    def decode(self, raw: bytes, name: str) -> Decoded:
        """The film in the bytes of a file.

        Args:
            raw: the whole file.
            name: its path, for errors.

        Raises:
            RadiographError: what is wrong with the file. Any other exception counts as a damaged file.
        """
        raise NotImplementedError

    def decode_small(self, raw: bytes, name: str, least: int, *, rough: bool = True) -> Decoded | None:
        """The film at a fraction of its size, with `Decoded.small`; None where it has to be decoded whole.

        Args:
            raw: the whole file.
            name: its path, for errors.
            least: pixels that the long side has to keep.
            rough: whether its grey levels may differ by more from the means of the whole film's than scores can bear:
                by a half in a hundred.

        Raises:
            RadiographError: as for `decode`, which then is asked, and whose answer counts.
        """
        del raw, name, least, rough
        return None

    def missing(self) -> list[str]:
        """Required modules that are not installed."""
        return [module for module in self.requires if importlib.util.find_spec(module) is None]


def check_size(name: str, height: int, width: int, channels: int = 1, sample_bytes: float = 1) -> None:
    """Refuse a film by its header, before its pixels take memory.

    Args:
        name: the file's path, for errors.
        height: in pixels.
        width: in pixels.
        channels: samples a pixel.
        sample_bytes: bytes a sample.

    Raises:
        RadiographError: over MAX_PIXELS or MAX_BYTES, or a side under MIN_SIDE.
    """
    if height <= 0 or width <= 0:
        raise RadiographError(name, f"its header says {width}x{height} pixels. Export it again", "damaged")
    if height * width > MAX_PIXELS:
        raise RadiographError(
            name,
            f"{width}x{height} pixels are {height * width / 1e6:.0f} megapixels, over the limit of "
            f"{MAX_PIXELS / 1e6:.0f}. Scale the film down",
            "too_large",
        )
    size = height * width * channels * sample_bytes
    if size > MAX_BYTES:
        raise RadiographError(
            name,
            f"{width}x{height} pixels with {channels} samples of {sample_bytes:g} bytes unfold to {size / 1e6:.0f} MB, "
            f"over the limit of {MAX_BYTES / 1e6:.0f}. Save it as grey, or scale it down",
            "too_large",
        )
    if min(height, width) < MIN_SIDE:
        raise RadiographError(
            name,
            f"{width}x{height} pixels are too few; at least {MIN_SIDE} a side are needed. Export the film larger",
            "too_small",
            refused=True,
        )


def short(error: BaseException) -> str:
    """An exception's text on one line, 120 characters at the most."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
