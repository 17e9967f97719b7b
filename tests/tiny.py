"""Settings that make the whole chain small enough to train in a test."""

TINY = [
    "segment.size=64",
    "segment.encoder_weights=null",
    "segment.decoder_filters=[8, 8, 8, 8, 4]",
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
