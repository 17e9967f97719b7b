"""`pipeline compare`: what runs left comes together, and differences are tested on the films in common."""

from __future__ import annotations

import csv
import json
import shutil

import cv2
import numpy as np
import pytest

from cxr_pipeline.cli.main import _call
from cxr_pipeline.compare.compare import CompareError, best_epoch, compare
from cxr_pipeline.compare.report import as_text, write
from cxr_pipeline.models.figures.metrics import auroc
from cxr_pipeline.models.figures.significance import delong, mcnemar
from cxr_pipeline.models.store import SHIPPED, read_card, shipped
from cxr_pipeline.train.evaluation import evaluate


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def make_evaluation(folder, films, positive="TB", **more):
    """An evaluation folder as `pipeline evaluate` leaves it, with these rows of films.csv."""
    folder.mkdir(parents=True)
    metrics = {"stage": "classify", "split": "test", "source": "all", "n_judged": len(films), "positive": positive}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"classes": ["TB", "NORM"], "threshold": 0.5} | more))
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(films[0]))
        writer.writeheader()
        writer.writerows(films)
    return folder


def make_films(seed, images=range(30), flip=()):
    draw = np.random.default_rng(seed)
    films = []
    for image in images:
        label = ("TB", "NORM")[(image + (image in flip)) % 2]
        p = float(np.clip(draw.normal(0.6 if label == "TB" else 0.4, 0.2), 0, 1))
        guess = "TB" if p >= 0.5 else "NORM"
        row = {"image": f"{image}.png", "label": label, "status": "ok", "p_TB": p, "p_NORM": 1 - p}
        films.append(row | {"predicted": guess})
    return films


@pytest.fixture(scope="module")
def judged(tiny_chain, samples, tmp_path_factory):
    """A copy of the chain, with an evaluation on all samples, since its test split is of very few."""
    copy = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(tiny_chain, copy)
    evaluate("classify", samples, copy / "classify" / "evaluation" / "all", split=None, weights=str(copy))
    return copy


@pytest.fixture(scope="module")
def with_itself(judged):
    return compare([judged, judged], split="all")


def test_a_chain_against_itself_has_the_same_figures(with_itself):
    one, two = ({k: v for k, v in row.items() if k != "ms_per_image"} for row in with_itself.rows)
    assert one == two
    (pair,) = with_itself.pairs
    assert pair["p_delong"] == pair["p_mcnemar"] == 1
    assert [run.name for run in with_itself.runs] == ["copy", "copy (2)"]
    assert with_itself.notes == []
    assert all(row["ms_per_image"] > 0 for row in with_itself.rows)


def test_the_figures_are_those_that_the_training_left(with_itself, judged):
    row = with_itself.rows[0]
    folder = judged / "classify"
    metrics = json.loads((folder / "evaluation" / "all" / "metrics.json").read_text())
    assert [row[key] for key in ("auroc", "auroc_low", "auroc_high")] == [
        metrics["auc_tb"]["value"],
        *metrics["auc_tb"]["ci95"],
    ]
    assert row["accuracy"] == metrics["accuracy"]["value"]
    assert row["recall_positive"] == metrics["per_class"]["TB"]["recall"]
    counted = [values for values in metrics["per_class"].values() if values["support"]]
    assert row["f1_macro"] == pytest.approx(np.mean([values["f1"] for values in counted]))
    history = rows_of(folder / "history.csv")
    assert row["epochs"] == len(history) == 3
    assert row["val_loss"] == pytest.approx(min(float(epoch["val_loss"]) for epoch in history))
    assert row["serving_mb"] == (folder / "model.onnx").stat().st_size / 1e6
    (pair,) = with_itself.pairs
    assert pair["n"] == row["n"] == metrics["n_judged"]
    films = [film for film in rows_of(folder / "evaluation" / "all" / "films.csv") if film["status"] == "ok"]
    area = auroc([film["label"] == "TB" for film in films], [float(film["p_TB"]) for film in films])
    assert pair["auroc_first"] == pair["auroc_second"] == pytest.approx(area)
    assert pair["accuracy_first"] == pytest.approx(row["accuracy"], abs=1e-5)


