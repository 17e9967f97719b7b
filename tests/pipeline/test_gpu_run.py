"""A run on a GPU: refused with a way out where there is none, and with the same answers where there is one."""

from __future__ import annotations

import pytest

from cxr_pipeline import about
from cxr_pipeline.cli import main as cli
from cxr_pipeline.data.synthetic import write_samples
from cxr_pipeline.models.runtimes import RuntimeUnusableError
from cxr_pipeline.results.folder import rows
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.run.spec import ChainSpec
from tests.pipeline.fake_chain import write_film


def test_a_run_without_a_gpu_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    write_film(tmp_path / "a.png")
    code = cli._call(["run", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--runtime", "onnx-cuda"])
    said = capsys.readouterr()
    assert code == 2
    assert "onnxruntime-gpu[cuda,cudnn]" in said.err
    assert "--runtime onnx" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_what_is_installed_for_gpus_runs_on_the_cpu_too(monkeypatch):
    monkeypatch.setattr(about, "_installed", lambda package: "9.9" if package == "onnxruntime-gpu" else None)
    found = about.info()
    assert {name for name, value in found["runtimes"].items() if value == "9.9"} == {
        "onnx",
        "onnx-cuda",
        "onnx-tensorrt",
    }
    assert found["packages"]["onnxruntime-gpu"] == "9.9"
    lines = about.as_text(found).splitlines()
    assert {line.index("9.9") for line in lines if line.endswith("9.9")} == {len("  onnx-tensorrt  ")}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx-cuda", "onnx-tensorrt"])
def test_a_gpu_gives_the_answers_of_the_cpu(runtime, tmp_path):
    """Twenty films in batches of eight and in several threads, as a run judges them."""
    try:
        ChainSpec(runtime=runtime, last_stage="segment").open()
    except RuntimeUnusableError as error:
        pytest.skip(str(error))
    write_samples(tmp_path / "films", 20, size=(512, 480))
    inputs = find_inputs([str(tmp_path / "films" / "images")])
    answers = []
    for name in ("onnx", runtime):
        chain = ChainSpec(runtime=name).open(side_by_side=True)
        out = tmp_path / name
        Runner(chain.stages, out, identity=chain.identity, judges=chain.judges).run(inputs)
        answers.append(rows(out))
    for cpu, gpu in zip(*answers, strict=True):
        for column in ("image", "status", "label", "screen"):
            assert cpu[column] == gpu[column]
        if cpu["status"] == "ok":
            assert float(gpu["tb_score"]) == pytest.approx(float(cpu["tb_score"]), abs=0.2)
            assert float(gpu["lung_fraction"]) == pytest.approx(float(cpu["lung_fraction"]), abs=0.001)
