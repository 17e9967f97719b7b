"""The command as a person or a program calls it: exit codes, messages, files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_pipeline import stages
from cxr_pipeline.about import EXIT_CODES
from cxr_pipeline.cli import commands
from cxr_pipeline.cli import main as cli
from cxr_pipeline.models.store import RUNTIMES
from cxr_pipeline.results.folder import rows, run_info
from tests.pipeline import fake_chain
from tests.pipeline.fake_chain import tree

pytestmark = pytest.mark.usefixtures("kept_decoders")

ROOT = Path(__file__).parents[2]


def call(*arguments):
    return cli._call([str(one) for one in arguments])


def test_stage_names_are_those_of_the_stages():
    assert stages.names() == cli.STAGES
    assert {commands.DONE, commands.SOME_FAILED, commands.WRONG, commands.INTERRUPTED} == set(EXIT_CODES)


def test_all_done_is_0_and_says_where_and_what_for(films, tmp_path, weights, capsys):
    assert call("run", films, "--out", tmp_path / "out", "--weights", weights, "--site", "none") == 0
    message = capsys.readouterr().out
    assert "3 films: " in message
    assert "0 refused, 0 failed." in message
    assert str(tmp_path / "out" / "results.csv") in message
    assert "Not a medical device" in message
    info = run_info(tmp_path / "out")
    assert info["weights"] == str(weights)
    assert set(info["hashes"]) == set(info["config"]) == {"segment", "classify", "localize"}
    assert len(info["hashes"]["segment"]["card.json"]) == 64
    assert info["config"]["segment"]["threshold"] == 0.4
    assert info["arguments"]["inputs"] == [str(films)]
    assert info["arguments"]["site"] is None
    assert {"python", "numpy", "onnxruntime"} <= set(info["versions"])


def test_some_failed_is_1_and_names_them(films, tmp_path, weights, capsys):
    (films / "cut.png").write_bytes((films / "f0.png").read_bytes()[:300])
    assert call("run", films, "--out", tmp_path / "out", "--weights", weights) == 1
    assert "cut.png" in capsys.readouterr().out
    assert call("run", films, "--out", tmp_path / "out", "--weights", weights) == 1  # it is not mended by asking again


def test_files_that_are_no_films_are_counted_aloud(films, tmp_path, weights, capsys):
    assert call("run", films, "--out", tmp_path / "out", "--weights", weights) == 0
    assert "Left out" not in capsys.readouterr().err
    for name in ("a.md", "b.txt"):
        (films / name).write_text("no film")
    assert call("run", films, "--out", tmp_path / "out", "--weights", weights) == 0
    assert re.search(r"Left out.* 2 file\(s\), such as .*a\.md", capsys.readouterr().err)


def test_an_interrupted_call_goes_on_with_an_equal_result(films, tmp_path, weights, monkeypatch, capsys):
    arguments = ["run", films, "--out", tmp_path / "out", "--weights", weights, "--batch-size", "1"]
    judge = fake_chain.FakeLocalize.judge

    def interrupted(self, record):
        if record.radiograph.id == "f2":
            raise KeyboardInterrupt
        judge(self, record)

    monkeypatch.setattr(fake_chain.FakeLocalize, "judge", interrupted)
    assert call(*arguments) == 130
    assert "goes on" in capsys.readouterr().err
    assert len(list(rows(tmp_path / "out"))) == 2
    monkeypatch.setattr(fake_chain.FakeLocalize, "judge", judge)
    assert call(*arguments) == 0
    assert "2 of them were done already" in capsys.readouterr().out
    arguments[3] = tmp_path / "fresh"
    assert call(*arguments) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_stage_by_stage_in_one_folder(films, tmp_path, weights):
    asked = ("--weights", weights, "--outputs", "all")
    for last_stage, folders in (("segment", 4), ("classify", 4), ("localize", 4)):
        assert call("run", films, "--out", tmp_path / "out", *asked, "--stage", last_stage) == 0
        assert len([path for path in (tmp_path / "out").iterdir() if path.is_dir()]) == folders
    assert call("run", films, "--out", tmp_path / "whole", "--weights", weights) == 0
    assert list(rows(tmp_path / "out")) == list(rows(tmp_path / "whole"))


def test_outputs_and_modes_are_those_asked_for(films, tmp_path, weights, capsys):
    out, given = tmp_path / "out", ("--weights", weights)
    assert call("run", films, "--out", out, *given, "--outputs", "masks,crops", "--mode", "640") == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"masks", "crops"}
    assert (out / "results.csv").stat().st_mode & 0o777 == 0o640
    assert call("run", films, "--out", out, *given, "--native-heatmaps", "--verify") == 0
    assert (out / "heatmaps").is_dir()
    capsys.readouterr()
    assert call("run", films, "--out", out, *given, "--outputs", "mask") == 2
    assert "no output is called 'mask'" in capsys.readouterr().err
    assert call("run", films, "--out", out, *given, "--mode", "777") == 2
    assert "600, 640 or 644" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--out", "OUT"], "Missing argument"),
        (["run", "FILMS"], "Missing option '--out'"),
        (["run", "FILMS", "--out", "OUT", "--nonsense"], "No such option"),
        (["run", "nowhere", "--out", "OUT"], "'nowhere' does not exist"),
        (["run", "FILMS", "--out", "OUT", "--stage", "lungs"], "segment"),
        (["run", "FILMS", "--out", "OUT", "--workers", "0"], "--workers"),
        (["run", "FILMS", "--out", "OUT", "--weights", "nonsense"], "no weights 'nonsense'"),
        (["run", "FILMS", "--out", "OUT", "--config", "nonsense.yaml"], "no config 'nonsense.yaml'"),
        (["run", "FILMS", "--out", "FILMS/f0.png"], "is a file"),
        (["run", "EMPTY", "--out", "OUT"], "no films in"),
        (["run", "FILMS", "--out", "FILMS"], "both the input and --out"),
        (["evaluate", "--data", "FILMS", "--out", "OUT"], "Missing option '--stage'"),
        (["evaluate", "--stage", "segment", "--data", "nowhere", "--out", "OUT"], "does not exist"),
        (["train", "--data", "FILMS", "--out", "OUT", "--set", "seed=x"], "seed"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_wrong_call_is_2_with_one_clear_message(arguments, message, films, tmp_path, capsys, monkeypatch, request):
    if "nonsense" not in arguments:
        request.getfixturevalue("weights")
    (tmp_path / "empty").mkdir()
    names = {"FILMS": films, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    given = arguments[0] != "run" or "--weights" in arguments
    weighted = [] if given else ["--weights", tmp_path / "weights"]
    arguments = [re.sub("FILMS|OUT|EMPTY", lambda m: str(names[m[0]]), one) for one in arguments]
    assert call(*arguments[:1], *weighted, *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_no_refuse_goes_on_with_a_warning_and_is_no_part_of_another_run(films, tmp_path, weights, capsys):
    odd = np.full((72, 96), 200, np.uint8)
    odd[30:36, 40:46] = 20  # a lung that is too small
    (films / "odd.png").write_bytes(cv2.imencode(".png", odd)[1].tobytes())
    assert call("run", films, "--out", tmp_path / "strict", "--weights", weights) == 1
    strict = {row["image"].split("/")[-1]: row for row in rows(tmp_path / "strict")}
    assert (strict["odd.png"]["status"], strict["odd.png"]["error"][:8]) == ("refused", "no_lungs")
    out = tmp_path / "all"
    for stage in ("segment", "localize"):  # the warning stays where a later stage goes on from the masks
        assert call("run", films, "--out", out, "--weights", weights, "--no-refuse", "--stage", stage) == 0
        row = {row["image"].split("/")[-1]: row for row in rows(out)}["odd.png"]
        assert row["status"] == "ok"
        assert row["warnings"].startswith("no_lungs")
    assert row["tb_score"]
    assert run_info(out)["arguments"]["no_refuse"] is True
    capsys.readouterr()
    assert call("run", films, "--out", out, "--weights", weights) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_results_of_other_weights_are_refused_with_the_choices(films, tmp_path, weights, capsys):
    arguments = ["run", films, "--out", tmp_path / "out", "--weights", weights]
    config = tmp_path / "c.yaml"
    config.write_text("segment: {threshold: 0.35}\n")
    assert call(*arguments) == 0
    before = tree(tmp_path / "out")
    capsys.readouterr()
    assert call(*arguments, "--config", config) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error
    assert "--out" in error
    assert tree(tmp_path / "out") == before
    assert call(*arguments, "--config", config, "--overwrite") == 0
    assert run_info(tmp_path / "out")["config"]["segment"]["threshold"] == 0.35
    assert "segment threshold 0.35" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("segment: {threshold: 0.4}", {}),  # what the weights decide already
        ("localize: {threshold: 0.3}", {}),  # what they were trained with, before the fit made it 0.5
        ("segment: {fit: {epochs: 3}, size: 512}\nseed: 7", {}),  # concerns training
        ("classes: [TB, NTB, NORM]", {}),
        ("localize: {threshold: 0.7, max_regions: 2}", {"localize": {"threshold": 0.7, "max_regions": 2}}),
    ],
)
def test_a_config_changes_what_it_names_and_a_run_obeys(text, changed, films, tmp_path, weights):
    from cxr_pipeline.run.spec import ChainSpec

    (tmp_path / "c.yaml").write_text(text)
    plain, chain = (
        ChainSpec(str(weights)).open(),
        ChainSpec(str(weights), config=tmp_path / "c.yaml").open(),
    )
    assert chain.settings == changed
    assert (chain.identity.stages == plain.identity.stages) == (not changed)
    if changed:
        assert (chain.stages[2].threshold, chain.stages[2].max_regions) == (0.7, 2)
        assert chain.identity.stages["segment"] == plain.identity.stages["segment"]


def test_a_config_of_other_classes_is_refused(films, tmp_path, weights, capsys):
    (tmp_path / "c.yaml").write_text("classes: [A, B]\npositive: A\nnormal: B\n")
    assert call("run", films, "--out", tmp_path / "out", "--weights", weights, "--config", tmp_path / "c.yaml") == 2
    assert "the weights ['TB', 'NTB', 'NORM']" in capsys.readouterr().err


@pytest.mark.parametrize(("debug", "traceback"), [([], False), (["--debug"], True)])
def test_a_bug_is_one_line_unless_asked_for_more(films, tmp_path, weights, monkeypatch, capsys, debug, traceback):
    def broken(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(stages, "load_chain", broken)
    monkeypatch.setattr(commands, "_debug", False)
    assert call("run", films, "--out", tmp_path / "out", "--weights", weights, *debug) == 2
    error = capsys.readouterr().err
    assert "unexpected KeyError: 'x'. Run again with --debug" in error
    assert ("Traceback" in error) == traceback


def test_errors_of_our_own_are_meant_for_the_user():
    """Every error class derives from CxrError, whose text is shown as it is; the web API's answers by HTTP."""
    alone = set()
    for folder in ("pipeline", "stages", "models", "data", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, bases in re.findall(
                r"^class (\w+Error)\((.*)\):", path.read_text(encoding="utf-8"), re.MULTILINE
            ):
                if not re.search(r"\w+Error\b", bases) or "CxrError" not in bases:
                    alone.add(name)
    assert alone == {"ApiError", "CxrError"}


def test_info_for_programs_and_people(capsys, tmp_path, monkeypatch):
    import cxr_pipeline.models.store

    shipped = tmp_path / "shipped"
    (shipped / "tb" / "segment").mkdir(parents=True)
    figure = {"value": 0.95, "ci95": [0.94, 0.96], "n": 9}
    card = {"decisions": {"size": 256}, "figures": {"test": {"n": 9, "dice": figure, "constant_guess": 3}}}
    (shipped / "tb" / "segment" / "card.json").write_text(json.dumps(card))
    monkeypatch.setattr(cxr_pipeline.models.store, "SHIPPED", shipped)
    monkeypatch.setattr("cxr_pipeline.models.store.SHIPPED", shipped)
    assert call("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["weights"][0]["stages"]["segment"]["figures"] == {"test": {"dice": figure}}
    assert set(facts["runtimes"]) == set(RUNTIMES)
    assert "tb" in facts["presets"]
    assert facts["settings"]["segment.fit.epochs"]["default"] >= 1
    assert call("info") == 0
    message = capsys.readouterr().out
    assert "dice 0.950 (0.940 to 0.960)" in message
    assert "Not a medical device" in message


def test_what_a_folder_holds_and_the_run_leaves_out_is_listed(films, tmp_path, weights, capsys):
    (films / "notes\x1b[31m.txt").write_text("no film")
    (films / "more.zip").write_bytes(b"PK\x03\x04" + bytes(40))
    (films / "=cmd.txt").write_text("no film")
    (films / ".hidden").touch()
    (films / "z.png").write_bytes((films / "f0.png").read_bytes())
    out = tmp_path / "out"
    assert call("run", films, "--out", out, "--weights", weights) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "unpack them" in printed.err
    assert "left_out.csv" in printed.err
    assert f"1 film(s) are the same file as another, see `warnings`: such as {films / 'z.png'}" in printed.err
    with open(out / "left_out.csv", newline="") as file:
        table = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert table == {
        ".hidden": "hidden",
        "=cmd.txt": "no_image",
        "more.zip": "archive",
        "notes\\x1b[31m.txt": "no_image",
    }
    about = run_info(out)
    assert {reason: part["count"] for reason, part in about["left_out"].items()} == {
        "hidden": 1,
        "no_image": 2,
        "archive": 1,
    }
    assert about["left_out"]["archive"]["files"] == [str(films / "more.zip")]
    assert about["same_files"] == 1
    warned = {row["id"]: row["warnings"] for row in rows(out) if row["warnings"]}
    assert warned == {"z": f"same file as {films / 'f0.png'}"}
    for name in ("notes\x1b[31m.txt", "more.zip", "=cmd.txt", ".hidden"):
        (films / name).unlink()
    assert call("run", films, "--out", out, "--weights", weights) == 0
    assert not (out / "left_out.csv").exists()
