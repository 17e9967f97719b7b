"""`--identifiers`: whose a film is, in results.csv and the worklist; by default as pseudonyms of the site."""

from __future__ import annotations

import csv
import os
import stat
import threading

import pytest

from cxr_pipeline.data.radiograph import read
from cxr_pipeline.dicom.pseudonyms import Pseudonyms, SecretError, site_secret
from cxr_pipeline.results.folder import ResultsError, ResultsFolder, rows, run_info
from cxr_pipeline.results.outputs import chosen
from cxr_pipeline.results.outputs.asked import asked
from cxr_pipeline.results.outputs.identifiers import COLUMNS, Identifiers
from cxr_pipeline.results.worklist import write_worklist
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from tests.pipeline import fake_chain
from tests.pipeline.dicom_films import judged_record, write
from tests.pipeline.fake_chain import write_film
from tests.pipeline.test_results import PROMISED, finish, identity, record

PLAIN = dict(zip(COLUMNS, ("P-0042", "1.2.3.4.1", "ACC7", "20240506", "PA"), strict=True))


@pytest.fixture(autouse=True)
def site(monkeypatch, tmp_path):
    monkeypatch.setenv("CXR_SITE_SECRET", "a secret of this very site")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


def run(folder, outputs, path, refused=False):
    one = judged_record(path, path.stem)
    if refused:
        one.refuse("lateral: it is one")
    with ResultsFolder(folder, identity(), outputs=outputs) as results:
        results.save(path.stem, str(path), "abc", one)
        finish(results, [path.stem])
    (row,) = rows(folder)
    return row


def test_without_the_option_no_column_says_whose_a_film_is(tmp_path):
    row = run(tmp_path / "out", asked(), write(tmp_path / "a.dcm"))
    assert not set(COLUMNS) & set(row)
    assert "P-0042" not in (tmp_path / "out" / "results.csv").read_text()


def test_plain_ones_are_those_of_the_header_after_the_promised_columns(tmp_path):
    row = run(tmp_path / "out", asked(identifiers="plain"), write(tmp_path / "a.dcm"))
    assert {name: row[name] for name in COLUMNS} == PLAIN
    assert list(row)[: len(PROMISED)] == PROMISED
    assert "identifiers plain" in run_info(tmp_path / "out")["outputs"]


def test_a_corrected_table_corrects_the_rows_of_judged_and_refused_films(tmp_path):
    write_film(tmp_path / "films" / "a.png", 1)
    write_film(tmp_path / "films" / "none.png", 2, lungs=0.7)
    table = tmp_path / "headers.csv"
    for patient in ("P1", "P2"):
        table.write_text(f"image,PatientID,StudyID\nfilms/a.png,{patient},1\nfilms/none.png,{patient},1\n")
        wanted = asked("masks", dicom_header=table, identifiers="plain")
        run = Runner(fake_chain.chain(), tmp_path / "out", workers=1, outputs=wanted, reader=read)
        summary = run.run(find_inputs([tmp_path / "films"]))
        assert summary.already == 0
        assert summary.counts["refused"] == 1
        assert {row["patient_id"] for row in rows(tmp_path / "out")} == {patient}
    assert run.run(find_inputs([tmp_path / "films"])).already == 2


def test_refused_films_have_them_too(tmp_path):
    row = run(tmp_path / "out", asked(identifiers="plain"), write(tmp_path / "a.dcm"), refused=True)
    assert row["patient_id"] == "P-0042"


def test_pseudonyms_say_nothing_of_the_patient_and_stay_the_same(tmp_path):
    first = run(tmp_path / "1", asked(identifiers="pseudonym"), write(tmp_path / "a.dcm"))
    second = run(tmp_path / "2", asked(identifiers="pseudonym"), write(tmp_path / "b.dcm", SOPInstanceUID="1.2.3.9"))
    hidden = {name: first[name] for name in COLUMNS}
    assert all(hidden.values())
    assert not {value for name, value in hidden.items() if name != "view"} & set(PLAIN.values())
    assert {name: second[name] for name in COLUMNS} == hidden
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file():
            assert b"P-0042" not in file.read_bytes()
            assert b"a secret of this" not in file.read_bytes()


