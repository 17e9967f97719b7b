"""What cannot be judged is refused, with the right code; what can be is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_pipeline import stages
from cxr_pipeline.data.geometry import Frame
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.radiograph import Radiograph, read
from cxr_pipeline.data.synthetic import LABELS, make_film
from cxr_pipeline.models.store import QUALITY_FILE, SHIPPED, WeightsError, fingerprint, shipped
from cxr_pipeline.stages.base import OK, REFUSED, Record
from cxr_pipeline.stages.quality import CODES, Quality, View, aligned, by_header, measure, shown
from cxr_pipeline.stages.quality_fit import _drawn, fit
from cxr_pipeline.stages.uncertain import threshold_interval, uncertain

needs_weights = pytest.mark.skipif(not shipped(), reason="no weights are shipped")


@pytest.fixture(scope="module")
def segment():
    (stage,) = stages.load_chain("tb", "segment")
    return stage


def film(pixels, bits=8, **meta):
    pixels = np.ascontiguousarray(pixels, np.float32)
    return Radiograph(pixels, "film", "film.png", pixels.shape, None, "png", bits, meta)


def synthetic(seed=0, size=(320, 300)):
    return make_film(seed, label=LABELS[seed % 3], size=size).pixels


def judged(segment, pixels, **options):
    (record,) = segment.run([Record(film(pixels, **options))])
    return record


def code(record):
    assert record.status == REFUSED, record.extra
    found = record.error.split(":")[0]
    assert found in CODES
    return found


def blurred_noise(seed):
    import cv2

    return cv2.GaussianBlur(np.random.default_rng(seed).random((200, 300), np.float32), (0, 0), 6) * 4 - 1.5


ALTERED = {
    "turned": [lambda f: np.rot90(f, 1), lambda f: np.rot90(f, 2), lambda f: np.rot90(f, 3)],
    "inverted": [lambda f: 1 - f],
    "exposure": [lambda f: np.round((0.4 + 0.02 * f) * 255) / 255, lambda f: np.clip(3 * f - 1.8, 0, 1)],
    "cut_off": [lambda f: f[int(0.4 * len(f)) :]],
}


@needs_weights
class TestShipped:
    def test_synthetic_films_pass(self, segment):
        for seed in range(12):
            record = judged(segment, synthetic(seed, (280 + 20 * (seed % 5), 320)))
            assert record.status == OK, record.error

    @pytest.mark.parametrize(("expected", "alter"), [(name, alter) for name, hows in ALTERED.items() for alter in hows])
    def test_what_was_done_to_a_film_is_its_code(self, segment, expected, alter):
        for seed in range(4):
            assert code(judged(segment, alter(synthetic(seed)))) == expected

    def test_half_a_film_is_refused_and_one_without_the_bases_is_told(self, segment):
        for seed in range(4):
            film = synthetic(seed)
            assert code(judged(segment, film[:, : film.shape[1] // 2])) in ("cut_off", "no_chest", "lateral")
            without = judged(segment, film[: int(0.6 * len(film))])
            assert any(text.startswith("cut_off: ") for text in [without.error, *without.warnings])

    def test_a_film_trimmed_close_to_the_lungs_is_judged_with_a_warning(self, segment):
        """A refusal there would follow the disease: films with TB are trimmed so more often than normal ones."""
        warned = 0
        for seed in range(4):
            whole = judged(segment, synthetic(seed))
            rows, columns = np.nonzero(whole.mask)
            inside = synthetic(seed)[rows.min() + 4 : rows.max() - 4, columns.min() + 4 : columns.max() - 4]
            record = judged(segment, inside)
            assert record.status == OK, record.error
            warned += any(text.startswith("cut_off: ") for text in record.extra.get("warnings", ()))
        assert warned >= 2

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
    def test_a_film_of_one_bit_is_badly_exposed(self, segment, tmp_path, suffix):
        for seed in range(3):
            grey = Image.fromarray(np.round(synthetic(seed, (400, 420)) * 255).astype(np.uint8))
            grey.convert("1").save(tmp_path / f"film{suffix}")  # dithered: shrunk for the network, it looks like grey
            (record,) = segment.run([Record(read(tmp_path / f"film{suffix}"))])
            assert code(record) == "exposure"
            assert "2 grey levels, at least 16" in record.error

    @pytest.mark.parametrize(("levels", "status"), [(4, REFUSED), (15, REFUSED), (32, OK)])
    def test_few_grey_levels_are_counted_in_the_film_itself(self, segment, levels, status):
        for seed in range(3):
            record = judged(segment, np.floor(synthetic(seed) * (levels - 0.01)) / (levels - 1))
            assert record.status == status, record.error

    @pytest.mark.parametrize(
        ("quarters", "advice"), [(1, "by 90 degrees clockwise"), (2, "180"), (3, "90 degrees anticlockwise")]
    )
    def test_the_offered_angle_turns_the_film_upright(self, segment, quarters, advice):
        assert advice in judged(segment, np.rot90(synthetic(1, (300, 360)), quarters)).error.split("Turn it")[1]

    def test_what_is_no_chest_is_refused(self, segment):
        pictures = [blurred_noise(1), blurred_noise(2), np.random.default_rng(0).random((128, 160), np.float32)]
        y, x = np.mgrid[:200, :200] / 200
        pictures += [np.sin(40 * x) * np.sin(40 * y) / 2 + 0.5, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1) * 1.0, x]
        for picture in pictures:
            assert code(judged(segment, np.clip(picture, 0, 1))) in ("no_chest", "no_lungs", "exposure", "cut_off")

    def test_without_refusing_the_code_becomes_a_warning(self, segment):
        segment.refuse = False
        try:
            record = judged(segment, 1 - synthetic(2))
            assert record.status == OK
            assert any(text.startswith("inverted: ") for text in record.extra["warnings"])
            nothing = judged(segment, np.tile(np.linspace(0, 1, 200), (200, 1)))
            assert nothing.status == (OK if nothing.lung_box is not None else REFUSED)
        finally:
            segment.refuse = True

    def test_a_batch_is_judged_as_each_film_alone(self, segment):
        films = [synthetic(0), 1 - synthetic(1), np.rot90(synthetic(2), 1), blurred_noise(3)]
        together = segment.run([Record(film(one)) for one in films])
        assert [r.error for r in together] == [judged(segment, one).error for one in films]

    def test_the_quality_file_is_part_of_the_fingerprint(self, tmp_path):
        for name in ("card.json", "model.onnx", QUALITY_FILE):
            (tmp_path / name).write_bytes((SHIPPED / "tb" / "segment" / name).read_bytes())
        before = fingerprint(tmp_path)
        (tmp_path / QUALITY_FILE).unlink()
        assert fingerprint(tmp_path) != before

    @settings(max_examples=25, deadline=None)
    @given(
        st.tuples(st.integers(32, 90), st.integers(32, 90)),
        st.integers(0, 2**32 - 1),
        st.sampled_from(["noise", "flat", "dots"]),
    )
    def test_measures_are_finite_on_any_image(self, segment, size, seed, kind):
        rng = np.random.default_rng(seed)
        pixels = rng.random(size, np.float32)
        if kind == "flat":
            pixels = np.full(size, pixels[0, 0], np.float32)
            pixels[0, 0] = 1 - pixels[0, 0]
        elif kind == "dots":
            pixels = (pixels > 0.98).astype(np.float32)
        (view,) = segment.views([film(pixels)])
        measured = measure(view)
        assert np.isfinite(list(measured.values())).all()
        assert segment.quality.unlike(view, measured) > 0


HEADERS = [
    ({"age_years": 9}, ["child"]),
    ({"age_years": 0.25}, ["child"]),
    ({"age_years": 0}, []),  # 000Y: unknown
    ({"age_years": 15}, []),
    ({"view": "LL"}, ["lateral"]),
    ({"view": "PA"}, []),
    ({}, []),
]


@pytest.mark.parametrize(("meta", "codes"), HEADERS)
def test_what_the_header_tells(meta, codes):
    assert [one.code for one in by_header(film(np.zeros((100, 100)), **meta), 96, 15)] == codes


def test_small_films_and_children_are_a_setting():
    small = film(np.zeros((95, 200)), age_years=3)
    assert [one.code for one in by_header(small, 96, 15)] == ["too_small", "child"]
    assert by_header(small, 90, None) == []
    assert "200x95" in by_header(small, 96, None)[0].reason


@pytest.mark.parametrize("size", [(100, 100), (50, 200), (200, 50), (333, 77), (2000, 2513)])
def test_the_shown_part_of_the_grid_is_the_film(size):
    frame = Frame.letterbox(size, 128)
    grid = frame.to_grid(np.ones(size, np.float32))
    inside = np.zeros((128, 128), bool)
    inside[shown(frame)] = True
    assert np.abs(grid - inside).mean() < 0.02


def lungs_view(rng, lift=0.0):
    """A film with two ellipses of random size for lungs."""
    import cv2

    mask = np.zeros((128, 128), np.uint8)
    for x in (42, 86):
        axes = (int(14 + rng.integers(4)), int(32 + rng.integers(8)))
        cv2.ellipse(mask, (x, 64), axes, 0, 0, 360, 1, cv2.FILLED)
    grey = np.clip(0.8 - 0.5 * mask + rng.normal(0, 0.02, mask.shape) + lift, 0, 1).astype(np.float32)
    return View(grey, grey, mask * np.float32(0.97), mask, np.s_[0:128, 0:128])


def test_a_fit_accepts_its_own_kind_and_no_other():
    rng = np.random.default_rng(0)
    views = [lungs_view(rng) for _ in range(150)]
    measured = [measure(view) for view in views]
    pairs = np.stack([aligned(view) for view in views])
    fitted = fit(pairs, {name: np.array([m[name] for m in measured]) for name in measured[0]})
    quality = Quality(fitted)
    fresh = [lungs_view(rng) for _ in range(50)]
    assert np.mean([quality.unlike(view, measure(view)) > 1 for view in fresh]) <= 0.1
    turned = View(*(np.rot90(part).copy() for part in fresh[0][:4]), fresh[0].shown)
    assert quality.unlike(turned, measure(turned)) > 1
    nothing = fresh[0]._replace(mask=np.zeros((128, 128), np.uint8))
    assert quality.unlike(nothing, measure(nothing)) == np.inf


def test_a_bundle_without_a_fit_judges_everything_and_a_damaged_one_is_named(tmp_path):
    assert Quality.load(tmp_path) is None
    (tmp_path / QUALITY_FILE).write_bytes(b"PK damaged")
    with pytest.raises(WeightsError, match=QUALITY_FILE):
        Quality.load(tmp_path)


def test_films_to_fit_on_are_drawn_evenly_from_the_sources(samples, monkeypatch):
    data = read_manifest(samples)
    monkeypatch.setattr("cxr_pipeline.stages.quality_fit.MOST", 6)
    data.table["source"] = ["many"] * 15 + ["few"] * 3
    assert sorted(_drawn(data).table["source"]) == ["few"] * 3 + ["many"] * 3


class TestUncertain:
    def test_a_score_near_the_threshold_is_said(self):
        (text,) = uncertain(0.31, 0.3, [0.25, 0.38])
        assert text.startswith("uncertain: ")
        assert "0.25" in text
        assert uncertain(0.5, 0.3, [0.25, 0.38]) == uncertain(0.31, 0.3, None) == []
        assert uncertain(0.31, 0.3, [float("nan")] * 2) == []

    def test_the_interval_holds_the_threshold_and_narrows_with_films(self):
        rng = np.random.default_rng(0)

        def width(n):
            positive = np.arange(n) % 2 == 0
            scores = np.clip(rng.normal(0.3 + 0.4 * positive, 0.15), 0, 1)
            low, high = threshold_interval(positive, scores, 0.9, [str(k) for k in range(n)])
            assert 0 <= low < high <= 1
            return high - low

        assert width(1000) < width(60)


@pytest.mark.real
@needs_weights
class TestReal:
    def share(self, segment, paths):
        records = [judged(segment, read(path).pixels) for path in paths]
        return np.mean([record.status == REFUSED for record in records]), records

    @pytest.mark.parametrize(("source", "split"), [("montgomery", "external"), ("shenzhen", "test")])
    def test_frontal_films_pass(self, real_data, segment, source, split):
        data = read_manifest(real_data).select(source=source, split=split)
        share, _ = self.share(segment, [data.path(image) for image in data.table["image"]])
        assert share <= 0.02

    @pytest.mark.parametrize("kind", ["photo", "ct", "lateral"])
    def test_other_pictures_are_refused(self, real_data, segment, kind):
        share, _ = self.share(segment, sorted((real_data / "ood" / kind).iterdir()))
        assert share >= 0.95

    def test_turned_and_inverted_films_are_named(self, real_data, segment):
        data = read_manifest(real_data).select(source="montgomery")
        for image in data.table["image"][::14]:
            pixels = read(data.path(image)).pixels
            assert code(judged(segment, 1 - pixels)) == "inverted"
            for quarters in (1, 2, 3):
                assert code(judged(segment, np.rot90(pixels, quarters))) == "turned"
