"""DICOM files to films: pixels, Modality LUT, VOI LUT or window, then MONOCHROME1 inversion, once."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from cxr_pipeline.data.radiograph import Radiograph, RadiographError, check_size

# Real archives break the standard in small ways that do not concern pixels; thousands of lines would bury real errors.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

RADIOGRAPHS = frozenset(
    {"CR", "DX", "DR", "RG", "RF", "OT", "SC", ""}
)  # PS3.3 C.7.3.1.1.1; OT and SC hold scanned films
# Words of body parts (PS3.16 annex L) that are plainly no chest.
_ELSEWHERE = (
    *("HAND", "FOOT", "ARM", "LEG", "KNEE", "EXTREMITY", "SKULL", "HEAD", "BRAIN", "PELVIS", "HIP", "ANKLE", "WRIST"),
    *("ELBOW", "SHOULDER", "SPINE", "BREAST", "TOE", "FINGER", "FEMUR", "HUMERUS", "TIBIA", "FIBULA", "FOREARM"),
    *("CALCANEUS", "HEEL", "JAW", "MANDIBLE", "TEETH", "NECK", "ABDOMEN", "KIDNEY", "BLADDER", "THUMB", "PATELLA"),
)


def decode(raw: bytes, name: str) -> Radiograph:
    """A film from the bytes of a DICOM file.

    Stored values go through the Modality LUT (or rescale slope and intercept), then the first VOI LUT or window, are
    scaled to [0, 1] by the range that these can give, and are inverted once if the photometric interpretation is
    MONOCHROME1 (PS3.3 C.7.6.3, C.11.1, C.11.2). Pixels of the padding value become black.

    Args:
        raw: the whole file.
        name: its path, for errors.

    Raises:
        RadiographError: no pixels, several frames, another modality or body part, or pixels that cannot be decoded.
    """
    try:
        dataset = pydicom.dcmread(io.BytesIO(raw), force=raw[128:132] != b"DICM")
    except Exception as error:
        raise RadiographError(
            name, f"the DICOM file is damaged ({_short(error)}). Export it again", "damaged"
        ) from error
    meta = _meta(dataset)
    _check(dataset, meta, name)
    try:
        stored = pixel_array(dataset)
    except Exception as error:
        raise RadiographError(
            name,
            f"its pixels cannot be decoded ({meta['transfer_syntax']}: {_short(error)}). The file may be cut off; "
            "export it again, uncompressed if it persists",
            "damaged",
        ) from error
    if stored.ndim == 3:
        bits = int(dataset.BitsStored)
        grey = cv2.cvtColor(stored[..., :3].astype(np.float32), cv2.COLOR_RGB2GRAY) / ((1 << bits) - 1)
    else:
        grey = _displayed(dataset, stored)
        if meta["photometric"] == "MONOCHROME1":
            grey = 1.0 - grey
        padding = dataset.get("PixelPaddingValue")
        if isinstance(padding, int):
            grey = np.where(stored == padding, np.float32(0), grey)
    pixels = np.ascontiguousarray(np.clip(grey, 0, 1), np.float32)
    return Radiograph(pixels, "", name, pixels.shape, _spacing(dataset), "dicom", int(dataset.BitsStored), meta)


def _displayed(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Stored values (H, W) as float32 in [0, 1], the way a viewer would show MONOCHROME2."""
    values = apply_modality_lut(stored, dataset)
    shown = apply_voi_lut(values, dataset, index=0)
    if "VOILUTSequence" in dataset and len(dataset.VOILUTSequence):
        low, high = 0, (1 << int(dataset.VOILUTSequence[0].LUTDescriptor[2])) - 1
    elif "ModalityLUTSequence" in dataset and len(dataset.ModalityLUTSequence):
        low, high = 0, (1 << int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])) - 1
    else:
        bits = int(dataset.BitsStored)
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dataset.PixelRepresentation else (0, (1 << bits) - 1)
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    return ((shown.astype(np.float64) - low) / (high - low)).astype(np.float32)


def _check(dataset: pydicom.Dataset, meta: dict[str, Any], name: str) -> None:
    if meta["modality"] not in RADIOGRAPHS:
        raise RadiographError(
            name,
            f"its modality is {meta['modality']}, no plain radiograph. Give CR or DX films",
            "not_a_radiograph",
            refused=True,
        )
    words = meta["body_part"].upper().replace("_", " ").split()
    if any(word.startswith(_ELSEWHERE) or word.endswith("SPINE") for word in words) and "CHEST" not in words:
        raise RadiographError(
            name, f"it shows {meta['body_part']}, not the chest. Give chest films", "not_a_chest", refused=True
        )
    if not any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise RadiographError(
            name,
            "this DICOM file holds no pixels (a report, an order, or a file that was cut off?). Give the image itself",
            "no_pixels",
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise RadiographError(name, f"it holds {frames} frames. Give a single film", "multi_frame", refused=True)
    if not all(isinstance(dataset.get(tag), int) for tag in ("Rows", "Columns", "BitsStored", "PixelRepresentation")):
        raise RadiographError(name, "its header lacks the size or depth of the pixels. Export it again", "damaged")
    check_size(name, dataset.Rows, dataset.Columns)


def _meta(dataset: pydicom.Dataset) -> dict[str, Any]:
    def text(tag: str) -> str:
        value = dataset.get(tag)
        return "" if value is None else str(value).strip()

    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    meta: dict[str, Any] = {
        "modality": text("Modality").upper(),
        "body_part": text("BodyPartExamined"),
        "view": text("ViewPosition"),
        "photometric": text("PhotometricInterpretation"),
        "transfer_syntax": getattr(syntax, "name", "") or "no transfer syntax",
    }
    said = " ".join(
        map(text, ("SeriesDescription", "StudyDescription", "ProtocolName", "PerformedProcedureStepDescription"))
    )
    if "PORTABLE" in said.upper() or "BEDSIDE" in said.upper():
        meta["portable"] = True  # the words themselves may name a patient, and stay behind
    age = text("PatientAge").upper()
    if len(age) >= 2 and age[:-1].isdigit() and age[-1] in "DWMY":
        meta["age_years"] = int(age[:-1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[age[-1]]
    return meta


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):
        value = dataset.get(tag)
        try:
            row, column = (float(v) for v in value)
        except (TypeError, ValueError):
            continue
        if row > 0 and column > 0:
            return row, column
    return None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
