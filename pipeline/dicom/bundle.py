"""The answer as a FHIR R4 Bundle: DiagnosticReport and Observations, linked to patient, study and device."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pydicom.sr.codedict import Code, codes
from pydicom.valuerep import PersonName

from cxr_pipeline.dicom.headers import NO_DATE, FilmHeader
from cxr_pipeline.dicom.maker import MANUFACTURER, NOTICE, Maker
from cxr_pipeline.dicom.report import (
    AREA_RATIO,
    CHEST_FILM,
    CTR,
    LABEL,
    LUNG_MEASURES,
    PIXELS,
    REGION,
    SCHEME,
    SCORE,
    SCREEN,
    SCREENS,
    ZONES,
    class_code,
    probability_code,
)
from cxr_pipeline.dicom.segmentation import LEFT_LUNG, RIGHT_LUNG
from cxr_pipeline.dicom.uids import stable_uid
from cxr_pipeline.stages.base import Record, Region
from cxr_pipeline.stages.scores import shown

_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
    SCHEME: f"urn:oid:{stable_uid('codes')}",
}
_SEXES = {"M": "male", "F": "female", "O": "other"}
_ACCESSION = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN", "display": "Accession ID"}
_RADIOLOGY = {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}


class _Bundle:
    """Resources of one film, each under a name that stays the same for the same film, weights and version."""

    def __init__(self, header: FilmHeader, maker: Maker) -> None:
        self.header, self.maker = header, maker
        self.film = str(header.dataset.SOPInstanceUID)
        self.entries: list[dict[str, Any]] = []
        self.observations: list[dict[str, str]] = []

    def add(self, kind: str, resource: dict[str, Any]) -> dict[str, str]:
        """Add a resource; returns the reference to it."""
        name = str(uuid.UUID(int=int(self.maker.uid(self.film, f"fhir {kind}").removeprefix("2.25."))))
        self.entries.append({"fullUrl": f"urn:uuid:{name}", "resource": {**resource, "id": name}})
        return {"reference": f"urn:uuid:{name}"}

    def observe(self, kind: str, code: Code, about: Mapping[str, Any], **value: Any) -> None:
        """Add an Observation; `about` is what all of them have in common."""
        found = {
            "resourceType": "Observation",
            "status": "preliminary",
            "category": [_concept(Code("imaging", "imaging", "Imaging"))],
            "code": _concept(code),
            **about,
            **value,
        }
        self.observations.append(self.add(kind, found))


def bundle(record: Record, said: str, header: FilmHeader, maker: Maker) -> dict[str, Any]:
    """The Bundle as plain values, in the form of its JSON.

    Args:
        said: the answer in a sentence.
    """
    made = _Bundle(header, maker)
    patient = made.add("patient", _patient(header))
    study = made.add("study", _study(header, patient))
    device = made.add("device", _device(maker))
    about: dict[str, Any] = {"subject": patient, "device": device, "derivedFrom": [study], **_when(header)}
    _answers(made, record, about)
    _measures(made, record.measures or {}, about)
    for number, region in enumerate(record.regions or (), 1):
        _region(made, number, region, about)
    report = {
        "resourceType": "DiagnosticReport",
        "status": "preliminary",
        "category": [{"coding": [_RADIOLOGY]}],
        "code": _concept(CHEST_FILM),
        "subject": patient,
        **_when(header),
        "imagingStudy": [study],
        "conclusion": " ".join([f"{said}.", *(f"{text}." for text in record.warnings), NOTICE]),
        **({"result": made.observations} if made.observations else {}),
    }
    made.add("report", report)
    made.entries.insert(0, made.entries.pop())
    return {
        "resourceType": "Bundle",
        "identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{maker.uid(made.film, 'fhir')}"},
        "type": "collection",
        "entry": made.entries,
    }


def _concept(code: Code) -> dict[str, Any]:
    system = _SYSTEMS.get(code.scheme_designator, "http://terminology.hl7.org/CodeSystem/observation-category")
    return {"coding": [{"system": system, "code": code.value, "display": code.meaning}], "text": code.meaning}


def _quantity(value: float, unit: Code) -> dict[str, Any]:
    return {"value": value, "unit": unit.meaning, "system": _SYSTEMS["UCUM"], "code": unit.value}


def _day(value: str) -> str | None:
    digits = value.replace(".", "")
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if len(digits) == 8 and digits != NO_DATE else None


def _when(header: FilmHeader) -> dict[str, str]:
    day = _day(header.date)
    return {"effectiveDateTime": day} if day else {}


def _patient(header: FilmHeader) -> dict[str, Any]:
    film = header.dataset
    out: dict[str, Any] = {"resourceType": "Patient"}
    if film.PatientID:
        issuer = film.get("IssuerOfPatientID", "")
        out["identifier"] = [
            {"value": str(film.PatientID), **({"assigner": {"display": str(issuer)}} if issuer else {})}
        ]
    name = PersonName(str(film.PatientName))
    if str(name):
        parts: dict[str, Any] = {"text": name.family_comma_given() or str(name)}
        given = [part for part in (name.given_name, name.middle_name) if part]
        out["name"] = [
            parts | ({"family": name.family_name} if name.family_name else {}) | ({"given": given} if given else {})
        ]
    if str(film.PatientSex) in _SEXES:
        out["gender"] = _SEXES[str(film.PatientSex)]
    born = _day(str(film.PatientBirthDate))
    return out | ({"birthDate": born} if born else {})


def _study(header: FilmHeader, patient: dict[str, str]) -> dict[str, Any]:
    film = header.dataset
    identifiers: list[dict[str, Any]] = [{"system": "urn:dicom:uid", "value": f"urn:oid:{film.StudyInstanceUID}"}]
    if film.AccessionNumber:
        identifiers.append({"type": {"coding": [_ACCESSION]}, "value": str(film.AccessionNumber)})
    modality = {"system": _SYSTEMS["DCM"], "code": str(film.Modality)}
    instance = {
        "uid": str(film.SOPInstanceUID),
        "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{film.SOPClassUID}"},
    }
    started = _day(str(film.StudyDate))
    return {
        "resourceType": "ImagingStudy",
        "identifier": identifiers,
        "status": "available",
        "subject": patient,
        **({"started": started} if started else {}),
        "series": [{"uid": str(film.SeriesInstanceUID), "modality": modality, "instance": [instance]}],
    }


def _device(maker: Maker) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "manufacturer": MANUFACTURER,
        "serialNumber": maker.fingerprint,
        "deviceName": [{"name": maker.model, "type": "model-name"}],
        "version": [{"value": maker.version}],
        "note": [{"text": NOTICE}],
    }


def _answers(made: _Bundle, record: Record, about: Mapping[str, Any]) -> None:
    one = codes.UCUM.NoUnits
    if record.screen in SCREENS:
        made.observe("screen", SCREEN, about, valueCodeableConcept=_concept(SCREENS[record.screen]))
    if record.tb_score is not None:
        made.observe("score", SCORE, about, valueQuantity=_quantity(shown(record.tb_score), one))
    for name in (record.label or "").split("|"):
        if name:
            made.observe(f"label {name}", LABEL, about, valueCodeableConcept=_concept(class_code(name)))
    for name, p in (record.probabilities or {}).items():
        made.observe(f"p {name}", probability_code(name), about, valueQuantity=_quantity(round(p, 4), one))


def _measures(made: _Bundle, measures: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    one = codes.UCUM.NoUnits
    for name, code in (("ctr", CTR), ("lung_area_ratio", AREA_RATIO)):
        if measures.get(name) is not None:
            made.observe(name, code, about, valueQuantity=_quantity(float(measures[name]), one))
    for side, lung in (("right", RIGHT_LUNG), ("left", LEFT_LUNG)):
        organ = lung if made.header.sides_known else codes.SCT.Lung
        for suffix, code, unit in LUNG_MEASURES:
            value = measures.get(f"{side}_{suffix}")
            if value is not None:
                where = {"bodySite": _concept(organ), "valueQuantity": _quantity(float(value), unit)}
                made.observe(f"{side} {suffix}", code, about, **where)


def _region(made: _Bundle, number: int, region: Region, about: Mapping[str, Any]) -> None:
    """A region: its class as the value, its box in pixels of the film as components."""
    side = {"right": "Right ", "left": "Left "}.get(region.side, "") if made.header.sides_known else ""
    where = _concept(ZONES.get(region.zone, codes.SCT.Lung))
    where["text"] = f"{side}lung, {region.zone} zone".capitalize()
    numbers = {"x": region.box.x, "y": region.box.y, "width": region.box.w, "height": region.box.h}
    parts = [
        {"code": {"text": name}, "valueQuantity": _quantity(round(float(value), 2), PIXELS)}
        for name, value in numbers.items()
    ]
    parts.append(
        {"code": {"text": "score"}, "valueQuantity": _quantity(round(float(region.score), 4), codes.UCUM.NoUnits)}
    )
    made.observe(
        f"region {number}",
        REGION,
        about,
        bodySite=where,
        valueCodeableConcept=_concept(class_code(region.label)),
        component=parts,
    )
