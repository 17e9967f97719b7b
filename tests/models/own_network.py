"""A network of somebody else's package, as a config names it."""

from cxr_pipeline.models.backend import keras


def build(rgb, *, depth=2, filters=8):
    features = rgb
    for _ in range(depth):
        features = keras().layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(features)
    return features


not_a_network = 3
