"""From a trained Keras model to the files of a bundle: Keras and ONNX, weights stored as float16."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.backend import keras
from models.weights import KERAS_FILE, SERVING_FILE

if TYPE_CHECKING:
    import keras as K
    import onnx


def serving_model(model: K.Model) -> K.Model:
    """The model that answers requests: a dict of outputs.

    Segmentation: `lungs` (N, H, W, 1), probability. Classification: `logits` (N, classes) and `maps`
    (N, h, w, classes), the Grad-CAM of each logit, from the same forward pass.
    """
    from models.gradcam import LOGITS, maps_layer

    k = keras()
    if not any(layer.name == LOGITS for layer in model.layers):
        return k.Model(model.input, {"lungs": k.layers.Identity(name="lungs")(model.output)})
    return k.Model(model.input, {"logits": model.get_layer(LOGITS).output, "maps": maps_layer(model)})


def save_bundle(model: K.Model, bundle: Path) -> None:
    """Write `model.keras` and `model.onnx` into `bundle`.

    The weights are first rounded to float16 and both files store them so: half the size, and both runtimes
    compute in float32 from the same numbers. Files appear under their final names only when whole.
    """
    bundle.mkdir(parents=True, exist_ok=True)
    # BatchNorm epsilon (1e-3) dwarfs what float16 loses on small variances; the largest weights are far below 65504.
    model.set_weights(
        [w.astype(np.float16).astype(w.dtype) if w.dtype == np.float32 else w for w in model.get_weights()]
    )
    _save_keras(model, bundle / KERAS_FILE)
    _save_onnx(model, bundle / SERVING_FILE)


def _save_keras(model: K.Model, path: Path) -> None:
    import h5py

    whole = path.with_name("whole.part.keras")
    model.save(whole)
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".h5"):
                memory = io.BytesIO()
                with h5py.File(io.BytesIO(content)) as old, h5py.File(memory, "w") as new:
                    _copy_halved(old, new)
                content = memory.getvalue()
            target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    whole.unlink()
    os.replace(part, path)


def _copy_halved(old: object, new: object) -> None:
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
    serving = serving_model(model)
    serving(np.zeros((1, *serving.input.shape[1:]), np.float32))  # the exporter wants a model that has been called
    serving.export(whole, format="onnx", verbose=False)
    graph = onnx.load(whole)
    whole.unlink()
    _name_outputs(graph, serving)
    _halve_initializers(graph)
    part = path.with_name(path.name + ".part")
    onnx.save(graph, part)
    os.replace(part, path)


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


def _halve_initializers(graph: onnx.ModelProto) -> None:
    """Store large float32 constants as float16, cast back by nodes that ONNX Runtime folds at load."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        small = values.astype(np.float16)
        # Folded BatchNorm makes products that float16 does not hold exactly: those few stay float32.
        if values.size < 64 or not np.array_equal(small.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(small, name + "/half"))
        casts.append(helper.make_node("Cast", [name + "/half"], [name], to=TensorProto.FLOAT))
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(casts + nodes)
