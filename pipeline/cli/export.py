"""`pipeline export`: the networks as files of other programs."""

from __future__ import annotations

from pathlib import Path

import click

from cxr_pipeline.cli.commands import DONE, command, weights_option

FORMATS = ("onnx", "openvino", "saved_model", "tflite")  # export.FORMATS, which a test holds this to


@command
@weights_option
@click.option("--to", required=True, type=click.Choice(FORMATS), help="The format.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the files.")
def export(weights: str, to: str, out: Path) -> int:
    """Write the networks in another program's format.

    Each written file answers a few synthetic films, and its answers are compared with those of the Keras model. A file
    that differs by more than a thousandth is removed, and the command ends with 2.

    Input and outputs are those of model.onnx: a float32 batch of films or lung crops in [0, 1]; `lungs`, or `logits`
    and `maps`. The card.json of the weights says how a film is prepared, and what the logits mean.

    \b
    Example:
      pipeline export --weights my-weights --to tflite --out exported
    """
    from cxr_pipeline.export import FORMATS as formats
    from cxr_pipeline.export import export as write

    for one in write(weights, to, out):
        differences = ", ".join(f"{name} {value:.1e}" for name, value in one.differences.items())
        click.echo(f"{one.stage}: {one.path}  (largest difference to Keras: {differences})")
    if formats[to].note:
        click.echo(formats[to].note)
    return DONE
