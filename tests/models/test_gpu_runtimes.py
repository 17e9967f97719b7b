"""ONNX Runtime on a GPU, with a stand-in for its module: what is asked of it, and what is refused."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.models.late import late_networks
from cxr_pipeline.models.runtimes import RUNTIMES, RuntimeUnusableError
from cxr_pipeline.models.store import SERVING_FILE, WeightsError, open_network

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU_RUNTIMES = {"onnx-cuda": [CUDA], "onnx-tensorrt": [TENSORRT, CUDA]}


class OnnxRuntime:
    """The parts of the module `onnxruntime` that we use.

    `available`: providers that it was built with; `starting`: those of them that start; `raises`: what it raises where
    one of a GPU is asked for; `damaged`: what it raises for any.
    """

    __version__ = "1.31.1"
    cuda_version = "13.0"

    def __init__(self, folder, available=(TENSORRT, CUDA, CPU), starting=(TENSORRT, CUDA), raises=None, damaged=None):
        self.__file__ = str(folder / "onnxruntime" / "__init__.py")
        self.available, self.starting, self.raises, self.damaged = available, starting, raises, damaged
        self.asked, self.batches, self.severities, self.forbidden = [], [], [], []

    def get_available_providers(self):
        return list(self.available)

    def preload_dlls(self):
        print("Failed to load libcublas.so.13")  # as it does, on stdout

    def set_default_logger_severity(self, severity):
        self.severities.append(severity)

    def SessionOptions(self):
        return SimpleNamespace(add_session_config_entry=lambda name, value: None)

    def InferenceSession(self, path, options, providers, enable_fallback=1):
        names = [one if isinstance(one, str) else one[0] for one in providers]
        self.asked.append({"providers": providers, "options": options, "enable_fallback": enable_fallback})
        if self.damaged is not None:
            raise self.damaged
        if self.raises is not None and names != [CPU]:
            raise self.raises

        def run(wanted, feed):
            self.batches.append(feed["film"])
            return [feed["film"] + n for n, _ in enumerate(wanted)]

        return SimpleNamespace(
            get_providers=lambda: [name for name in names if name in self.starting or name == CPU],
            get_inputs=lambda: [SimpleNamespace(name="film")],
            get_outputs=lambda: [SimpleNamespace(name="logits"), SimpleNamespace(name="maps")],
            run=run,
            disable_fallback=lambda: self.forbidden.append(path),
        )


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / SERVING_FILE).write_bytes(b"graph")
    return tmp_path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that puts an `OnnxRuntime` into the place of the module."""

    def put(**how):
        module = OnnxRuntime(tmp_path, **how)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        return module

    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # so that it is afterwards as it was before
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    return put


@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_a_gpu_comes_first_and_the_cpu_last_and_none_in_secret(runtime, stand_in, bundle, capsys):
    module = stand_in()
    open_network(bundle, runtime, threads=3)
    (asked,) = module.asked
    assert [name for name, _ in asked["providers"]] == [*GPU_RUNTIMES[runtime], CPU]
    assert asked["enable_fallback"] == 0
    assert module.forbidden == [str(bundle / SERVING_FILE)], "in the midst of a run, too"
    assert asked["options"].intra_op_num_threads == 3
    assert capsys.readouterr().out == "", "stdout is for results"
    assert module.severities[-1] == 3, "its log is as before"


def test_scores_stay_as_on_the_cpu_in_float32(stand_in, bundle):
    module = stand_in()
    open_network(bundle, "onnx-cuda")
    open_network(bundle, "onnx-tensorrt")
    options = [dict(one["providers"]) for one in module.asked]
    assert all(one[CUDA]["use_tf32"] == "0" for one in options)
    tensorrt = options[1][TENSORRT]
    assert {tensorrt["trt_fp16_enable"], tensorrt["trt_int8_enable"], tensorrt["trt_engine_cache_enable"]} == {"0"}
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_a_batch_goes_through_whole(runtime, stand_in, bundle):
    module = stand_in()
    network = open_network(bundle, runtime)
    batch = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    answer = network(batch)
    assert [len(one) for one in module.batches] == [5]
    np.testing.assert_array_equal(answer["logits"], batch)
    np.testing.assert_array_equal(answer["maps"], batch + 1)
    assert len(network(batch[:2])["maps"]) == 2