def test_parameters_are_those_that_keras_counts(with_itself, tiny_chain):
    from cxr_pipeline.models.backend import keras

    model = keras().saving.load_model(tiny_chain / "classify" / "model.keras", compile=False)
    assert with_itself.rows[0]["parameters"] == model.count_params()


def test_all_files_are_written(with_itself, tmp_path):
    write(with_itself, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"compare.csv", "compare.md", "compare.png", "pairs.csv"}
    assert as_text(with_itself) in (tmp_path / "compare.md").read_text()
    assert [row["run"] for row in rows_of(tmp_path / "compare.csv")] == [row["run"] for row in with_itself.rows]
    assert rows_of(tmp_path / "pairs.csv")[0]["p_delong"] == "1"
    assert cv2.imread(str(tmp_path / "compare.png")).min() < 255


def test_the_command_takes_a_stage_and_an_evaluation(judged, tmp_path, capsys):
    evaluation = judged / "classify" / "evaluation" / "all"
    out = ["--split", "all", "--out", str(tmp_path / "out")]
    assert _call(["compare", str(judged / "classify"), str(evaluation), *out]) == 0
    printed = capsys.readouterr().out
    assert "p (DeLong)" in printed
    table = rows_of(tmp_path / "out" / "compare.csv")
    assert table[1]["parameters"] == table[1]["val_loss"] == ""
    assert table[0]["auroc"] == table[1]["auroc"] != ""


@pytest.mark.skipif(not shipped(), reason="no weights are shipped")
def test_shipped_weights_go_by_name(tiny_chain):
    comparison = compare([shipped()[0], tiny_chain])
    assert [run.name for run in comparison.runs] == [f"{shipped()[0]} (shipped)", tiny_chain.name]
    assert comparison.rows[0]["parameters"] > 0
    assert comparison.rows[0]["val_loss"] is None


def test_segment_runs_show_their_own_figures(tiny_chain):
    comparison = compare([tiny_chain / "segment", tiny_chain / "segment"])
    assert {"dice", "iou", "val_dice", "parameters"} <= set(comparison.rows[0])
    assert comparison.pairs == []
    assert [run.name for run in comparison.runs] == ["segment", "segment (2)"]


def test_pairs_are_tested_on_the_films_in_common(tmp_path):
    first, second = make_films(1, range(30)), make_films(2, range(10, 40))
    second[3]["status"] = "failed"
    a, b = make_evaluation(tmp_path / "a", first), make_evaluation(tmp_path / "b", second)
    (pair,) = compare([a, b]).pairs
    chosen = [n for n in range(10, 30) if n != 13]
    one, two = ({film["image"]: film for film in films} for films in (first, second))
    one, two = ([films[f"{n}.png"] for n in chosen] for films in (one, two))
    y = np.array([film["label"] == "TB" for film in one])
    expected = delong(y, *(np.array([film["p_TB"] for film in films]) for films in (one, two)))
    right = mcnemar(*([film["label"] == film["predicted"] for film in films] for films in (one, two)))
    assert pair["n"] == 19
    assert pair["p_delong"] == pytest.approx(expected.p)
    assert pair["p_mcnemar"] == pytest.approx(right.p)
    assert 0 < pair["p_delong"] < 1


@pytest.mark.parametrize(("count", "pairs"), [(2, 1), (4, 6), (5, 4)])
def test_of_many_runs_each_is_tested_against_the_first(tmp_path, count, pairs):
    comparison = compare([make_evaluation(tmp_path / str(n), make_films(n)) for n in range(count)])
    assert len(comparison.pairs) == pairs
    if count > 4:
        assert {pair["first"] for pair in comparison.pairs} == {"0"}


