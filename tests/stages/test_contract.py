"""The contract that every stage passes, on a chain trained for a moment on synthetic films."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from cxr_pipeline import stages
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.models.figures import plots
from cxr_pipeline.models.store import CARD_FILE, KERAS_FILE, SERVING_FILE, WeightsError, bundle_of, fingerprint
from cxr_pipeline.results.outputs import columns
from cxr_pipeline.stages.base import OK, REFUSED, Record, StageError
from cxr_pipeline.train.evaluation import plain

flat = itertools.chain.from_iterable


def record(seed=0, size=(120, 96), label="TB"):
    film = make_film(seed, label=label, size=size)
    return Record(Radiograph(film.pixels, f"film{seed}", f"film{seed}.png", size, None, "png", 8, {}))


def may_be_empty(name):
    """Fields that a stage leaves empty on some weights: those that lungs alone were learned by have no heart."""
    return name in ("heart_mask", "lung_box")


class TestEveryStage:
    """What each registered stage keeps; a new one is picked up by its line in the registry."""

    @pytest.fixture(params=stages.names())
    def name(self, request):
        return request.param

    @pytest.fixture
    def kind(self, name):
        return stages.stage_class(name)

    @pytest.fixture
    def filled(self, kind):
        return [name for name in kind.fills if not may_be_empty(name)]

    @pytest.fixture
    def chain(self, name, tiny_chain):
        return stages.load_chain(tiny_chain, name)

    def run(self, chain, records):
        for stage in chain:
            records = stage.run(records)
        return records

    def test_fills_in_its_fields(self, chain, filled):
        (done,) = self.run(chain, [record()])
        assert done.status == OK, done.error
        for name in filled:
            assert getattr(done, name) is not None, name

    def test_keeps_order_and_identity(self, chain):
        records = [record(seed) for seed in range(3)]
        done = self.run(chain, records)
        assert [r.radiograph.id for r in done] == [r.radiograph.id for r in records]

    def test_batch_equals_single(self, chain, filled):
        sizes = [(120, 96), (96, 140), (200, 200)]
        batch = self.run(chain, [record(n, size) for n, size in enumerate(sizes)])
        for number, size in enumerate(sizes):
            (single,) = self.run(chain, [record(number, size)])
            for name in filled:
                self.same(getattr(single, name), getattr(batch[number], name))

    def test_a_shared_stage_answers_several_threads_at_once(self, chain, kind, filled):
        if not kind.shared:
            pytest.skip("the stage is called by one thread")
        batches = [[record(10 * batch + n, (120, 96)) for n in range(3)] for batch in range(6)]
        alone = [self.run(chain, copy.deepcopy(batch)) for batch in batches]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda batch: self.run(chain, batch), batches))
        for one, two in zip(flat(alone), flat(together), strict=True):
            for name in filled:
                self.same(getattr(one, name), getattr(two, name))

    def same(self, one, two):
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, two, atol=1e-4)
        elif isinstance(one, dict):
            assert one == pytest.approx(two, abs=1e-4)
        elif isinstance(one, float):
            assert one == pytest.approx(two, abs=1e-2)
        elif isinstance(one, list):  # regions
            assert [dataclasses.replace(r, score=0) for r in one] == [dataclasses.replace(r, score=0) for r in two]
            assert [r.score for r in one] == pytest.approx([r.score for r in two], abs=1e-4)
        else:
            assert one == two

    def test_an_empty_batch_is_fine(self, chain):
        assert chain[-1].run([]) == []

    def test_a_refused_record_passes_untouched(self, chain, filled):
        refused = record().refuse("too dark")
        before = copy.copy(refused)
        (after,) = chain[-1].run([refused])
        assert (after.status, after.error) == (REFUSED, "too dark")
        for name in filled:
            assert getattr(after, name) is getattr(before, name)

    def test_native_size_whatever_the_film(self, chain):
        for size in [(64, 64), (97, 251), (300, 180)]:
            (done,) = self.run(chain, [record(3, size)])
            for name in ("mask", "heatmap"):
                value = getattr(done, name)
                assert value is None or value.shape == size

    def test_bundle_holds_what_running_needs(self, tiny_chain, kind):
        if not kind.has_weights:
            pytest.skip("the stage needs no bundle")
        bundle = bundle_of(tiny_chain, kind.name)
        card = json.loads((bundle / CARD_FILE).read_text())
        assert card["stage"] == kind.name
        assert card["decisions"]
        assert card["licence"]
        assert card["training"]["split_hash"]

    def test_fingerprint_follows_decisions_and_not_figures(self, tiny_chain, kind, tmp_path):
        if not kind.has_weights:
            pytest.skip("the stage needs no bundle")
        bundle = tmp_path / "bundle"
        shutil.copytree(bundle_of(tiny_chain, kind.name), bundle)
        first = fingerprint(bundle)
        card = json.loads((bundle / CARD_FILE).read_text())
        card["figures"] = {"made": "up"}
        (bundle / CARD_FILE).write_text(json.dumps(card))
        assert fingerprint(bundle) == first
        card["decisions"]["threshold"] = 0.123
        (bundle / CARD_FILE).write_text(json.dumps(card))
        assert fingerprint(bundle) != first

    def test_evaluates_to_figures_with_intervals(self, chain, kind, samples, tmp_path):
        *before, stage = chain
        figures = plain(stage.evaluate(read_manifest(samples), tmp_path, before))
        for name in kind.headline_figures:
            name = "auc_tb" if name == "auroc" else name
            assert set(figures[name]) == {"value", "ci95", "n"}, name
            # `cam_in_lungs` is undefined where the map is zero throughout, the heart where none is found.
            assert figures[name]["n"] > 0 or name in ("cam_in_lungs", "ctr_mae", "ctr_bias")
        json.dumps(figures, allow_nan=False)

    def test_a_missing_bundle_is_named(self, name, tmp_path):
        with pytest.raises(WeightsError, match=name):
            bundle_of(tmp_path, name)

    def test_runs_without_tensorflow(self, name, tiny_chain):
        code = (
            "import sys, numpy as np\n"
            "from cxr_pipeline import stages\n"
            "from cxr_pipeline.data.radiograph import Radiograph\n"
            "from cxr_pipeline.data.synthetic import make_film\n"
            "from cxr_pipeline.stages.base import Record\n"
            "film = make_film(1, size=(100, 90))\n"
            "records = [Record(Radiograph(film.pixels, 'a', 'a', (100, 90)))]\n"
            f"for stage in stages.load_chain({str(tiny_chain)!r}, {name!r}): records = stage.run(records)\n"
            "assert records[0].status == 'ok', records[0].error\n"
            "heavy = {'tensorflow', 'keras', 'albumentations', 'matplotlib', 'pandas'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_says_of_itself_what_others_ask(self, kind):
        fields = {field.name for field in dataclasses.fields(Record)} | {"heatmap"}  # a property, drawn from `heat`
        assert {*kind.needs, *kind.uses, *kind.fills} <= fields
        assert kind.fills
        assert not {*kind.fills} & {*kind.needs, *kind.uses}
        assert kind.summary
        assert kind.headline_figures
        assert len(kind.truth) == 2
        assert len({column.name for column in kind.columns} & set(columns())) == 0
        assert kind.monitor is None or kind.monitor.mode in ("min", "max")

    def test_other_settings_are_another_stage(self, chain):
        stage = chain[-1]
        for name in stage.run_settings:
            value = None if name == "label" else stage.decisions.get(name, 1)
            value = value if name in ("label", "max_regions", "min_side") else (value or 0) + 0.125
            changed = stage.with_settings(**{name: value})
            assert changed.decisions[name] == getattr(changed, name) == value
            assert (changed.fingerprint, stage.settings) == (stage.fingerprint, {})
            assert changed.identity != stage.identity
        assert stage.identity == stage.fingerprint
        with pytest.raises(StageError, match="no setting 'colour'"):
            stage.with_settings(colour="red")

    def test_columns_are_those_declared(self, chain, kind):
        (done,) = self.run(chain, [record()])
        if kind.columns:
            assert set(done.measures) == {column.name for column in kind.columns}


class TestSegment:
    @pytest.fixture
    def chain(self, tiny_chain):
        return stages.load_chain(tiny_chain, "segment")

    def test_the_picture_of_the_worst_says_what_its_colours_are(self, chain, samples, tmp_path):
        chain[0].evaluate(read_manifest(samples), tmp_path)
        top = cv2.imread(str(tmp_path / "worst.png"))[:26]
        for colour in ((80, 220, 80), (60, 60, 255)):
            assert (top == colour).all(axis=2).sum() > 80


class TestClassify:
    @pytest.fixture
    def chain(self, tiny_chain):
        return stages.load_chain(tiny_chain, "classify")

    def test_all_promised_figures_have_intervals(self, chain, samples, tmp_path):
        *before, stage = chain
        figures = plain(stage.evaluate(read_manifest(samples), tmp_path, before))
        for name in ("accuracy", "balanced_accuracy", "auc_tb", "sensitivity", "specificity", "ece"):
            assert set(figures[name]) == {"value", "ci95", "n"}, name

    def test_the_films_with_a_wrong_answer_are_shown_as_the_worst(self, chain, samples, tmp_path, monkeypatch):
        shown = []
        monkeypatch.setattr(plots, "contact_sheet", lambda images, captions, *_, **__: shown.extend(captions))
        *before, stage = chain
        films = stage.evaluate(read_manifest(samples), tmp_path, before)["films"]
        wrong = [film for film in films if film["status"] == OK and film["predicted"] != film["label"]]
        assert wrong
        first_lines = [text.split("\n")[0] for text in shown[: len(wrong)]]
        expected = [f"truth {film['label']}, answer {film['predicted']}" for film in wrong[:20]]
        assert sorted(first_lines) == sorted(expected) or len(wrong) > 20


@pytest.mark.parametrize("name", ["segment", "classify"])
def test_keras_and_onnx_runtimes_agree(tiny_chain, name):
    answers = []
    for runtime in ("onnx", "keras"):
        records = [record(seed) for seed in range(2)]
        for stage in stages.load_chain(tiny_chain, name, runtime):
            records = stage.run(records)
        answers.append(records)
    for one, two in zip(*answers, strict=True):
        np.testing.assert_allclose(one.mask, two.mask, atol=0.01)
        if name == "classify":
            np.testing.assert_allclose(one.maps, two.maps, atol=1e-4)
            assert one.probabilities == pytest.approx(two.probabilities, abs=1e-4)


def test_networks_bring_their_files(tiny_chain):
    for name in ("segment", "classify"):
        assert (tiny_chain / name / KERAS_FILE).is_file()
        assert (tiny_chain / name / SERVING_FILE).is_file()


def test_unknown_stage_is_named():
    with pytest.raises(ValueError, match="'detect'"):
        stages.stage_class("detect")
