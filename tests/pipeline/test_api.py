"""The chain from Python: equal to the command, and good to look at."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from cxr_pipeline import Pipeline, open_results
from cxr_pipeline.api import Results
from cxr_pipeline.cli.main import _call
from cxr_pipeline.configs.schema import ConfigError
from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.data.synthetic import make_film, write_samples
from cxr_pipeline.results.folder import ResultsError
from cxr_pipeline.run.isolation import IsolatedReader
from cxr_pipeline.run.spec import _overridden
from cxr_pipeline.stages.base import Record, StageError
from tests.pipeline.fake_chain import findings_chain


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_samples(folder, 4, size=(160, 150))
    (folder / "images" / "bad.png").write_text("no picture")
    return folder / "images"


@pytest.fixture(scope="module")
def results(films, tmp_path_factory):
    return Pipeline().run(films, tmp_path_factory.mktemp("out") / "run")


def test_it_equals_the_command(films, results, tmp_path):
    assert _call(["run", str(films), "--out", str(tmp_path / "run")]) == 1
    for name in ("results.csv", "regions.json"):
        assert (tmp_path / "run" / name).read_bytes() == (results.folder / name).read_bytes()
    assert open_results(tmp_path / "run").rows == results.rows


def test_equal_and_left_out_files_are_named_as_by_the_command(tmp_path):
    write_samples(tmp_path, 1, size=(160, 150))
    films = tmp_path / "images"
    first = next(films.iterdir())
    (films / "zz.png").write_bytes(first.read_bytes())
    (films / "notes.txt").write_text("no film")
    found = Pipeline(stage="segment").run(films, tmp_path / "run")
    assert "same file as" in found.rows[1]["warnings"]
    assert "notes.txt,no_image" in (tmp_path / "run" / "left_out.csv").read_text()
    assert found.info["left_out"]["no_image"]["count"] == found.info["same_files"] == 1


def test_numbers_are_numbers(results):
    table = results.table
    assert len(table) == len(results) == 5
    good = table[table["status"] == "ok"]
    by_score = good.sort_values("tb_score")
    assert (np.diff(by_score["p_TB"]) >= -1e-3).all()  # monotone, to the digits shown
    assert set(good["screen"]) <= {"positive", "negative", "unsure"}
    assert set(results.regions) == set(good["id"])
    for name, found in results.regions.items():
        assert len(found) == int(table.set_index("id")["regions"][name])
    assert results.picture(good["id"].iloc[0]).shape[2] == 3
    assert results.picture(good["id"].iloc[0], "masks").shape == (160, 150)


def test_a_notebook_shows_it_without_trusting_names(results):
    shown = results._repr_html_()
    assert shown.count("<tr>") == 6
    assert "research" in shown.lower()
    assert "4 ok" in repr(results)


def test_the_table_keeps_text_as_it_is(tmp_path):
    columns = "image,id,status,label,tb_score,patient_id,accession,ctr,ctr_note"
    (tmp_path / "results.csv").write_text(f"{columns}\nNA.png,NA,ok,None,7.5,0012,007,,none\nb.png,b,failed,,,,,,\n")
    first, second = Results(tmp_path).table.to_dict("records")
    assert first | {"ctr": 0} == {
        **{"image": "NA.png", "id": "NA", "status": "ok", "label": "None", "tb_score": 7.5},
        **{"patient_id": "0012", "accession": "007", "ctr": 0, "ctr_note": "none"},
    }
    assert np.isnan(first["ctr"])
    assert np.isnan(second["tb_score"])
    assert (second["label"], second["patient_id"], second["ctr_note"]) == ("", "", "")


def test_settings_of_a_run_and_films_that_would_be_refused():
    loose = Pipeline(settings=["segment.min_side=10", "localize.label=NTB"], refuse=False)
    segment, _, localize = loose._chain.stages[:3]
    assert (segment.min_side, segment.refuse, localize.label) == (10, False, "NTB")
    with pytest.raises(StageError, match=r"--set classify\.alpha=1: a run has the settings segment\.threshold"):
        Pipeline(settings=["classify.alpha=1"])


def test_a_setting_may_name_a_class_of_other_weights():
    (_, localize) = _overridden(["localize.label=Mass"], findings_chain())
    assert localize.label == "Mass"
    with pytest.raises(ConfigError, match=r"label must be one of \['Mass', 'Effusion', 'Pleural_Thickening'\]"):
        _overridden(["localize.label=TB"], findings_chain())


def test_a_film_shows_itself_in_a_line_and_its_labels_where_there_is_no_score():
    record = Record(None, id="a", label="Mass|Effusion", mask=np.zeros((900, 900)))
    assert repr(record) == "Record('a': ok, Mass|Effusion)"
    assert "<th>label</th><td>Mass|Effusion</td>" in record._repr_html_()
    assert "<th>label</th><td>none</td>" in Record(None, label="")._repr_html_()
    scored = Record(None, id="b", label="TB", tb_score=61.26)
    assert repr(scored) == "Record('b': ok, TB, score 61.3)"
    assert "<th>label</th>" not in scored._repr_html_()


def test_one_film_without_a_folder(films, results):
    film = next(path for path in sorted(films.iterdir()) if path.name != "bad.png")
    chain = Pipeline()
    record = chain.analyze(film)
    (row,) = [row for row in results if row["image"].endswith(film.name)]
    assert record.label == row["label"]
    assert record.tb_score == pytest.approx(float(row["tb_score"]), abs=0.06)
    assert chain.classes == ("TB", "NTB", "NORM")


def crash(reader):
    """Have every helper of a reader run code that ends its process, as a decoder does on a damaged film."""

    def take():
        helper = IsolatedReader._take(reader)
        os.kill(helper._process.pid, signal.SIGSEGV)
        helper._process.wait()
        return helper

    reader._take = take


def test_a_film_that_crashes_its_decoder_costs_one_answer(films):
    chain = Pipeline(stage="segment")
    film = next(path for path in sorted(films.iterdir()) if path.name != "bad.png")
    crash(chain._reader)
    with pytest.raises(RadiographError, match="decoder crashed") as caught:
        chain.analyze(film)
    assert caught.value.code == "decoder_crashed"
    del chain._reader._take
    assert chain.analyze(film).ok
    with pytest.raises(RadiographError, match=r"bad\.png"):
        chain.analyze(films / "bad.png")


def test_the_process_that_reads_for_a_chain_ends_with_it(films):
    chain = Pipeline(stage="segment")
    assert chain._reader._all == []  # none before there is a film
    for film in sorted(films.glob("synthetic*"))[:2]:
        assert chain.analyze(str(film)).ok
    (helper,) = chain._reader._all
    assert helper.alive
    del chain
    gc.collect()
    assert not helper.alive


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_pixels_instead_of_a_file(dtype):
    pixels = make_film(1, label="NORM", size=(180, 160)).pixels
    whole = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    record = Pipeline(stage="segment").analyze((pixels * whole).astype(dtype))
    assert record.ok
    assert record.mask.shape == (180, 160)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3)), np.full((64, 64), 2.0), np.full((64, 64), np.nan), np.zeros((0, 3))]
)
def test_what_is_no_film_is_named(pixels):
    with pytest.raises(ValueError, match="Received"):
        Pipeline(stage="segment").analyze(pixels)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ResultsError, match=r"no run\.json"):
        open_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Pipeline(stage="segment").run(tmp_path / "nowhere", tmp_path / "out")


def test_importing_the_package_is_light():
    code = "import cxr_pipeline, sys; assert not {'numpy', 'pandas', 'onnxruntime'} & set(sys.modules)\n"
    code += "cxr_pipeline.Pipeline"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_identifiers_and_a_table_of_headers_as_by_the_command(films, tmp_path):
    table = tmp_path / "headers.csv"
    names = sorted(path.name for path in films.iterdir() if path.name != "bad.png")
    table.write_text("image,PatientID,StudyDate\n" + "".join(f"{name},P{n},20240102\n" for n, name in enumerate(names)))
    how = {"identifiers": "plain", "dicom_header": table}
    found = Pipeline(stage="segment").run([films / name for name in names], tmp_path / "run", **how)
    assert [row["patient_id"] for row in found.rows] == [f"P{n}" for n in range(len(names))]
    call = ["run", *(str(films / name) for name in names), "--stage", "segment", "--identifiers", "plain"]
    assert _call([*call, "--dicom-header", str(table), "--out", str(tmp_path / "by command")]) == 0
    assert (tmp_path / "by command" / "results.csv").read_bytes() == (found.folder / "results.csv").read_bytes()
    with pytest.raises(ResultsError, match="pseudonym or plain"):
        Pipeline(stage="segment").run(films, tmp_path / "other", identifiers="names")
    assert not (tmp_path / "other").exists()
