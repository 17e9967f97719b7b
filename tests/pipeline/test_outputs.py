"""The contract of outputs: every registered one keeps it, and one of another package is found."""

from __future__ import annotations

import json
import pickle
import re
import struct
from importlib.metadata import EntryPoint
from typing import ClassVar

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.geometry import Frame
from cxr_pipeline.results import outputs
from cxr_pipeline.results.folder import ResultsError, ResultsFolder, run_info
from cxr_pipeline.results.heat import grid_heat, heat_at
from cxr_pipeline.results.outputs import chosen, output_class, output_names
from cxr_pipeline.results.outputs.base import JudgedFilm, Output
from cxr_pipeline.results.outputs.masks import bilevel_png
from cxr_pipeline.stages.base import FAILED, Record
from tests.pipeline.dicom_films import some_film
from tests.pipeline.test_results import finish, identity, record, save


def judged(one, folder=None):
    return JudgedFilm(one, one.radiograph.id, "in/a.png", "abc", folder, identity())


class OutputContract:
    """What each output must keep; a subclass names one."""

    name: str

    def made(self):
        return output_class(self.name)()

    def record(self, *name, **more):
        """A record; of a DICOM film for outputs that need a header."""
        one = record(*name, **more)
        if self.made().named:
            one.radiograph.source, one.radiograph.format = str(some_film(one.size)), "dicom"
        return one

    def test_it_is_declared(self):
        one = self.made()
        assert one.name == self.name
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", one.name)
        assert one.about
        assert one.suffixes or one.summary
        assert all(re.fullmatch(r"[\w-]*(\.[a-z0-9]+)+", suffix) for suffix in one.suffixes)

    def test_it_goes_to_another_process(self):
        assert pickle.loads(pickle.dumps(self.made())).key == self.made().key

    @pytest.mark.parametrize("last_stage", ["segment", "classify", "localize"])
    def test_its_files_are_those_declared_and_the_same_each_time(self, last_stage):
        one, film = self.made(), judged(self.record(last_stage=last_stage))
        files = one.files(film)
        assert set(files) <= set(one.suffixes)
        assert all(isinstance(data, bytes) and data for data in files.values())
        assert one.files(film) == files

    def test_it_takes_films_that_are_refused_failed_or_not_read(self):
        empty = Record(type(record().radiograph)(np.zeros((1, 1), np.float32), "a", "a", (0, 0)), FAILED, "no film")
        for one in (self.record().refuse("no_lungs: none"), empty):
            assert set(self.made().files(judged(one))) <= set(self.made().suffixes)

    def test_it_changes_nothing_of_the_record(self):
        one = self.record()
        before = one.mask.copy(), one.radiograph.pixels.copy(), grid_heat(one).copy()
        self.made().files(judged(one))
        for was, now in zip(before, (one.mask, one.radiograph.pixels, grid_heat(one)), strict=True):
            np.testing.assert_array_equal(was, now)

    def test_a_run_with_it_alone_leaves_its_files_and_goes_on(self, tmp_path):
        mine = chosen([self.name])
        with ResultsFolder(tmp_path, identity(), outputs=mine) as folder:
            save(folder, self.record("a"))
            save(folder, self.record("b").refuse("no_lungs: none"))
            finish(folder, ["a", "b"])
        for suffix in self.made().suffixes:
            if suffix == "-film.dcm":
                continue  # of films that are no DICOM
            assert (tmp_path / self.name / f"a{suffix}").is_file()
        if self.made().summary:
            assert (tmp_path / self.made().summary).is_file()
        with ResultsFolder(tmp_path, identity(), outputs=mine) as folder:
            assert folder.done("a", "abc") is not None
            assert folder.done("b", "abc") is not None


for _name in output_names():
    globals()[f"Test{_name.title()}"] = type(f"Test{_name.title()}", (OutputContract,), {"name": _name})


def test_what_a_run_writes_by_default_and_all():
    assert [one.name for one in chosen()] == ["table", "masks", "overlays", "regions"]
    assert [one.name for one in chosen("crops, masks")] == ["table", "masks", "crops"]
    assert [one.name for one in chosen("all")] == [one for one in output_names() if one not in ("dicom", "fhir")]
    assert [one.key for one in chosen("masks", native_heatmaps=True)] == ["table", "masks", "heatmaps native"]
    with pytest.raises(ResultsError, match=r"'mask'.*There are table, masks"):
        chosen("mask")