@pytest.mark.parametrize("runtime", GPU_RUNTIMES)
def test_an_onnx_runtime_for_cpus_is_refused(runtime, stand_in, bundle):
    module = stand_in(available=("AzureExecutionProvider", CPU))
    with pytest.raises(RuntimeUnusableError) as caught:
        open_network(bundle, runtime)
    said = str(caught.value)
    for part in (f"--runtime {runtime}", CUDA, "1.31.1 with AzureExecutionProvider, CPUExecutionProvider", "pip "):
        assert part in said
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in said, "both may lie there, one over the other"
    assert said.endswith("--runtime onnx")
    assert not module.asked, "nothing was opened"
    assert issubclass(RuntimeUnusableError, CxrError)


@pytest.mark.parametrize(
    ("runtime", "starting", "stopped"),
    [
        ("onnx-cuda", (), "CUDAExecutionProvider did not start"),
        ("onnx-tensorrt", (), "TensorrtExecutionProvider and CUDAExecutionProvider did not start"),
        ("onnx-tensorrt", (CUDA,), "TensorrtExecutionProvider did not start"),
        ("onnx-tensorrt", (TENSORRT,), "CUDAExecutionProvider did not start"),
    ],
)
def test_a_provider_that_did_not_start_is_refused_and_the_cpu_takes_no_place(
    runtime, starting, stopped, stand_in, bundle
):
    stand_in(starting=starting)
    with pytest.raises(RuntimeUnusableError) as caught:
        open_network(bundle, runtime)
    said = str(caught.value)
    assert f"--runtime {runtime}: {stopped} (" in said
    assert "libonnxruntime_providers" in said or "onnxruntime_providers" in said, "which library does not load"
    for part in ("1.31.1", "driver", "CUDA (13.0)", "onnxruntime-gpu[cuda,cudnn]", "--runtime onnx"):
        assert part in said
    assert ("TensorRT 10" in said) == (runtime == "onnx-tensorrt")


def test_what_a_driver_says_is_passed_on_without_the_code_around_it(stand_in, bundle, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.models.runtimes.onnx_cuda.ctypes.CDLL", lambda path: None)
    stand_in(
        raises=RuntimeError(
            "/x/cuda_call.cc:154 [with ERRTYPE = cudaError]\n CUDA failure 35: CUDA driver version is insufficient for "
            "CUDA runtime version ; GPU=-1 ; hostname=reading-room"
        )
    )
    with pytest.raises(RuntimeUnusableError, match=r"\(CUDA failure 35: CUDA driver version .* runtime version\)"):
        open_network(bundle, "onnx-cuda")
    stand_in(raises=RuntimeError("no room"))
    with pytest.raises(RuntimeUnusableError, match=r"did not start \(no room\)"):
        open_network(bundle, "onnx-cuda")


def test_a_damaged_file_is_no_fault_of_the_gpu(stand_in, bundle):
    stand_in(damaged=ValueError("no graph"))
    with pytest.raises(WeightsError, match="Is the file whole"):
        open_network(bundle, "onnx-cuda")


def test_a_network_that_opens_late_refuses_before_films_are_judged(stand_in, bundle):
    stand_in(starting=())
    with late_networks() as networks:
        open_network(bundle, "onnx-cuda")
    with pytest.raises(RuntimeUnusableError):
        networks.wait()


def test_without_any_onnx_runtime_the_one_for_gpus_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightsError, match="pip install 'onnxruntime-gpu'"):
        open_network(bundle, "onnx-cuda")
    with pytest.raises(WeightsError, match="pip install 'onnxruntime'"):
        open_network(bundle, "onnx")


@pytest.mark.parametrize("runtime", ["onnx", *GPU_RUNTIMES])
def test_what_is_left_of_two_packages_in_one_folder_is_told_from_a_damaged_network(runtime, bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(RuntimeUnusableError, match="only a part is here.*pip uninstall -y onnxruntime onnxruntime-gpu"):
        open_network(bundle, runtime)


def test_which_runtimes_use_a_gpu():
    assert [name for name, one in RUNTIMES.items() if one.gpu] == ["onnx-cuda", "onnx-tensorrt", "keras"]
    assert all(RUNTIMES[name].shared for name in GPU_RUNTIMES)
