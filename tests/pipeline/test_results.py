"""The results folder: columns, files, COCO, and who may write into it."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.results.folder import ResultsFolder, rows, run_info
from cxr_pipeline.results.outputs import chosen, columns, failed, row_of
from cxr_pipeline.results.outputs.base import JudgedFilm
from cxr_pipeline.stages.base import FAILED, REFUSED, Record, Region
from tests.pipeline.fake_chain import film
from tests.pipeline.made_results import FINGERPRINTS, finish, identity, record, save

PROMISED = ["image", "id", "status", "error", "width", "height", "lung_fraction"]
PROMISED += ["p_TB", "p_NTB", "p_NORM", "label", "tb_score", "regions"]


def picture(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


def pictures(one, names="all", **options):
    """The files of a record by output."""
    film_ = JudgedFilm(one, one.radiograph.id, "in/a.png", "abc", None, identity())
    return {o.name: data for o in chosen(names, **options) for data in o.files(film_).values()}


def test_columns_are_the_promised_ones_in_their_order_then_others():
    assert columns()[: len(PROMISED)] == PROMISED
    assert columns() == [*PROMISED, "screen", "warnings", "sha256"]
    assert columns(["NORM", "TB", "COVID"]) == [*PROMISED, "screen", "p_COVID", "warnings", "sha256"]
    others = ["label", "score", "regions", "screen", "warnings", "sha256"]
    assert columns(["SICK", "NORM"])[7:] == ["p_SICK", "p_NORM", *others]  # no column of a class that there is not
    assert columns(["TB"], ["ctr"]) == [*PROMISED, "screen", "ctr", "warnings", "sha256"]


def test_columns_that_stages_declare_stay_when_a_chain_without_them_goes_on(tmp_path):
    with ResultsFolder(tmp_path, identity(columns=("ctr",))) as folder:
        save(folder, record("a"))
        finish(folder, ["a"])
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("b"))
        finish(folder, ["a", "b"])
    assert [row["ctr"] for row in rows(tmp_path)] == ["", ""]
    assert run_info(tmp_path)["columns"] == ["ctr"]


def test_numbers_have_the_promised_digits():
    one = record()
    one.probabilities, one.tb_score, one.lung_fraction = {"TB": 0.87654, "NTB": 0.1, "NORM": 0.02346}, 87.654, 0.25
    row = row_of(one)
    assert (row["p_TB"], row["p_NTB"], row["p_NORM"], row["tb_score"]) == ("0.8765", "0.1000", "0.0235", "87.7")
    assert (row["lung_fraction"], row["width"], row["height"], row["regions"]) == ("0.2500", "96", "72", "1")


def test_what_the_chain_did_not_reach_stays_empty():
    row = row_of(record(last_stage="segment"))
    assert "lung_fraction" in row
    assert not {"p_TB", "label", "tb_score", "regions"} & set(row)
    assert row_of(Record(Radiograph(np.zeros((1, 1), np.float32), "a", "a", (0, 0)), FAILED, "no\nfile")) == {
        "status": "failed",
        "error": "no file",
    }


def test_warnings_of_reader_and_stages_are_joined():
    one = record()
    one.radiograph.meta["warnings"], one.extra["warnings"] = ["lateral?"], ["rotated"]
    assert row_of(one)["warnings"] == "lateral?; rotated"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_is_an_error(value):
    one = record()
    one.tb_score = value
    with pytest.raises(ValueError, match="finite"):
        row_of(one)


@pytest.mark.parametrize("size", [(72, 96), (97, 61)])
def test_pictures_are_native(tmp_path, size):
    one = record(size=size)
    written = pictures(one, native_heatmaps=True)
    files = {name: cv2.imdecode(np.frombuffer(data, np.uint8), -1) for name, data in written.items()}
    assert {name: image.dtype for name, image in files.items()} == dict.fromkeys(files, np.dtype(np.uint8))
    np.testing.assert_array_equal(files["masks"], one.mask * 255)
    x, y, w, h = (int(v) for v in one.lung_box)
    np.testing.assert_array_equal(files["crops"], film(0, size=size, lungs=0.35)[y : y + h, x : x + w])
    assert files["heatmaps"].shape == size
    np.testing.assert_allclose(files["heatmaps"], one.heatmap * 255, atol=0.51)
    assert files["overlays"].ndim == 3


def test_pictures_follow_how_far_a_film_came():
    assert set(pictures(record(last_stage="segment"))) == {"masks", "crops", "overlays"}
    assert set(pictures(record(), None)) == {"masks", "overlays"}
    assert set(pictures(record().refuse("no_lungs"))) == {"overlays"}
    assert pictures(failed(record(), "classify", KeyError("x"))[0]) == {}


def test_a_finished_folder_holds_all_that_is_promised(tmp_path):
    with ResultsFolder(tmp_path / "out", identity(about={"weights": "tb", "config": {"t": float("nan")}})) as folder:
        for name in ("b", "a"):
            save(folder, record(name))
        save(folder, record("c").refuse("no_lungs: none"))
        counts = finish(folder, ["a", "b", "c"])
    out = tmp_path / "out"
    assert counts == {"ok": 2, "refused": 1, "failed": 0}
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == ["a", "b", "c"]
    assert [row["status"] for row in table] == ["ok", "ok", "refused"]
    assert list(rows(out)) == table
    assert sorted(p.name for p in (out / "masks").iterdir()) == ["a.png", "b.png"]
    info = run_info(out)
    assert (info["finished"], info["weights"], info["counts"]["total"]) == (True, "tb", 3)
    assert "Not a medical device" in info["notice"]
    assert info["config"] == {"t": None}


def test_regions_are_coco_in_native_pixels(tmp_path):
    one = record("a")
    one.regions = [
        Region(Box(3, 4, 10, 20), 0.51239, "NTB", "left", "lower"),
        Region(Box(0, 0, 2.5, 2), 0.3, "TB", "right", "upper"),
    ]
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("bad").refuse("no"))
        save(folder, one)
        save(folder, record("n", lungs=0.1))
        finish(folder, ["bad", "a", "n"])
    coco = json.loads((tmp_path / "regions.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "TB"}, {"id": 2, "name": "NTB"}, {"id": 3, "name": "NORM"}]
    assert coco["images"] == [
        {"id": 1, "file_name": "in/a.png", "width": 96, "height": 72, "name": "a"},
        {"id": 2, "file_name": "in/n.png", "width": 96, "height": 72, "name": "n"},
    ]
    first, second = coco["annotations"]
    assert first == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "iscrowd": 0,
        "bbox": [3, 4, 10, 20],
        "area": 200,
        "score": 0.5124,
        "side": "left",
        "zone": "lower",
    }
    assert second["bbox"] == [0, 0, 2.5, 2]


def test_a_folder_without_films_to_look_at_has_valid_coco(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("bad").refuse("no"))
        finish(folder, ["bad"])
    coco = json.loads((tmp_path / "regions.json").read_text())
    assert coco["images"] == coco["annotations"] == []


def test_a_chain_without_localize_leaves_no_regions(tmp_path):
    with ResultsFolder(tmp_path, identity("classify")) as folder:
        save(folder, record("a", last_stage="classify"))
        finish(folder, ["a"])
    assert not (tmp_path / "regions.json").exists()
    assert not (tmp_path / "heatmaps").exists()


def test_names_that_are_no_text_are_spelled_out(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        folder.save("k", 'in/\udcff, "é"\n.png', "abc", record("a"))
        finish(folder, ["k"])
    (row,) = rows(tmp_path)
    assert row["image"] == 'in/\\xff, "é"\n.png'
    assert json.loads((tmp_path / "regions.json").read_text())["images"][0]["file_name"] == row["image"]


def test_a_record_that_cannot_be_written_fails_alone(tmp_path):
    one = record("a")
    one.tb_score = float("nan")
    other = record("b")
    other.regions = [Region(Box(0, 0, 1, 1), 1.0, "nonsense", "left", "lower")]
    with ResultsFolder(tmp_path, identity()) as folder:
        for film_ in (one, other, record("c")):
            save(folder, film_)
        finish(folder, ["a", "b", "c"])
    table = list(rows(tmp_path))
    assert [row["status"] for row in table] == ["failed", "failed", "ok"]
    assert "finite" in table[0]["error"]
    assert "nonsense" in table[1]["error"]
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["c.png"]
    assert "ValueError" in (tmp_path / "run.log").read_text()


def test_the_table_is_there_while_the_run_goes_on(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        assert [row["id"] for row in rows(tmp_path)] == ["a"]
        assert run_info(tmp_path)["finished"] is False


def test_what_was_saved_is_done_while_the_file_and_its_pictures_are_the_same(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
    with ResultsFolder(tmp_path, identity()) as folder:
        assert folder.done("a", "abc")["row"]["status"] == "ok"
        assert folder.done("a", "changed") is None
        assert folder.done("b", "abc") is None
        (tmp_path / "overlays" / "a.jpg").write_bytes(b"")  # as after a power cut
        assert folder.done("a", "abc") is None


@pytest.mark.parametrize(
    ("status", "trace", "sha256", "done"),
    [(REFUSED, "", "abc", True), (FAILED, "", "abc", True), (FAILED, "Traceback", "abc", False)],
)
def test_failures_that_nobody_foresaw_are_tried_again(tmp_path, status, trace, sha256, done):
    one = record("a")
    one.status, one.error = status, "no"
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, one, sha256=sha256, trace=trace)
        assert (folder.done("a", sha256) is not None) == done


def test_a_film_that_fails_now_leaves_no_pictures_of_before(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        assert (tmp_path / "masks" / "a.png").exists()
        save(folder, Record(record("a").radiograph, FAILED, "cut off"), sha256="new")
        assert not list(tmp_path.glob("*/a.*"))


def test_masks_come_back_for_later_stages(tmp_path):
    one = record("a", last_stage="segment")
    with ResultsFolder(tmp_path, identity("segment")) as folder:
        save(folder, one)
        finish(folder, ["a"])
    with ResultsFolder(tmp_path, identity()) as folder:
        assert folder.done("a", "abc") is None
        np.testing.assert_array_equal(folder.mask("a", "abc", one.radiograph.size), one.mask)
        assert folder.mask("a", "changed", one.radiograph.size) is None
        assert folder.mask("a", "abc", (5, 5)) is None
        (tmp_path / "masks" / "a.png").write_bytes(b"damaged")
        assert folder.mask("a", "abc", one.radiograph.size) is None


def test_a_shorter_chain_leaves_what_a_longer_one_found(tmp_path):
    with ResultsFolder(tmp_path, identity(about={"config": {"segment": 1, "localize": 2}})) as folder:
        save(folder, record("a"))
        finish(folder, ["a"])
    with ResultsFolder(tmp_path, identity("segment", about={"config": {"segment": 1}})) as folder:
        assert folder.done("a", "abc") is not None
        save(folder, record("b", last_stage="segment"))
        finish(folder, ["a", "b"])
    assert run_info(tmp_path)["config"] == {"segment": 1, "localize": 2}
    assert run_info(tmp_path)["fingerprints"] == FINGERPRINTS
    assert [row["label"] for row in rows(tmp_path)] == ["TB", ""]
    assert len(json.loads((tmp_path / "regions.json").read_text())["images"]) == 1


def test_rows_of_other_inputs_stay_first(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        save(folder, record("b"))
        finish(folder, ["a", "b"])
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("c"))
        finish(folder, ["c", "b"])
    assert [row["id"] for row in rows(tmp_path)] == ["a", "c", "b"]


def test_a_torn_last_row_is_not_read(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        save(folder, record("b"))
    path = tmp_path / "results.csv"
    path.write_bytes(path.read_bytes()[:-1])
    assert [row["id"] for row in rows(tmp_path)] == ["a"]
    ResultsFolder(tmp_path, identity()).close()  # and the next run writes it again, from the journal
    assert [row["id"] for row in rows(tmp_path)] == ["a", "b"]