def test_another_output_asked_for_later_costs_the_film_and_leaves_the_rest(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        finish(folder, ["a"])
    with ResultsFolder(tmp_path, identity(), outputs=chosen("masks,heatmaps")) as folder:
        assert folder.done("a", "abc") is None
        save(folder, record("a"))
        finish(folder, ["a"])
    assert run_info(tmp_path)["outputs"] == ["heatmaps", "masks", "overlays", "regions", "table"]
    (image,) = json.loads((tmp_path / "regions.json").read_text())["images"]
    assert image["heatmap"]["file_name"] == "heatmaps/a.png"
    assert image["heatmap"]["grid"] == [16, 16]


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 65), (100, 8)])
def test_masks_are_bilevel_and_exact(size):
    mask = (np.random.default_rng(0).random(size) > 0.5).astype(np.uint8)
    data = bilevel_png(mask)
    assert struct.unpack(">IIBB", data[16:26]) == (size[1], size[0], 1, 0)  # one bit a pixel, grey
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(back, mask * 255)


def test_overlays_are_jpeg_of_at_most_1024_px():
    (data,) = output_class("overlays")().files(judged(record(size=(1500, 1300)))).values()
    assert data.startswith(b"\xff\xd8\xff")
    assert max(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape) == 1024


def test_heat_on_its_grid_is_the_native_one():
    one = record(size=(288, 240))
    native = one.heatmap.copy()
    one.heat, one.heatmap = grid_heat(one), None
    assert one.heat.shape == (16, 16)
    np.testing.assert_allclose(one.heatmap, native, atol=0.35)
    assert np.corrcoef(one.heatmap.ravel(), native.ravel())[0, 1] > 0.95
    small = heat_at(one, 72, 60)
    assert small.shape == (72, 60)
    drawn = cv2.resize(one.heatmap, (60, 72), interpolation=cv2.INTER_AREA)
    assert np.abs(small - drawn).mean() < 0.03
    frame = Frame.crop(one.radiograph.size, one.frame.box, 16)
    assert frame == one.frame


class Contours(Output):
    """An output as another package has it."""

    name: ClassVar[str] = "contours"
    about: ClassVar[str] = "outlines as text"
    suffixes: ClassVar[tuple[str, ...]] = ("-lungs.txt",)
    summary: ClassVar[str] = "contours.csv"

    def files(self, film):
        return {"-lungs.txt": f"{film.id} {film.identity.version}".encode()} if film.record.mask is not None else {}

    def write_summary(self, file, entries, run):
        file.writelines(f"{entry['row']['id']},{run['version']}\n".encode() for entry in entries())


class Wrong(Contours):
    """One that declares a path."""

    suffixes: ClassVar[tuple[str, ...]] = ("/../../x.txt",)


@pytest.fixture
def door(monkeypatch):
    def opened(value):
        points = [EntryPoint("contours", value, outputs.GROUP)]
        monkeypatch.setattr(outputs, "entry_points", lambda group: points if group == outputs.GROUP else [])

    return opened


def test_an_output_of_another_package_comes_through_the_door(door, tmp_path):
    door("tests.pipeline.test_outputs:Contours")
    assert "contours" in output_names()
    with ResultsFolder(tmp_path, identity(), outputs=chosen("masks,contours")) as folder:
        save(folder, record("a"))
        entry = folder.journal.get("a")
        finish(folder, ["a"])
    assert (tmp_path / "contours" / "a-lungs.txt").read_text() == "a 1"
    assert entry["files"]["contours/a-lungs.txt"]["size"] == 3
    assert (tmp_path / "contours.csv").read_text() == "a,1\n"
    with ResultsFolder(tmp_path, identity(), outputs=chosen("masks,contours")) as folder:
        assert folder.done("a", "abc") is not None
        (tmp_path / "contours" / "a-lungs.txt").write_text("cut")
        (tmp_path / "contours" / "a-lungs.txt").write_text("a")
        assert folder.done("a", "abc") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("tests.pipeline.test_outputs:Wrong", "suffixes"),
        ("tests.pipeline.test_outputs:record", "no subclass"),
        ("tests.pipeline.nothing:Here", "cannot be loaded"),
    ],
)
def test_an_output_that_keeps_no_contract_is_said(door, value, said):
    door(value)
    with pytest.raises(ResultsError, match=said):
        chosen("contours")


def test_an_output_that_gives_another_file_fails_its_film_alone(tmp_path):
    class Odd(Contours):
        def files(self, film):
            return {".exe": b"x"}

    with ResultsFolder(tmp_path, identity(), outputs=(*chosen(), Odd())) as folder:
        row = save(folder, record("a"))
    assert row["status"] == "failed"
    assert "it declares" in row["error"]
