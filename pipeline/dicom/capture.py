"""Pictures as Secondary Capture: the overlay for viewers that show nothing else, and films that were no DICOM."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import Code
from pydicom.uid import ExplicitVRLittleEndian

from cxr_pipeline.dicom.headers import FilmHeader
from cxr_pipeline.dicom.maker import Maker

_PROCESSED = Code("113076", "DCM", "Segmentation")
_SOURCE = Code("121322", "DCM", "Source image for image processing operation")


def overlay_capture(picture: np.ndarray, film_size: tuple[int, int], header: FilmHeader, maker: Maker) -> Dataset:
    """The overlay as Secondary Capture.

    Args:
        picture: (h, w, 3) uint8 BGR as `results.drawing.overlay` gives it: the film from the top-left corner, a strip
            below it.
        film_size: height and width that the film itself has in the picture.
    """
    from highdicom.sc import SCImage

    down, across = header.dataset.Rows / film_size[0], header.dataset.Columns / film_size[1]
    spacing = (header.spacing[0] * down, header.spacing[1] * across) if header.spacing else None
    made = SCImage.from_ref_dataset(
        header.dataset,
        pixel_array=np.ascontiguousarray(picture[..., ::-1]),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=tuple(header.dataset.get("PatientOrientation", ("L", "F"))),
        pixel_spacing=spacing,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **maker.common(header, "sc"),
    )
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ConversionType = "WSD"
    made.DerivationDescription = "Film with lung outline, heat map and boxes of a network; for looking only"
    _from_film(made, header.dataset)
    if not spacing and abs(header.aspect * down / across - 1) > 0.01:
        made.PixelAspectRatio = [str(round(1000 * header.aspect * down / across)), "1000"]
    _carry(made, header.dataset, ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"))
    return made


def _from_film(made: Dataset, film: Dataset) -> None:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = film.SOPClassUID, film.SOPInstanceUID
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = _SOURCE[:3]
    item.PurposeOfReferenceCodeSequence = [purpose]
    made.SourceImageSequence = [item]


def _carry(made: Dataset, film: Dataset, keywords: tuple[str, ...]) -> None:
    for keyword in keywords:
        if keyword in film:
            made[keyword] = film[keyword]