def several_labels(seed):
    """Rows of films.csv where a film may have several labels; of two films nobody knows whether they have TB."""
    rows = []
    for number, film in enumerate(make_films(seed)):
        row = {k: v for k, v in film.items() if k not in ("label", "predicted")}
        is_tb = film["label"] == "TB"
        rows.append(row | {"true_TB": "" if number < 2 else int(is_tb), "true_NORM": int(not is_tb)})
    return rows


def test_evaluations_of_several_labels_a_film(tmp_path):
    """As `stages.label_figures` makes them."""

    def figure(value):
        return {"value": value, "ci95": [value - 0.1, value + 0.1], "n": 30}

    tb = {"precision": figure(0.8), "sensitivity": figure(0.7), "f1": figure(0.75), "threshold": 0.5, "support": 15}
    norm = {"precision": figure(0.6), "sensitivity": figure(0.5), "f1": figure(0.55), "threshold": 0.4, "support": 15}
    never = {"precision": figure(0.1), "sensitivity": figure(0.1), "f1": figure(0.1), "support": 0}
    more = {"positive": None, "multi_label": True, "threshold": None, "auc": figure(0.77)}
    more["per_class"] = {"TB": tb, "NORM": norm, "never": never}
    a = make_evaluation(tmp_path / "a", several_labels(1), **more)
    b = make_evaluation(tmp_path / "b", several_labels(2), **more)
    c = make_evaluation(tmp_path / "c", make_films(2))
    comparison = compare([a, b, c])
    row = comparison.rows[0]
    assert (row["auroc"], row["auroc_low"]) == (0.77, pytest.approx(0.67))
    assert (row["precision_macro"], row["recall_macro"]) == (pytest.approx(0.7), pytest.approx(0.6))
    assert row["positive"] is row["f1_positive"] is None
    assert any("of a may have several labels" in note for note in comparison.notes)

    pairs = {(pair["first"], pair["second"], pair["class"]): pair for pair in comparison.pairs}
    assert list(pairs) == [("a", "b", "TB"), ("a", "b", "NORM"), ("a", "c", "TB"), ("b", "c", "TB")]
    both, mixed = pairs["a", "b", "TB"], pairs["a", "c", "TB"]
    assert both["n"] == mixed["n"] == 28
    assert both["p_delong"] == mixed["p_delong"]
    assert both["accuracy_second"] == pytest.approx(np.mean([f["label"] == f["predicted"] for f in make_films(2)[2:]]))
    normal = pairs["a", "b", "NORM"]
    assert normal["n"] == 30
    right = [(film["p_NORM"] >= 0.4) == (film["label"] == "NORM") for film in make_films(2)]
    assert normal["accuracy_second"] == pytest.approx(np.mean(right))
    assert "p_mcnemar" not in mixed  # "right" means another thing in each
    (line,) = (line for line in as_text(comparison).splitlines() if "a against c" in line)
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["-, -", "-"]


def test_what_cannot_be_tested_is_noted(tmp_path):
    a = make_evaluation(tmp_path / "a", make_films(1), split_hash="1")
    apart = make_evaluation(tmp_path / "apart", make_films(1, range(50, 60)), split_hash="2")
    other = make_evaluation(tmp_path / "other", make_films(1), positive="NORM", split_hash="1")
    comparison = compare([a, apart, other])
    assert comparison.pairs == []
    notes = "\n".join(comparison.notes)
    assert "judged on different films" in notes
    assert "no film in common" in notes
    assert "no positive class in common (TB and NORM)" in notes


def test_shipped_weights_have_the_figures_of_their_card(tiny_chain):
    comparison = compare(["tb", tiny_chain])
    shipped, own = comparison.rows
    assert shipped["n"] == read_card(SHIPPED / "tb" / "classify")["figures"]["test"]["n"]
    assert shipped["auroc_low"] < shipped["auroc"] < shipped["auroc_high"]
    assert own["auroc"] is not None
    assert comparison.pairs == []
    assert any("those of its card" in note for note in comparison.notes)


