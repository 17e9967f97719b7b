"""The node, the page's numbers, and answers for the hospital: of large films no more is held than they look at."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pydicom
import pytest

from cxr_pipeline.data import radiograph
from cxr_pipeline.data.files import sha256_of
from cxr_pipeline.results.folder import rows
from cxr_pipeline.results.outputs import chosen
from cxr_pipeline.results.outputs.base import JudgedFilm
from cxr_pipeline.results.outputs.identifiers import Identifiers
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.run.spec import ChainSpec
from cxr_pipeline.stages.apply import apply
from cxr_pipeline.stages.base import Record
from tests.pipeline.dicom_films import dataset
from tests.pipeline.test_small_run import large_film

SIZE = (2117, 2048)
TABLE = {name: {"headers": object()} for name in ("dicom", "fhir")}  # of films that are no DICOM


@pytest.fixture(scope="module")
def chain():
    return ChainSpec(threads=1).open()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A large film, as DICOM of 12 bits; beside it as PNG."""
    image = large_film(5, "TB", SIZE)
    made = dataset(Rows=SIZE[0], Columns=SIZE[1], PixelData=(image.astype(np.uint16) * 16).tobytes())
    path = tmp_path_factory.mktemp("large") / "film.dcm"
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    path.with_suffix(".png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


class Spy:
    """A reader in this process; `seen` is what each film was asked for with."""

    def __init__(self, *_, **__):
        self.seen = []

    def __call__(self, path, *, id=None, **how):
        self.seen.append(how)
        return radiograph.read(path, id=id, **how)

    def close(self):
        pass


def test_what_answers_for_the_hospital_look_at(chain, tmp_path):
    def least(*outputs):
        return Runner(chain.stages, tmp_path, outputs=outputs).least

    pytest.importorskip("highdicom")
    pytest.importorskip("fhir.resources")
    assert least(*chosen("dicom,fhir"), Identifiers()) == 1024
    assert least(*chosen("fhir", options=TABLE)) == 1024
    assert least(*chosen("dicom", options=TABLE)) is None  # the film itself is written


@pytest.mark.slow
def test_answers_for_the_hospital_are_those_of_whole_films(chain, film):
    pytest.importorskip("highdicom")
    pytest.importorskip("fhir.resources")
    outputs = chosen("dicom,fhir")
    how = Runner(chain.stages, film.parent, outputs=outputs).how
    lean, whole = (radiograph.read(film, **one) for one in (how, {}))
    assert lean.small is not None
    answers = []
    for one in (lean, whole):
        (record,) = apply(chain.stages, [Record(replace(one))])
        judged = JudgedFilm(record, "film", str(film), sha256_of(film.read_bytes()), film.parent, chain.identity)
        answers.append({kind: data for made in outputs for kind, data in made.files(judged).items()})
        assert judged.warnings == []
    assert set(answers[0]) == {"-seg.dcm", "-sr.dcm", "-sc.dcm", "-pr.dcm", ".json"}
    for kind in set(answers[0]) - {"-sc.dcm"}:
        assert answers[0][kind] == answers[1][kind], kind
    one, two = (pydicom.dcmread(BytesIO(found["-sc.dcm"])).pixel_array.astype(int) for found in answers)
    change = np.abs(one - two)  # the overlay, shrunk in two steps: the edges of letters on the film show it most
    assert change.mean() < 1
    assert np.percentile(change, 99.9) <= 3


@pytest.mark.slow
def test_a_node_holds_as_much_as_a_run(chain, film, tmp_path, monkeypatch):
    from cxr_pipeline.dicom import station

    monkeypatch.setattr(station, "IsolatedReader", Spy)
    outputs = chosen("masks,regions")
    node = station.Station(chain, tmp_path / "node", outputs=outputs, workers=1)
    inputs = find_inputs([film])
    node.judge(inputs, {inputs[0].key: "film"})
    how = node._reader._reader.seen
    node.close()
    assert how == [Runner(chain.stages, tmp_path, outputs=outputs).how]
    assert how[0]
    Runner(chain.stages, tmp_path / "whole", chain.identity, outputs=outputs, reader=Spy()).run(inputs)
    for name in ("results.csv", "regions.json", "masks/film.png"):
        assert (tmp_path / "node" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_the_page_shows_whole_films_and_numbers_need_less(chain, film, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    from cxr_pipeline.web import jobs
    from cxr_pipeline.web.settings import Settings
    from cxr_pipeline.web.uploads import Upload

    monkeypatch.setattr(jobs, "IsolatedReader", Spy)
    queue = jobs.JobQueue(chain, Settings())
    queue.start()
    found = []
    try:
        for pictures in (False, True):
            folder = queue.new_folder()
            path = folder / "uploads" / "a.png"
            path.write_bytes(film.with_suffix(".png").read_bytes())
            with queue.places(1) as places:
                job = queue.submit(folder, [Upload("a.png", path, "0")], places, pictures=pictures)
            job.finished.result(60)
            found.append(job)
        pictured = found[1]
        shown = {name: pictured.picture(pictured.films[0], name) for name in ("film.png", "crop.png")}
        sizes = {name: cv2.imread(str(path)).shape[:2] for name, path in shown.items()}
        (row,) = rows(pictured.results)
    finally:
        queue.stop()
    assert queue._reader.seen == [Runner(chain.stages, tmp_path, outputs=()).how, {}]
    assert queue._reader.seen[0]
    numbers, pictures = (job.films[0] for job in found)
    assert numbers.row["status"] == "ok"
    assert {name: numbers.row.get(name) or "" for name in row} == row
    assert numbers.boxes == pictures.boxes
    assert max(sizes["film.png"]) == 1600
    assert sizes["crop.png"][0] > 1024, "at the film's own size"
