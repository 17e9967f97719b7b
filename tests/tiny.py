"""Settings that make the whole chain small enough to train in a test.

What a training of a few films costs is the building of its steps, so the number of layers counts. Networks of full
depth pass `tests/models/test_networks.py`; that of the lungs is trained in `tests/pipeline/test_distribution.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SMALL = [  # of any config
    "segment.size=64",
    "segment.encoder=mobilenet",  # half as many layers as the default
    "segment.encoder_weights=null",
    "segment.decoder_filters=[8, 8, 8, 8]",
    "segment.fit.epochs=2",
    "segment.fit.batch_size=4",
    "segment.min_fraction=0",
    "segment.min_side=32",
    "classify.size=64",
    "classify.encoder_weights=null",
    "classify.head_passes=1",
    "classify.resolve_head=true",
    "classify.keep_start=0.3",
    "classify.fit.epochs=2",
    "classify.fit.batch_size=4",
    "classify.fit.leave_out=[]",
]
TINY = [  # of the preset tb: a network whose encoder is trained, so that all steps of a training take place
    "classify.network=mobilenetv2",
    "classify.alpha=0.35",
    "classify.cut=block_3_expand_relu",
    "classify.pool=zones",
    "classify.head=solved",
    "classify.fit.augment=true",
    *SMALL,
]


@contextmanager
def step_by_step() -> Iterator[None]:
    """Trainings within run step by step: to compile them would take longer than the few steps of a test."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
