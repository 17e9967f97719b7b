"""The stored values of a DICOM film, as the data are and not only as the header says.

Lengths, high bit, sign and frames are checked against the pixel data, and compressed streams against their own headers:
where they contradict the data set, the data are taken and a warning names the tag.
"""

from __future__ import annotations

import numpy as np
import pydicom
from pydicom.encaps import generate_fragments
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from cxr_pipeline.data.formats.base import RadiographError, check_size, short
from cxr_pipeline.data.formats.codecs import StreamHeader, decode_j2k, decode_jpeg, j2k_header, jpeg_header
from cxr_pipeline.data.formats.dicom_file import pixel_tag
from cxr_pipeline.data.formats.dicom_header import text
from cxr_pipeline.data.formats.dicom_values import Layout, Stored, settled

_ITEM = b"\xfe\xff\x00\xe0"  # starts encapsulated pixel data
J2K = (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")


def stored_values(dataset: pydicom.Dataset, name: str, notes: list[str]) -> Stored:
    """The values of the one frame.

    Args:
        dataset: with a transfer syntax, see `dicom_file.open_dataset`.
        name: the file's path, for errors.
        notes: gets a sentence for each contradiction.

    Raises:
        RadiographError: no pixels, several frames, too large, cut off, or of a kind that nobody decodes.
    """
    tag = pixel_tag(dataset)
    if tag is None:
        raise RadiographError(
            name,
            "this DICOM file holds no pixels (a report, an order, or a file that was cut off?). Give the image itself",
            "no_pixels",
        )
    if tag != "PixelData":
        return _floats(dataset, tag, name)
    raw = bytes(dataset.PixelData)
    if encapsulated(dataset, raw):
        layout = layout_of(dataset, name, notes, raw=None)
        return _compressed(dataset, layout, name, notes)
    layout = layout_of(dataset, name, notes, raw=raw)
    if (frames := _frames(dataset)) > 1:
        if len(raw) * 8 >= 2 * layout.rows * layout.columns * layout.samples * layout.allocated:
            raise _several(name, frames)
        notes.append(f"NumberOfFrames (0028,0008) is {frames}, the pixel data hold one")
        dataset.NumberOfFrames = 1
    return _native(dataset, raw, layout, name, notes)


def _integer(dataset: pydicom.Dataset, tag: str) -> int | None:
    try:
        value = dataset.get(tag)
        return None if value is None or isinstance(value, bytes) else int(value)
    except Exception:
        return None


def layout_of(dataset: pydicom.Dataset, name: str, notes: list[str], raw: bytes | None) -> Layout:
    """What the header says of the pixels; `raw`: those, where they are not compressed. See `stored_values`."""
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not rows or not columns:
        which = "Rows (0028,0010)" if not rows else "Columns (0028,0011)"
        raise RadiographError(name, f"its header lacks {which}, the size of the film. Export it again", "damaged")
    photometric = text(dataset, "PhotometricInterpretation").upper()
    samples = _integer(dataset, "SamplesPerPixel")
    if not samples:
        samples = 3 if photometric.startswith(("RGB", "YBR")) else 1
        notes.append(f"SamplesPerPixel (0028,0002) is missing: {samples} was taken")
    if samples == 3 and not photometric.startswith(("RGB", "YBR")) and raw is not None:
        values = rows * columns * max(1, (_integer(dataset, "BitsAllocated") or 16) // 8)
        if values <= len(raw) < 3 * values:
            notes.append("SamplesPerPixel (0028,0002) is 3, the pixel data hold one sample a pixel")
            samples = 1
    if samples not in (1, 3):
        raise RadiographError(
            name,
            f"SamplesPerPixel (0028,0002) is {samples}; grey (1) and colour (3) are read. Export it as grey",
            "channels",
        )
    if (samples == 3) != photometric.startswith(("RGB", "YBR")) or not photometric:
        meant = "RGB" if samples == 3 else photometric if photometric in _GREY else "MONOCHROME2"
        if meant != photometric:
            notes.append(
                f"PhotometricInterpretation (0028,0004) is {photometric or 'missing'} with {samples} samples a pixel: "
                f"{meant} was taken"
            )
        photometric = meant
    allocated = _integer(dataset, "BitsAllocated")
    stored = _integer(dataset, "BitsStored")
    if not allocated:
        allocated = 16 if (stored or 16) > 8 else 8
        notes.append(f"BitsAllocated (0028,0100) is missing: {allocated} was taken")
    check_size(name, rows, columns, samples, max(allocated, 8) / 8)
    if raw is not None and photometric != "YBR_FULL_422":
        allocated = _fitting(allocated, len(raw), rows * columns * samples, notes)
    if not stored or stored > allocated:
        notes.append(f"BitsStored (0028,0101) is {stored or 'missing'}: {allocated} was taken")
        stored = allocated
    high = _integer(dataset, "HighBit")
    if high is None or not stored - 1 <= high < allocated:
        if high is not None:
            notes.append(
                f"HighBit (0028,0102) {high} does not fit BitsStored (0028,0101) {stored}: {stored - 1} was taken"
            )
        high = stored - 1
    signed = _integer(dataset, "PixelRepresentation") == 1
    planar = _integer(dataset, "PlanarConfiguration") or 0
    return Layout(rows, columns, samples, allocated, stored, high, signed, planar, photometric)


_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")


def _fitting(allocated: int, length: int, values: int, notes: list[str]) -> int:
    """Bits Allocated, or another depth where only that one fits the length of a single frame."""
    if length * 8 >= allocated * values:
        if allocated == 8 and length // 2 * 2 == 2 * values and length % (2 * values) == 0:
            return allocated  # two frames of 8 bits, maybe: the number of frames decides
        return allocated
    for other in (16, 8):
        if other < allocated and 0 <= length - other // 8 * values <= 1:
            notes.append(f"BitsAllocated (0028,0100) is {allocated}, the pixel data hold {other} bits a value")
            return other
    return allocated


def _frames(dataset: pydicom.Dataset) -> int:
    return _integer(dataset, "NumberOfFrames") or 1


def _several(name: str, frames: int) -> RadiographError:
    return RadiographError(name, f"it holds {frames} frames. Give a single film", "multi_frame", refused=True)


def _floats(dataset: pydicom.Dataset, tag: str, name: str) -> Stored:
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not rows or not columns:
        raise RadiographError(name, "its header lacks Rows or Columns (0028,0010). Export it again", "damaged")
    size = 4 if tag == "FloatPixelData" else 8
    check_size(name, rows, columns, 1, size)
    raw = bytes(dataset[tag].value)
    if _frames(dataset) > 1:
        raise _several(name, _frames(dataset))
    order = ">" if _big(dataset) else "<"
    if len(raw) < rows * columns * size:
        raise _too_short(name, tag, len(raw), rows * columns * size)
    values = np.frombuffer(raw, f"{order}f{size}", rows * columns).reshape(rows, columns)
    return Stored(values.astype(np.float64), 8 * size, True, text(dataset, "PhotometricInterpretation").upper())


def _too_short(name: str, tag: str, length: int, needed: int) -> RadiographError:
    return RadiographError(
        name, f"{tag} ends after {length} of {needed} bytes: the file is cut off. Export or copy it again", "damaged"
    )


def _big(dataset: pydicom.Dataset) -> bool:
    return dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian


def _native(dataset: pydicom.Dataset, raw: bytes, layout: Layout, name: str, notes: list[str]) -> Stored:
    count = layout.rows * layout.columns * layout.samples
    if layout.photometric == "YBR_FULL_422" and len(raw) < count:  # two pixels share their colour
        pairs = np.frombuffer(raw, np.uint8)
        if pairs.size < layout.rows * layout.columns * 2:
            raise _too_short(name, "PixelData (7FE0,0010)", len(raw), layout.rows * layout.columns * 2)
        pairs = pairs[: layout.rows * layout.columns * 2].reshape(-1, 4)
        colours = np.repeat(pairs[:, None, 2:], 2, axis=1)
        triples = np.concatenate([pairs[:, :2, None], colours], axis=2).reshape(layout.rows, layout.columns, 3)
        return Stored(triples, 8, False, "YBR_FULL")
    needed = -(-count * layout.allocated // 8)
    if len(raw) < needed:
        raise _too_short(name, "PixelData (7FE0,0010)", len(raw), needed)
    if layout.allocated in (8, 16, 32, 64):
        size = layout.allocated // 8
        values: np.ndarray = np.frombuffer(raw, f"{'>' if _big(dataset) else '<'}u{size}", len(raw) // size)
        if size == 1 and _big(dataset) and dataset["PixelData"].VR == "OW" and len(values) % 2 == 0:
            values = values.reshape(-1, 2)[:, ::-1].ravel()  # bytes of 16-bit words
        values = values[:count]
    else:  # packed, the lowest bit first (PS3.5 D)
        bits = np.unpackbits(np.frombuffer(raw, np.uint8, needed), bitorder="little")[: count * layout.allocated]
        values = bits.reshape(count, layout.allocated).astype(np.uint32) @ (1 << np.arange(layout.allocated))
        values = values.astype(np.uint32)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if layout.samples == 3 and layout.planar == 1:
        values = np.moveaxis(values.reshape(3, layout.rows, layout.columns), 0, -1)
    elif layout.samples == 3:
        values = values.reshape(layout.rows, layout.columns, 3)
    else:
        values = values.reshape(layout.rows, layout.columns)
    return settled(values, layout, notes)


def encapsulated(dataset: pydicom.Dataset, raw: bytes) -> bool:
    """Whether the pixel data are fragments, by their content: the transfer syntax may be wrong or missing."""
    syntax = dataset.file_meta.TransferSyntaxUID
    compressed = bool(syntax.is_compressed) if not syntax.is_private and syntax.is_transfer_syntax else False
    return raw.startswith(_ITEM) and (compressed or dataset["PixelData"].is_undefined_length or len(raw) > 16)


def fragments_of(dataset: pydicom.Dataset) -> list[bytes]:
    """The fragments of encapsulated pixel data, without the table of offsets that may go before them."""
    fragments = list(generate_fragments(dataset.PixelData))
    if len(fragments) > 1 and (not fragments[0] or _is_offset_table(fragments[0])):
        return fragments[1:]
    return fragments


def _compressed(dataset: pydicom.Dataset, layout: Layout, name: str, notes: list[str]) -> Stored:
    fragments = fragments_of(dataset)
    starts = [one for one in fragments if one.startswith((b"\xff\xd8\xff", *J2K))]
    frames = _frames(dataset)
    if len(starts) > 1 or (frames > 1 and len(fragments) > 1):
        raise _several(name, max(frames, len(starts)))
    if frames > 1:
        notes.append(f"NumberOfFrames (0028,0008) is {frames}, the pixel data hold one")
        dataset.NumberOfFrames = 1
    stream = b"".join(fragments)
    kind = str(getattr(dataset.file_meta.TransferSyntaxUID, "name", ""))
    try:
        if stream.startswith(b"\xff\xd8\xff"):
            return _jpeg(stream, layout, name, notes)
        if stream.startswith(J2K):
            return _jpeg2000(stream, layout, name, notes)
        if dataset.file_meta.TransferSyntaxUID == RLELossless or 0 < int.from_bytes(stream[:4], "little") <= 15:
            return _run_lengths(stream, layout, notes)
    except RadiographError:
        raise
    except Exception as error:
        raise RadiographError(
            name, f"its pixels cannot be decoded ({kind}: {short(error)}). Export it again, uncompressed", "damaged"
        ) from error
    raise RadiographError(
        name,
        f"its pixels are compressed in a way that is not read: TransferSyntaxUID (0002,0010) is "
        f"{dataset.file_meta.TransferSyntaxUID} {kind!r}. Export it uncompressed",
        "unreadable",
    )


def _is_offset_table(fragment: bytes) -> bool:
    return len(fragment) % 4 == 0 and len(fragment) <= 4096 and fragment[:4] == bytes(4)


def _check_stream(header: StreamHeader | None, layout: Layout, name: str, notes: list[str]) -> StreamHeader:
    if header is None:
        raise RadiographError(name, "its compressed pixels have no header. Export it again", "damaged")
    check_size(name, header.height, header.width, header.components, 1 if header.bits <= 8 else 2)
    if (header.height, header.width) != (layout.rows, layout.columns):
        notes.append(
            f"Rows and Columns (0028,0010) say {layout.columns}x{layout.rows}, the compressed picture is "
            f"{header.width}x{header.height}"
        )
    if (header.bits != layout.stored and header.bits < layout.allocated - 8 + 1) or header.bits > layout.allocated:
        notes.append(f"BitsStored (0028,0101) is {layout.stored}, the compressed picture has {header.bits}")
    return header


def _jpeg(stream: bytes, layout: Layout, name: str, notes: list[str]) -> Stored:
    header = _check_stream(jpeg_header(stream), layout, name, notes)
    if b"\xff\xd9" not in stream.rstrip(b"\0")[-64:]:
        raise RadiographError(
            name, "its JPEG stream ends without its end mark: the file is cut off. Export it again", "damaged"
        )
    as_stored = header.components == 3 and layout.photometric == "RGB" and not _says_ycbcr(stream)
    values = np.asarray(decode_jpeg(stream, as_stored=as_stored))
    bits = header.bits
    if values.ndim == 3:
        lossless = header.process in (0xC3, 0xF7)
        turned = layout.photometric.startswith("YBR") and lossless  # these decoders leave the colours as they are
        return Stored(values.astype(np.int32), bits, False, "YBR_FULL" if turned else "RGB")
    layout = layout._replace(stored=min(layout.stored, bits) if layout.stored <= bits else bits, high=0, samples=1)
    if bits < 16 or not layout.signed:
        layout = layout._replace(stored=bits)
    return settled(values, layout._replace(high=layout.stored - 1), notes)


def _says_ycbcr(stream: bytes) -> bool:
    """Whether a JPEG with three components says itself that they are YCbCr: by JFIF, or Adobe's marker."""
    head = stream[: 1 << 16]
    adobe = head.find(b"Adobe\x00")
    if adobe >= 0 and adobe + 12 <= len(head):
        return head[adobe + 11] == 1
    return b"JFIF\x00" in head[:64]


def _jpeg2000(stream: bytes, layout: Layout, name: str, notes: list[str]) -> Stored:
    header = _check_stream(j2k_header(stream), layout, name, notes)
    values = np.asarray(decode_j2k(stream))
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 3:
        # Without the codestream's own transform, YBR in the header means YBR in the samples.
        cod = stream.find(b"\xff\x52")
        transformed = cod >= 0 and stream[cod + 8 : cod + 9] == b"\x01"
        plain_ybr = layout.photometric in ("YBR_FULL", "YBR_FULL_422") and not transformed
        return Stored(values[..., :3].astype(np.int32), header.bits, False, "YBR_FULL" if plain_ybr else "RGB")
    bits = header.bits
    if bits > 16:
        return Stored(values.astype(np.int64), bits, header.signed, layout.photometric)
    unsigned = values.astype(np.int64) & ((1 << bits) - 1)
    # The header's sign, as everybody reads it; where that tears the film, `_settled` finds out.
    layout = layout._replace(stored=bits, high=bits - 1, samples=1, allocated=max(8, -(-bits // 8) * 8))
    if header.signed and not layout.signed:
        notes.append("PixelRepresentation (0028,0103) says unsigned, the JPEG 2000 stream is signed")
        layout = layout._replace(signed=True)
    return settled(unsigned.astype(np.uint32), layout, notes)


def _run_lengths(stream: bytes, layout: Layout, notes: list[str]) -> Stored:
    """RLE (PS3.5 G): a plane of bytes a segment, the highest byte of a sample first."""
    try:
        from rle.utils import decode_pixel_data  # pylibjpeg-rle: the same, 50 times faster

        bits, rows, columns = layout.allocated, layout.rows, layout.columns
        try:
            data = bytes(decode_pixel_data(stream, version=2, bits_allocated=bits, rows=rows, columns=columns))
        except BaseException as error:  # on damaged streams its Rust code panics, which is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(f"the run lengths do not fit: {short(error)}") from None
    except ImportError:
        from pydicom.pixels.decoders.rle import _rle_decode_frame

        data = bytes(
            _rle_decode_frame(stream, layout.rows, layout.columns, layout.samples, layout.allocated, segment_order="<")
        )
    size = layout.allocated // 8
    values = np.frombuffer(data, f"<u{size}").reshape(layout.samples, layout.rows, layout.columns)
    values = np.moveaxis(values, 0, -1) if layout.samples == 3 else values[0]
    return settled(np.ascontiguousarray(values), layout, notes)
