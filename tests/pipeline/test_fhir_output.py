"""`--outputs fhir`: a Bundle that is valid by two libraries' models of R4, and says what results.csv says."""

from __future__ import annotations

import json

import pytest

from cxr_pipeline.results.outputs.base import JudgedFilm
from cxr_pipeline.results.outputs.fhir import FhirBundles
from tests.pipeline.dicom_films import HEADER, judged_record, write
from tests.pipeline.test_dicom_output import ODD
from tests.pipeline.test_results import identity

pytest.importorskip("fhir.resources")


def bundle(path, one=None, **changes):
    one = one or judged_record(path)
    film = JudgedFilm(one, one.id, str(path), "", path.parent, identity(about={"weights": "tb"}, **changes))
    files = FhirBundles().files(film)
    assert set(files) <= {".json"}
    return (json.loads(files[".json"]) if files else None), one, film.warnings


def resources(made, kind):
    return [entry["resource"] for entry in made["entry"] if entry["resource"]["resourceType"] == kind]


def assert_valid(made):
    from fhir.resources.R4B.bundle import Bundle

    back = Bundle.model_validate(made).model_dump_json()
    assert len(json.loads(back)["entry"]) == len(made["entry"])
    fhirclient = pytest.importorskip("fhirclient.models.bundle")  # generated from R4, 4.0.1
    assert fhirclient.Bundle(made, strict=True).as_json() == made


@pytest.mark.parametrize("changes", [{}, *ODD.values()], ids=["plain", *ODD])
def test_it_is_valid(tmp_path, changes):
    made, _, _ = bundle(write(tmp_path / "film.dcm", **changes))
    assert_valid(made)


def test_every_reference_leads_to_something_in_it(tmp_path):
    made, _, _ = bundle(write(tmp_path / "film.dcm"))
    names = {entry["fullUrl"] for entry in made["entry"]}
    assert len(names) == len(made["entry"])
    found = [part.split('"')[0] for part in json.dumps(made).split('"reference": "')[1:]]
    assert found
    assert set(found) <= names


def test_the_report_is_of_this_patient_study_and_film(tmp_path):
    made, _, _ = bundle(write(tmp_path / "film.dcm"))
    assert made["entry"][0]["resource"]["resourceType"] == "DiagnosticReport"
    (report,), (patient,), (study,) = (
        resources(made, kind) for kind in ("DiagnosticReport", "Patient", "ImagingStudy")
    )
    assert patient["identifier"][0]["value"] == HEADER["PatientID"]
    assert (patient["name"][0]["family"], patient["gender"], patient["birthDate"]) == ("Doe", "female", "1970-02-03")
    assert {one["value"] for one in study["identifier"]} == {f"urn:oid:{HEADER['StudyInstanceUID']}", "ACC7"}
    assert study["series"][0]["instance"][0]["uid"] == HEADER["SOPInstanceUID"]
    where = {entry["resource"]["id"]: entry["fullUrl"] for entry in made["entry"]}
    assert report["subject"]["reference"] == where[patient["id"]]
    assert report["imagingStudy"][0]["reference"] == where[study["id"]]
    assert report["status"] == "preliminary"
    assert "Research use only" in report["conclusion"]
    assert len(report["result"]) == len(resources(made, "Observation"))
    assert all(one["subject"] == report["subject"] for one in resources(made, "Observation"))


def test_the_observations_say_what_was_found(tmp_path):
    made, one, _ = bundle(write(tmp_path / "film.dcm"))
    found = resources(made, "Observation")
    by_code = {item["code"]["coding"][0]["code"]: item for item in found}
    assert by_code["P_TB"]["valueQuantity"]["value"] == round(one.probabilities["TB"], 4)
    assert by_code["SCORE"]["valueQuantity"]["value"] == pytest.approx(one.tb_score, abs=0.05)
    areas = {
        item["bodySite"]["text"]: item["valueQuantity"]["value"]
        for item in found
        if item["code"]["text"] == "Area" and item["valueQuantity"]["code"] == "mm2"
    }
    assert areas == {"Right lung": one.measures["right_lung_mm2"], "Left lung": one.measures["left_lung_mm2"]}
    regions = [item for item in found if item["code"]["coding"][0]["code"] == "REGION"]
    assert len(regions) == len(one.regions)
    box = {part["code"]["text"]: part["valueQuantity"]["value"] for part in regions[0]["component"]}
    assert [box[name] for name in ("x", "y", "width", "height")] == [round(float(v), 2) for v in one.regions[0].box]
    assert regions[0]["bodySite"]["text"].lower() == f"{one.regions[0].side} lung, {one.regions[0].zone} zone"


def test_the_same_film_gives_the_same_bundle_and_other_weights_another(tmp_path):
    path = write(tmp_path / "film.dcm")
    once, again, other = bundle(path)[0], bundle(path)[0], bundle(path, segment="other")[0]
    assert once == again
    assert not {e["fullUrl"] for e in once["entry"]} & {e["fullUrl"] for e in other["entry"]}


def test_a_header_that_names_no_study_costs_the_bundle_and_not_the_film(tmp_path):
    made, one, (warning,) = bundle(write(tmp_path / "film.dcm", StudyInstanceUID=None))
    assert made is None
    assert one.ok
    assert "StudyInstanceUID" in warning


def test_refused_films_get_none(tmp_path):
    path = write(tmp_path / "film.dcm")
    assert bundle(path, one=judged_record(path).refuse("no_lungs: none"))[0] is None


@pytest.mark.parametrize("raises", [False, True])
def test_a_bundle_that_is_not_valid_is_said_without_a_word_of_the_header(tmp_path, monkeypatch, raises):
    from cxr_pipeline.dicom import bundle as module

    real = module.bundle

    def wrong(*arguments):
        if raises:
            raise ValueError("Doe^Jane is no name")
        made = real(*arguments)
        (patient,) = resources(made, "Patient")
        patient["birthDate"] = "Doe^Jane"
        return made

    monkeypatch.setattr(module, "bundle", wrong)
    made, _, (warning,) = bundle(write(tmp_path / "film.dcm"))
    assert made is None
    assert ("ValueError at" if raises else "birthDate") in warning
    assert "Doe" not in warning
