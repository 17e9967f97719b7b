"""Grad-CAM of each class's logit (Selvaraju et al. 2017), by closed form and by gradient.

For a head of global average pooling and one dense layer the gradient of logit c with respect to feature
channel k is ``w[k, c] / (h * w)`` at every position, so Grad-CAM is ``relu(features @ w) / (h * w)``: the maps of all
classes come out of the same forward pass (they equal CAM, Zhou et al. 2016, up to that factor). Through deeper heads
(flat or averaged features, dense layers with ReLU) the gradient is written out as part of the graph, to be exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cxr_pipeline.models.backend import keras

if TYPE_CHECKING:
    import keras as K

POOL, LOGITS = "pool", "logits"  # names of the layers that every classifier of ours has
# Of one that pools evidence, see `models.pooling`: the map that Grad-CAM is taken on, and the lungs' share of places.
EVIDENCE, LUNG_SHARE = "evidence", "lung_share"


def _head(model: K.Model) -> list[K.layers.Layer]:
    """The layers from "pool" to "logits", in the order that features pass them.

    Raises:
        ValueError: the head branches, or has a layer whose gradient is not written out here.
    """
    k = keras()
    known = (k.layers.Dense, k.layers.Dropout, k.layers.BatchNormalization, k.layers.ReLU)
    layer, path = model.get_layer(LOGITS), []
    while layer.name != POOL:
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        if not isinstance(layer, known) or activation not in ("relu", "linear"):
            raise ValueError(
                f"between {POOL!r} and {LOGITS!r} only Dense (linear or ReLU), Dropout, BatchNormalization and ReLU "
                f"may stand, for Grad-CAM. Received: {layer.name} ({type(layer).__name__}, {activation})"
            )
        path.append(layer)
        layer = layer.input._keras_history.operation
    return [layer, *reversed(path)]


def has_linear_head(model: K.Model) -> bool:
    """Whether the logits are one dense layer on globally average-pooled features (dropout and scaling aside)."""
    k = keras()
    pool, *rest = _head(model)
    averaged = isinstance(pool, k.layers.GlobalAveragePooling2D) or _has(model, EVIDENCE)
    return averaged and sum(isinstance(layer, k.layers.Dense) for layer in rest) == 1


def _has(model: K.Model, name: str) -> bool:
    return any(layer.name == name for layer in model.layers)


def _in_lungs(model: K.Model) -> K.KerasTensor | None:
    """What maps of evidence are multiplied by, (N, h, w, 1): 1 where at least half of a place is lung, less elsewhere.

    Evidence was learned inside the lungs; beside them it means nothing, and would make the strongest heat.
    """
    if not _has(model, EVIDENCE):
        return None
    layers = (
        keras().layers
    )  # named, so that a model that was loaded, whose operations have names already, can have them
    twice = layers.Rescaling(2.0, name="lung_share_twice")(model.get_layer(LUNG_SHARE).output)
    return layers.ReLU(max_value=1.0, name="in_lungs")(twice)


def _features(model: K.Model) -> K.KerasTensor:
    """The map (N, h, w, C) that Grad-CAM is taken on."""
    return model.get_layer(EVIDENCE).output if _has(model, EVIDENCE) else model.get_layer(POOL).input


def _scale(layer: K.layers.BatchNormalization) -> np.ndarray:
    """What a BatchNormalization multiplies by at inference, (units,)."""
    gamma = 1.0 if layer.gamma is None else np.asarray(layer.gamma)
    return (gamma / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)).astype(np.float32)


def _channel_weights(model: K.Model) -> np.ndarray:
    """What each pooled channel adds to each logit of a linear head at inference, (channels, classes)."""
    k = keras()
    weights = np.eye(model.get_layer(LOGITS).units, dtype=np.float32)
    for layer in reversed(_head(model)):
        if isinstance(layer, k.layers.Dense):
            weights = np.asarray(layer.kernel)
        elif isinstance(layer, k.layers.BatchNormalization):
            weights = weights * _scale(layer)[:, None]
    return weights.astype(np.float32)


def maps_layer(model: K.Model) -> K.KerasTensor:
    """The symbolic Grad-CAM maps (N, h, w, classes) of a model, on its own graph.

    Raises:
        ValueError: see `_head`.
    """
    k = keras()
    features = _features(model)
    height, width, channels = features.shape[1:]
    if has_linear_head(model):
        kernel = _channel_weights(model)
        cam = k.layers.Conv2D(kernel.shape[1], 1, use_bias=False, activation="relu", name="gradcam")
        maps = cam(features)
        cam.set_weights([kernel[None, None] / (height * width)])
        inside = _in_lungs(model)
        return maps if inside is None else k.layers.Multiply(name="maps_in_lungs")([maps, inside])
    gradient = _gradient_of_pooled(model)  # (N, classes, pooled)
    classes = gradient.shape[1]
    if isinstance(model.get_layer(POOL), k.layers.GlobalAveragePooling2D):
        weights = gradient / (height * width)
    else:
        weights = k.ops.mean(k.ops.reshape(gradient, (-1, classes, height * width, channels)), axis=2)
    flat = k.ops.reshape(features, (-1, height * width, channels))
    maps = k.ops.relu(k.ops.matmul(flat, k.ops.transpose(weights, (0, 2, 1))))
    return k.ops.reshape(maps, (-1, height, width, classes))


def _gradient_of_pooled(model: K.Model) -> K.KerasTensor:
    """The gradient of each logit with respect to what "pool" gives, (N, classes, pooled), as part of the graph."""
    k = keras()
    gradient = None
    for layer in reversed(_head(model)):
        if isinstance(layer, k.layers.Dense):
            kernel = np.asarray(layer.kernel).T  # (units, inputs)
            if gradient is None:  # the logits themselves: the same for every film, repeated for each
                ones = k.ops.ones_like(layer.output[:, :1])[:, :, None]
                gradient = ones * kernel[None]
                continue
            gradient = k.ops.matmul(_where_on(gradient, layer), kernel)
        elif isinstance(layer, k.layers.BatchNormalization):
            gradient = gradient * _scale(layer)
        elif isinstance(layer, k.layers.ReLU):
            gradient = _where_on(gradient, layer)
    return gradient


def _where_on(gradient: K.KerasTensor, layer: K.layers.Layer) -> K.KerasTensor:
    """The gradient where a layer's ReLU lets it through; all of it where the layer has none."""
    k = keras()
    if isinstance(layer, k.layers.Dense) and layer.activation.__name__ == "linear":
        return gradient
    return gradient * k.ops.expand_dims(k.ops.cast(layer.output > 0, "float32"), 1)


def gradient_maps(model: K.Model, batch: np.ndarray) -> np.ndarray:
    """Grad-CAM maps by automatic differentiation, for any head; TensorFlow backend.

    Args:
        model: a classifier with layers named "pool" (whose input is the feature map) and "logits".
        batch: (N, H, W, C) float32, as the model takes it.

    Returns:
        (N, h, w, classes) float32, not negative.
    """
    import tensorflow as tf

    k = keras()
    inside = _in_lungs(model)
    outputs = [_features(model), model.get_layer(LOGITS).output, *([] if inside is None else [inside])]
    split = k.Model(model.input, outputs)
    with tf.GradientTape(persistent=True) as tape:
        activations, logits, *lungs = split(tf.convert_to_tensor(batch), training=False)
        columns = [logits[:, c] for c in range(logits.shape[1])]
    out = []
    for column in columns:
        gradient = tape.gradient(column, activations)
        weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * activations, axis=-1))
        out.append(heat * lungs[0][..., 0] if lungs else heat)
    return np.stack([np.asarray(m) for m in out], axis=-1)
