"""Grad-CAM of each class's logit (Selvaraju et al. 2017), by closed form and by gradient.

For a head of global average pooling and one dense layer the gradient of logit c with respect to feature
channel k is ``w[k, c] / (h * w)`` at every position, so Grad-CAM is ``relu(features @ w) / (h * w)``: the maps of all
classes come out of the same forward pass (they equal CAM, Zhou et al. 2016, up to that factor). Deeper
heads take the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.backend import keras

if TYPE_CHECKING:
    import keras as K

POOL, LOGITS = "pool", "logits"  # names of the layers that every classifier of ours has


def has_linear_head(model: K.Model) -> bool:
    """Whether the logits are one dense layer on globally average-pooled features (dropout aside)."""
    k = keras()
    dense = model.get_layer(LOGITS)
    if not isinstance(dense, k.layers.Dense):
        return False
    layer = dense.input._keras_history.operation
    while isinstance(layer, (k.layers.Dropout, k.layers.BatchNormalization)):  # affine at inference
        layer = layer.input._keras_history.operation
    return isinstance(layer, k.layers.GlobalAveragePooling2D)


def _channel_weights(model: K.Model) -> np.ndarray:
    """What each pooled channel adds to each logit at inference, (channels, classes): dense layer and scaling in one."""
    k = keras()
    dense = model.get_layer(LOGITS)
    weights = dense.get_weights()[0]
    layer = dense.input._keras_history.operation
    while isinstance(layer, (k.layers.Dropout, k.layers.BatchNormalization)):
        if isinstance(layer, k.layers.BatchNormalization):
            scale = 1.0 if layer.gamma is None else np.asarray(layer.gamma)
            weights = weights * (scale / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon))[:, None]
        layer = layer.input._keras_history.operation
    return weights.astype(np.float32)


def maps_layer(model: K.Model) -> K.KerasTensor:
    """The symbolic Grad-CAM maps (N, h, w, classes) of a model with a linear head, on its own graph."""
    k = keras()
    features = model.get_layer(POOL).input
    kernel = _channel_weights(model)
    height, width = features.shape[1:3]
    cam = k.layers.Conv2D(kernel.shape[1], 1, use_bias=False, activation="relu", name="gradcam")
    maps = cam(features)
    cam.set_weights([kernel[None, None] / (height * width)])
    return maps


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
    features = model.get_layer(POOL).input
    split = k.Model(model.input, [features, model.get_layer(LOGITS).output])
    with tf.GradientTape(persistent=True) as tape:
        activations, logits = split(tf.convert_to_tensor(batch), training=False)
        columns = [logits[:, c] for c in range(logits.shape[1])]
    out = []
    for column in columns:
        gradient = tape.gradient(column, activations)
        weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        out.append(tf.nn.relu(tf.reduce_sum(weights * activations, axis=-1)))
    return np.stack([np.asarray(m) for m in out], axis=-1)
