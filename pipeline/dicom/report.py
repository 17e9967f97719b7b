"""The answer as a DICOM Structured Report after TID 1500: label, screen, score, probabilities, measures, regions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import Code, codes

from cxr_pipeline.dicom.headers import FilmHeader
from cxr_pipeline.dicom.maker import MANUFACTURER, NOTICE, Maker
from cxr_pipeline.dicom.presentation import corners_of
from cxr_pipeline.dicom.segmentation import Segment
from cxr_pipeline.stages.base import Record, Region
from cxr_pipeline.stages.scores import AT_THRESHOLD, shown

if TYPE_CHECKING:
    from highdicom.sr import MeasurementReport

SCHEME = "99CXRPIPELINE"
CHEST_FILM = Code("399208008", "SCT", "Plain chest X-ray")
SCORE = Code("SCORE", SCHEME, "Score of 0 to 100, the threshold is at 50")
THRESHOLD = Code("THRESHOLD", SCHEME, "Score from which a film is screen positive")
SCREEN = Code("SCREEN", SCHEME, "Screening answer")
LABEL = Code("LABEL", SCHEME, "Likeliest class")
REGION = Code("REGION", SCHEME, "Region to look at")
REGION_SCORE = Code("REGION_SCORE", SCHEME, "Score of the region, 0 to 1")
CTR = Code("CTR", SCHEME, "Cardiothoracic ratio")
AREA_RATIO = Code("LUNG_AREA_RATIO", SCHEME, "Area of the left lung by that of the right one")
PIXELS = Code("{pixels}", "UCUM", "pixels")
# What the stage `measure` says of a lung, without its side, with the concept and unit of each.
LUNG_MEASURES = (
    ("lung_mm2", codes.SCT.Area, codes.UCUM.SquareMillimeter),
    ("lung_px", codes.SCT.Area, PIXELS),
    ("lung_height_mm", codes.DCM.Height, codes.UCUM.Millimeter),
    ("lung_height_px", codes.DCM.Height, PIXELS),
)
SCREENS = {
    "positive": codes.SCT.Positive,
    "negative": codes.SCT.Negative,
    "unsure": codes.SCT.Indeterminate,
}
_KNOWN = {  # classes of the shipped weights that a public code means exactly
    "TB": Code("56717001", "SCT", "Tuberculosis"),
    "NORM": codes.SCT.ECGNormal._replace(value="17621005", meaning="Normal"),
}
ZONES = {
    "upper": Code("281392002", "SCT", "Upper zone of lung"),
    "middle": Code("281393007", "SCT", "Middle zone of lung"),
    "lower": Code("281394001", "SCT", "Lower zone of lung"),
}
_MEANING = 64  # characters of an LO


def class_code(name: str) -> Code:
    """The code of a class: a public one where there is one, else one of our own."""
    return _KNOWN.get(name) or Code(_value("CLASS", name), SCHEME, name[:_MEANING])


def probability_code(name: str) -> Code:
    """What the probability of a class is called."""
    return Code(_value("P", name), SCHEME, f"Probability of {name}"[:_MEANING])


def _value(kind: str, name: str) -> str:
    """A code value, up to 16 characters, that no other class shares."""
    plain = f"{kind}_{name}"
    return plain if len(plain) <= 16 and plain.isascii() else f"{kind}_{sha256(name.encode()).hexdigest()[:8]}"


def report(
    record: Record,
    segments: Sequence[Segment],
    segmentation: Dataset | None,
    header: FilmHeader,
    maker: Maker,
) -> Dataset:
    """The report of a judged film.

    Args:
        segments: the organs of `segmentation`, which the lungs' measures refer to.
        segmentation: None where no lungs were found.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import ComprehensiveSR

    film = header.dataset
    content = _content(record, segments, segmentation, header, maker)
    made = ComprehensiveSR(
        evidence=[film] if segmentation is None else [film, segmentation],
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        performed_procedure_codes=[CHEST_FILM],
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name=f"Codes of {MANUFACTURER}")],
        **maker.common(header, "sr"),
    )
    made.PreliminaryFlag = "PRELIMINARY"
    return made


def _content(
    record: Record,
    segments: Sequence[Segment],
    segmentation: Dataset | None,
    header: FilmHeader,
    maker: Maker,
) -> MeasurementReport:
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
        RelationshipTypeValues,
        TextContentItem,
    )

    observer = ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=maker.uid("", "observer"),
            name=f"{maker.model} {maker.version}",
            manufacturer_name=MANUFACTURER,
            model_name=f"weights {maker.weights}",
            serial_number=maker.fingerprint,
        ),
    )
    groups: list[Any] = [*_answer(record, header, maker)]
    if segmentation is not None:
        groups += [_organ(one, record.measures or {}, segmentation, header, maker) for one in segments]
    groups += [_region(number, one, header, maker) for number, one in enumerate(record.regions or (), 1)]
    made = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=CHEST_FILM,
        imaging_measurements=groups or None,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=_described(header),
    )
    for text in (NOTICE, *_remarks(record)):
        made[0].ContentSequence.append(TextContentItem(codes.DCM.Comment, text, RelationshipTypeValues.CONTAINS))
    return made