def test_a_run_without_an_evaluation_has_blank_figures(tiny_chain):
    comparison = compare([tiny_chain, tiny_chain], split="nowhere")
    assert "no evaluation of the split 'nowhere'" in comparison.notes[0]
    assert str(tiny_chain) in comparison.notes[0]
    assert "auroc" not in comparison.rows[0]
    assert comparison.rows[0]["val_loss"] > 0


def test_the_best_epoch_is_that_of_the_last_phase_or_the_start():
    rows = [("start", 0.5), ("head", 0.1), ("fine", 0.6), ("fine", 0.4), ("fine", float("nan"))]
    history = [{"epoch": n, "phase": phase, "val_loss": loss} for n, (phase, loss) in enumerate(rows)]
    assert best_epoch(history, "classify")["epoch"] == 3
    assert best_epoch(history[:3], "classify")["epoch"] == 0


def test_errors_name_the_folder_and_what_is_missing(tiny_chain, tmp_path, capsys):
    assert _call(["compare", str(tiny_chain)]) == 2
    assert "two runs or more. Received: 1" in capsys.readouterr().err
    assert _call(["compare", str(tiny_chain), str(tmp_path)]) == 2
    assert f"Error: {tmp_path} is not a run: it has no classify/card.json" in capsys.readouterr().err
    with pytest.raises(CompareError, match=r"runs of one stage.*segment.*classify"):
        compare([tiny_chain / "segment", tiny_chain])

    a = make_evaluation(tmp_path / "a", make_films(1))
    b = make_evaluation(tmp_path / "b", make_films(1, flip=(4, 7)))
    with pytest.raises(CompareError, match=r"disagree about the truth of 2 film.*4\.png: 'TB' and 'NORM'"):
        compare([a, b])
    thin = [{k: v for k, v in film.items() if k != "predicted"} for film in make_films(1)]
    with pytest.raises(CompareError, match=r"films\.csv lacks the column\(s\) predicted"):
        compare([a, make_evaluation(tmp_path / "thin", thin)])
    (b / "films.csv").unlink()
    with pytest.raises(CompareError, match=r"b has metrics\.json but no films\.csv"):
        compare([a, b])
    (b / "metrics.json").write_text("{")
    with pytest.raises(CompareError, match=r"b.metrics\.json cannot be read"):
        compare([a, b])
    (tmp_path / "half" / "segment").mkdir(parents=True)
    (tmp_path / "half" / "segment" / "card.json").write_text("{}")
    with pytest.raises(CompareError, match=r"half is not a run.*such as .*half.segment"):
        compare([a, tmp_path / "half"])


@pytest.mark.parametrize("stage", ["classify", "segment"])
def test_runs_judged_on_other_films_are_refused(tmp_path, stage):
    a = make_evaluation(tmp_path / "a", make_films(1), stage=stage)
    apart = make_evaluation(tmp_path / "apart", make_films(1, range(50, 60)), stage=stage)
    with pytest.raises(CompareError, match=rf"different films.*a: 30 film.*apart: 10 film.*50\.png.*--stage {stage}"):
        compare([a, apart])


def test_figures_of_segmentations_on_other_films_promise_no_paired_test(tmp_path):
    a = make_evaluation(tmp_path / "a", make_films(1), stage="segment", split_hash="1")
    b = make_evaluation(tmp_path / "b", make_films(1, range(20)), stage="segment", split_hash="2")
    assert compare([a, b]).notes == ["The runs were judged on different films: their figures do not compare."]


def test_runs_about_different_classes_are_refused(tmp_path):
    a = make_evaluation(tmp_path / "a", make_films(1), split_hash="1")
    other = make_evaluation(tmp_path / "other", make_films(1), positive="NORM", split_hash="1")
    with pytest.raises(CompareError, match=r"different questions.*TB.*NORM"):
        compare([a, other])
