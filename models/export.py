"""From a trained Keras model to the files of a bundle: Keras and ONNX, weights stored as float16."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.data.files import whole_file, write_bytes
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.runtimes import KERAS_FILE, SERVING_FILE
from cxr_pipeline.models.serving import serving_model
from cxr_pipeline.models.training.errors import full_disk_named, require_room

if TYPE_CHECKING:
    import keras as K
    import onnx

_WHOLE_BYTES = 8  # of a parameter, at most: a whole copy in float32, and both files in float16


def save_bundle(model: K.Model, bundle: Path) -> dict[str, Any]:
    """Write `model.keras` and `model.onnx` into `bundle`.

    The weights are first rounded to float16 and both files store them so: half the size, and both runtimes
    compute in float32 from the same numbers. Files appear under their final names only when whole.

    Returns:
        What the card keeps as `content`: a hash of what the network computes, and hashes of the files that hold it.
        Equal trainings have equal networks, though their files differ in names and dates.

    Raises:
        TrainingError: the disk is full.
    """
    k = keras()
    training = k.config.dtype_policy()
    k.config.set_dtype_policy("float32")  # of the layers that serving adds
    try:
        model = in_float32(model)
        # BatchNorm epsilon (1e-3) dwarfs what float16 loses on small variances; the largest weights are far below
        # 65504.
        model.set_weights(
            [w.astype(np.float16).astype(w.dtype) if w.dtype == np.float32 else w for w in model.get_weights()]
        )
        with full_disk_named(bundle):
            bundle.mkdir(parents=True, exist_ok=True)
            require_room(bundle, _WHOLE_BYTES * model.count_params())
            _save_keras(model, bundle / KERAS_FILE)
            _save_onnx(model, bundle / SERVING_FILE)
        content = _content(model)
    finally:
        k.config.set_dtype_policy(training)
    files = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in (KERAS_FILE, SERVING_FILE)}
    return {"network": content, "files": files}


def _content(model: K.Model) -> str:
    """A hash of the layers' kinds and of all weights, in order."""
    digest = hashlib.sha256()
    for kind in _kinds(model):
        digest.update(kind.encode() + b"\n")
    for weight in model.get_weights():
        digest.update(repr((weight.shape, str(weight.dtype))).encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def _kinds(model: K.Model) -> Iterator[str]:
    for layer in model.layers:
        yield type(layer).__name__
        if hasattr(layer, "layers"):
            yield from _kinds(layer)


def in_float32(model: K.Model) -> K.Model:
    """The model with every layer computing in float32: itself, or a copy of one trained in mixed precision."""
    k = keras()

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            if node.get("class_name") == "DTypePolicy":
                return {**node, "config": {"name": "float32"}}
            return {key: plain(value) for key, value in node.items()}
        return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node

    if not any(getattr(layer, "compute_dtype", "float32") in ("float16", "bfloat16") for layer in model.layers):
        return model
    with_policy = k.saving.serialize_keras_object(model)
    copy = k.saving.deserialize_keras_object(plain(with_policy), safe_mode=True)
    copy.set_weights(model.get_weights())
    return copy


def _save_keras(model: K.Model, path: Path) -> None:
    import h5py

    whole = path.with_name("whole.part.keras")
    try:
        model.save(whole)
        with (
            whole_file(path) as part,
            zipfile.ZipFile(whole) as source,
            zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for name in source.namelist():
                content = source.read(name)
                if name.endswith(".h5"):
                    memory = io.BytesIO()
                    with h5py.File(io.BytesIO(content)) as old, h5py.File(memory, "w") as new:
                        _copy_halved(old, new)
                    content = memory.getvalue()
                target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    finally:
        whole.unlink(missing_ok=True)  # a full disk shall not be filled by half a network


def _copy_halved(old: Any, new: Any) -> None:
    import h5py

    for key, value in old.attrs.items():
        new.attrs[key] = value
    for name, item in old.items():
        if name == "optimizer":
            continue
        if isinstance(item, h5py.Group):
            _copy_halved(item, new.create_group(name))
        else:
            data = item[()]
            halved = data.astype(np.float16) if data.dtype == np.float32 else data
            copy = new.create_dataset(name, data=halved)
            for key, value in item.attrs.items():
                copy.attrs[key] = value


def _save_onnx(model: K.Model, path: Path) -> None:
    import onnx

    whole = path.with_name("whole.part.onnx")
    _fix_normalization(model)
    serving = serving_model(model)
    serving(np.zeros((1, *serving.input.shape[1:]), np.float32))  # the exporter wants a model that has been called
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Keras' exporter, for its authors
        try:
            serving.export(whole, format="onnx", verbose=False)
            graph = onnx.load(whole)
        finally:
            whole.unlink(missing_ok=True)
    _name_outputs(graph, serving)
    _upsample_in_one_step(graph.graph)
    _convolve_apart(graph)
    _halve_initializers(graph, [w for w in map(np.asarray, model.get_weights()) if w.ndim == 4])
    write_bytes(path, graph.SerializeToString())


def _fix_normalization(model: K.Model) -> None:
    """Make the moments of Normalization layers plain arrays: the converter takes its tensors for further inputs."""
    k = keras()
    for layer in model.layers:
        if isinstance(layer, k.Model):
            _fix_normalization(layer)
        elif isinstance(layer, k.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


def _name_outputs(model: onnx.ModelProto, serving: K.Model) -> None:
    """Give the outputs their names back, which the converter replaces by numbered ones."""
    ranks = {len(tensor.shape): name for name, tensor in serving.output.items()}
    graph = model.graph
    for output in graph.output:
        wanted = ranks[len(output.type.tensor_type.shape.dim)]
        names = {wanted: wanted + "/inner", output.name: wanted}  # the name may be taken inside the graph
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        output.name = wanted


# How the converter doubles the sides of a map (N, C, h, w): it repeats rows, then columns. Each step with its constant.
_DOUBLING = (
    ("Unsqueeze", [3]),
    ("Tile", [1, 1, 1, 2, 1]),
    ("Transpose", [0, 2, 3, 4, 1]),
    ("Reshape", None),
    ("Unsqueeze", [3]),
    ("Tile", [1, 1, 1, 2, 1]),
    ("Reshape", None),
    ("Transpose", [0, 3, 1, 2]),
)


def _upsample_in_one_step(graph: onnx.GraphProto) -> None:
    """Put one Resize in the place of each chain of steps that doubles a map; the answers stay the same to the bit.

    ONNX Runtime keeps its own order of channels through a Resize, and turns maps around for each of the other steps.

    Args:
        graph: changed in place.
    """
    from onnx import helper, numpy_helper

    scales = "upsampling/scales"
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def constant(node: onnx.NodeProto) -> list[int] | None:
        if node.op_type == "Transpose":
            return list(next(one.ints for one in node.attribute if one.name == "perm"))
        known = constants.get(node.input[1])
        return None if known is None else list(numpy_helper.to_array(known).tolist())

    def follows(node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The last step of a chain that begins with `node`."""
        for kind, value in _DOUBLING[1:]:
            users = [one for one in graph.node if node.output[0] in one.input[:1] and one.op_type == kind]
            if len(users) != 1 or (value is not None and constant(users[0]) != value):
                return None
            (node,) = users
        return node

    kind, value = _DOUBLING[0]
    found = 0
    for first in [node for node in graph.node if node.op_type == kind and constant(node) == value]:
        last = follows(first)
        if last is not None:
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            step = helper.make_node("Resize", [first.input[0], "", scales], list(last.output), last.name, **how)
            last.CopyFrom(step)
            found += 1
    if found:
        graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), scales))
        _drop_unused(graph)


def _convolve_apart(model: onnx.ModelProto) -> None:
    """Replace each convolution of two maps that were laid beside each other by the sum of one of each.

    The answers are the same but for rounding. ONNX Runtime keeps its own order of channels through a sum, and turns
    both maps around to lay them beside each other.

    Args:
        model: changed in place. Kernels are cut in the graph, so the file does not grow; the cut is folded at load.
    """
    from onnx import helper, numpy_helper, shape_inference

    graph = model.graph
    maps = {one.name: one.type.tensor_type.shape.dim for one in shape_inference.infer_shapes(model).graph.value_info}
    joins = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Concat" and len(node.input) == 2 and node.attribute[0].i == 1  # of channels
    }
    users = Counter(name for node in graph.node for name in node.input)
    steps: list[onnx.NodeProto] = []
    for node in graph.node:
        plain = node.op_type == "Conv" and all(one.i == 1 for one in node.attribute if one.name == "group")
        join = joins.get(node.input[0]) if plain else None
        counts = [maps[name][1].dim_value if name in maps else 0 for name in (join.input if join is not None else ())]
        if join is None or users[node.input[0]] > 1 or not all(counts):
            steps.append(node)
            continue
        parts = [f"{node.name}/part{number}" for number in range(2)]
        sizes = f"{node.name}/channels"
        graph.initializer.append(numpy_helper.from_array(np.array(counts, np.int64), sizes))
        steps.append(helper.make_node("Split", [node.input[1], sizes], [f"{part}/kernel" for part in parts], axis=1))
        for part, entry, more in zip(parts, join.input, (node.input[2:], ()), strict=True):
            step = helper.make_node("Conv", [entry, f"{part}/kernel", *more], [part], part)
            step.attribute.extend(node.attribute)
            steps.append(step)
        steps.append(helper.make_node("Add", parts, list(node.output), node.name))
    del graph.node[:]
    graph.node.extend(steps)
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Take out the nodes and constants that nothing uses."""
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        idle = [node for node in graph.node if not used.intersection(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _halve_initializers(graph: onnx.ModelProto, kernels: Sequence[np.ndarray]) -> None:
    """Store large float32 constants as float16, brought back by nodes that ONNX Runtime folds at load.

    The converter multiplies a convolution's kernel by the scale of the BatchNorm behind it, and the product does not
    fit float16. So the kernel itself is stored, which does, beside the scale of each output channel.

    Args:
        graph: changed in place.
        kernels: the Keras model's convolution kernels, (h, w, in, out), or (h, w, channels, 1) of a depthwise one.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for tensor in list(graph.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        if values.size < 64:
            continue
        scale = None
        if not _fits_half(values):
            parts = _without_scale(values, kernels)
            if parts is None:
                continue
            values, scale = parts
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + "/half"))
        nodes.append(
            helper.make_node("Cast", [name + "/half"], [name + "/kernel" if scale is not None else name], to=1)
        )
        if scale is not None:
            graph.graph.initializer.append(numpy_helper.from_array(scale, name + "/scale"))
            nodes.append(helper.make_node("Mul", [name + "/kernel", name + "/scale"], [name]))
    nodes.extend(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _fits_half(values: np.ndarray) -> bool:
    return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _without_scale(values: np.ndarray, kernels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """The kernel of which `values` (out, in, h, w) are a multiple in each output channel, and the multiples, if any."""
    if values.ndim != 4:
        return None
    for kernel in kernels:
        turned = kernel.transpose((2, 3, 0, 1) if kernel.shape[3] == 1 and values.shape[1] == 1 else (3, 2, 0, 1))
        if turned.shape != values.shape or not _fits_half(turned):
            continue
        axes = (1, 2, 3)
        scale = (values * turned).sum(axes, keepdims=True) / np.maximum((turned**2).sum(axes, keepdims=True), 1e-30)
        if np.allclose(turned * scale, values, rtol=1e-5, atol=1e-6 * np.abs(values).max()):
            return turned, scale.astype(np.float32)
    return None