def test_another_site_has_other_pseudonyms(tmp_path, monkeypatch):
    first = run(tmp_path / "1", asked(identifiers="pseudonym"), write(tmp_path / "a.dcm"))
    monkeypatch.setenv("CXR_SITE_SECRET", "the secret of another site")
    second = run(tmp_path / "2", asked(identifiers="pseudonym"), tmp_path / "a.dcm")
    assert all(first[name] != second[name] for name in COLUMNS if name != "view")


def test_a_folder_without_them_gets_them_when_asked_later(tmp_path):
    path = write(tmp_path / "a.dcm")
    run(tmp_path / "out", chosen(), path)
    with ResultsFolder(tmp_path / "out", identity(), outputs=asked(identifiers="plain")) as folder:
        assert folder.done("a", "abc") is None
    assert run(tmp_path / "out", asked(identifiers="plain"), path)["patient_id"] == "P-0042"
    with ResultsFolder(tmp_path / "out", identity(), outputs=asked(identifiers="plain")) as folder:
        assert folder.done("a", "abc") is not None


def test_films_without_a_header_have_empty_cells(tmp_path):
    with ResultsFolder(tmp_path, identity(), outputs=(*chosen(), Identifiers())) as folder:
        folder.save("a", "in/a.png", "abc", record("a"))
        finish(folder, ["a"])
    assert [row["patient_id"] for row in rows(tmp_path)] == [""]


def test_the_worklist_has_them(tmp_path):
    run(tmp_path / "out", asked(identifiers="plain"), write(tmp_path / "a.dcm"))
    write_worklist(tmp_path / "out")
    with open(tmp_path / "out" / "worklist.csv", newline="", encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert {name: line[name] for name in COLUMNS} == PLAIN
    openpyxl = pytest.importorskip("openpyxl")
    sheet = openpyxl.load_workbook(tmp_path / "out" / "worklist.xlsx").active
    head, cells = ([cell.value for cell in row] for row in sheet.iter_rows())
    assert dict(zip(head, cells, strict=True))["patient_id"] == "P-0042"


def test_names_that_look_like_formulas_are_marked(tmp_path):
    run(tmp_path / "out", asked(identifiers="plain"), write(tmp_path / "a.dcm", PatientID="=1+2"))
    assert ",'=1+2," in (tmp_path / "out" / "results.csv").read_text()


def test_dates_of_a_patient_keep_their_distance():
    hidden = Pseudonyms(b"x" * 32)
    assert hidden.date("20240506", "a") != "20240506"
    first, second = hidden.date("20240101", "a"), hidden.date("20240131", "a")
    from datetime import datetime

    assert (datetime.strptime(second, "%Y%m%d") - datetime.strptime(first, "%Y%m%d")).days == 30
    assert hidden.date("noon", "a") == hidden.date("", "a") == ""
    assert hidden.name("patient", "") == hidden.uid("") == ""


def test_the_secret_is_made_once_for_its_owner_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("CXR_SITE_SECRET")
    found = []
    threads = [threading.Thread(target=lambda: found.append(site_secret())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    path = tmp_path / "settings" / "cxr-pipeline" / "site-secret"
    assert [file.name for file in path.parent.iterdir()] == ["site-secret"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o640)
        with pytest.raises(SecretError, match="chmod 600"):
            site_secret()


@pytest.mark.parametrize("secret", ["", "short"])
def test_a_secret_that_can_be_guessed_is_refused(monkeypatch, secret):
    monkeypatch.setenv("CXR_SITE_SECRET", secret)
    with pytest.raises(SecretError, match="CXR_SITE_SECRET"):
        site_secret()


@pytest.mark.parametrize(
    ("given", "kind"), [([], None), (["--identifiers"], "pseudonym"), (["--identifiers", "plain"], "plain")]
)
def test_the_option_alone_means_pseudonyms(given, kind, tmp_path):
    from cxr_pipeline.cli.main import cli

    context = cli.commands["run"].make_context("run", [str(tmp_path), "--out", "out", *given])
    assert context.params["identifiers"] == kind


def test_another_kind_is_refused():
    with pytest.raises(ResultsError, match="pseudonym or plain"):
        asked(identifiers="all")