def _described(header: FilmHeader) -> list[Dataset] | None:
    """The film for the report's library of images; None where it lacks what stands there of a projection."""
    if header.spacing is None or "PatientOrientation" not in header.dataset:
        return None
    film = copy.copy(header.dataset)
    film.ImagerPixelSpacing = [f"{value:.10g}" for value in header.spacing]
    return [film]


def _remarks(record: Record) -> list[str]:
    out = [] if record.ok else [f"{record.status}: {record.error}"]
    out += record.warnings
    note = (record.measures or {}).get("ctr_note")
    return [" ".join(str(text).split())[:1024] for text in (*out, *([note] if note else []))]


def _algorithm(maker: Maker) -> Any:
    """The program as an algorithm, with the fingerprint of each stage."""
    from highdicom.sr import AlgorithmIdentification

    parameters = [f"{name} {value}" for name, value in maker.stages.items()]
    return AlgorithmIdentification(maker.model, f"{maker.version}, weights {maker.fingerprint}", parameters or None)


def _track(film: str, kind: str, name: str, maker: Maker) -> Any:
    from highdicom.sr import TrackingIdentifier

    return TrackingIdentifier(uid=maker.uid(film, f"track {kind}"), identifier=name)


def _answer(record: Record, header: FilmHeader, maker: Maker) -> list[Any]:
    """The group of the whole film; none where nothing was classified."""
    from highdicom.sr import (
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
    )

    film = header.dataset
    one = codes.UCUM.NoUnits
    numbers = [
        Measurement(probability_code(name), round(p, 4), one) for name, p in (record.probabilities or {}).items()
    ]
    if record.tb_score is not None:
        numbers.append(Measurement(SCORE, shown(record.tb_score), one))
        numbers.append(Measurement(THRESHOLD, float(record.extra.get("cutoff", AT_THRESHOLD)), one))
    measures: Mapping[str, Any] = record.measures or {}
    numbers += [
        Measurement(code, float(measures[name]), one)
        for name, code in (("ctr", CTR), ("lung_area_ratio", AREA_RATIO))
        if measures.get(name) is not None
    ]
    words = [QualitativeEvaluation(LABEL, class_code(name)) for name in (record.label or "").split("|") if name]
    if record.screen in SCREENS:
        words.append(QualitativeEvaluation(SCREEN, SCREENS[record.screen]))
    if not numbers and not words:
        return []
    return [
        MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_track(str(film.SOPInstanceUID), "film", "Film", maker),
            source_images=[SourceImageForMeasurementGroup(film.SOPClassUID, film.SOPInstanceUID)],
            algorithm_id=_algorithm(maker),
            measurements=numbers or None,
            qualitative_evaluations=words or None,
        )
    ]


def _organ(
    segment: Segment, measures: Mapping[str, Any], segmentation: Dataset, header: FilmHeader, maker: Maker
) -> Any:
    """A lung or the heart, with what the stage `measure` found of it."""
    from highdicom.sr import (
        FindingSite,
        Measurement,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        ReferencedSegmentationFrame,
        SourceImageForSegmentation,
    )

    film = header.dataset
    numbers = []
    for suffix, name, unit in LUNG_MEASURES:
        value = measures.get(f"{segment.key}_{suffix}")
        if value is not None:
            numbers.append(Measurement(name, float(value), unit))
    referenced = ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=segment.number,
        segment_number=segment.number,
        source_image=SourceImageForSegmentation(film.SOPClassUID, film.SOPInstanceUID),
    )
    del referenced[0].ReferencedSOPSequence[0].ReferencedFrameNumber  # one of the two may stand there (C.18.4)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_track(str(film.SOPInstanceUID), segment.key, segment.label, maker),
        referenced_segment=referenced,
        finding_type=segment.code,
        finding_category=codes.SCT.AnatomicalStructure,
        finding_sites=[FindingSite(segment.code)],
        measurements=numbers or None,
    )


def _region(number: int, region: Region, header: FilmHeader, maker: Maker) -> Any:
    """A region as a rectangle on the film, with side, zone and score."""
    from highdicom.sr import (
        FindingSite,
        GraphicTypeValues,
        ImageRegion,
        Measurement,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForRegion,
    )

    film = header.dataset
    side = {"right": codes.SCT.Right, "left": codes.SCT.Left}.get(region.side) if header.sides_known else None
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_track(str(film.SOPInstanceUID), f"region {number}", f"Region {number}", maker),
        referenced_region=ImageRegion(
            graphic_type=GraphicTypeValues.POLYLINE,
            graphic_data=corners_of(region),
            source_image=SourceImageForRegion(film.SOPClassUID, film.SOPInstanceUID),
        ),
        finding_type=REGION,
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_sites=[FindingSite(ZONES.get(region.zone, codes.SCT.Lung), laterality=side)],
        measurements=[Measurement(REGION_SCORE, round(float(region.score), 4), codes.UCUM.NoUnits)],
        qualitative_evaluations=[QualitativeEvaluation(LABEL, class_code(region.label))],
    )
