"""The lungs, and the heart where it was looked for, as a DICOM Segmentation in the film's own pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import Code, codes

from cxr_pipeline.dicom.headers import FilmHeader
from cxr_pipeline.dicom.maker import Maker
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.measure import sides

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence

RIGHT_LUNG = Code("3341006", "SCT", "Right lung")
LEFT_LUNG = Code("44029006", "SCT", "Left lung")
_COLOURS = {"right": (60, 180, 200), "left": (90, 200, 130), "heart": (220, 110, 100)}  # RGB


class Segment(NamedTuple):
    """An organ: `number` in the Segmentation from 1, `key` "right", "left" or "heart", `mask` (H, W) bool.

    `key` tells where it lies in a film that hangs as usual; `code` and `label` name a side only where it is known.
    """

    number: int
    key: str
    code: Code
    label: str
    mask: np.ndarray


def segments_of(record: Record, header: FilmHeader) -> list[Segment]:
    """The organs of a film that were found, numbered in order; none where there is no mask, or an empty one."""
    if record.mask is None:
        return []
    found: list[tuple[str, Code, str, np.ndarray]] = []
    named = {"right": (RIGHT_LUNG, "Right lung"), "left": (LEFT_LUNG, "Left lung")}
    unnamed = {"right": "Lung on the left of the picture", "left": "Lung on the right of the picture"}
    for key, lung in zip(("right", "left"), sides(record.mask), strict=True):
        code, label = named[key] if header.sides_known else (codes.SCT.Lung, unnamed[key])
        found.append((key, code, label, lung))
    if record.heart_mask is not None:
        found.append(("heart", codes.SCT.Heart, "Heart", record.heart_mask > 0))
    found = [one for one in found if one[3].any()]
    return [Segment(number, *one) for number, one in enumerate(found, 1)]


def segmentation(segments: list[Segment], header: FilmHeader, maker: Maker) -> Dataset:
    """The Segmentation of at least one organ: binary, one frame each, derived from the film."""
    from highdicom import PixelMeasuresSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from highdicom.seg import Segmentation as Made

    film = str(header.dataset.SOPInstanceUID)
    described = [
        SegmentDescription(
            segment_number=one.number,
            segment_label=one.label,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=one.code,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm(maker),
            tracking_uid=maker.uid(film, f"track {one.key}"),
            tracking_id=one.label,
        )
        for one in segments
    ]
    for description, one in zip(described, segments, strict=True):
        description.RecommendedDisplayCIELabValue = list(CIELabColor.from_rgb(*_COLOURS[one.key]).value)
    made = Made(
        source_images=[header.dataset],
        pixel_array=np.stack([one.mask for one in segments], axis=-1)[None],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        content_label="LUNGS",
        content_description="Lungs found by a network, research use only",
        **maker.common(header, "seg"),
    )
    organization = maker.uid(film, "dimensions")  # highdicom's own is another one each time
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for item in made.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    if header.spacing:
        shared = made.SharedFunctionalGroupsSequence[0]
        if "PixelMeasuresSequence" not in shared:
            # A projection has no slices; programs that read Segmentations ask for the thickness all the same.
            shared.PixelMeasuresSequence = PixelMeasuresSequence(header.spacing, slice_thickness=1.0)
    return made


def algorithm(maker: Maker) -> AlgorithmIdentificationSequence:
    """The weights as the algorithm that found something."""
    from highdicom import AlgorithmIdentificationSequence

    return AlgorithmIdentificationSequence(
        name=maker.model,
        family=codes.DCM.ArtificialIntelligence,
        version=f"{maker.version}, weights {maker.fingerprint}",
        source="cxr-pipeline",
    )
