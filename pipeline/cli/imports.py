"""The command `pipeline data import`: public data sets, and tables or folders of one's own. Imports nothing heavy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_pipeline.cli.commands import DONE, command
from cxr_pipeline.cli.tools import data
from cxr_pipeline.data.layouts import LAYOUTS

if TYPE_CHECKING:
    from cxr_pipeline.data.layouts.write import Imported
    from cxr_pipeline.data.manifest import Manifest

TABLE = "table"
_SETS = "\b\nNAME is one of:\n" + "\n".join(f"  {name:18}{layout.title}" for name, layout in LAYOUTS.items())
_SETS += f"\n  {TABLE:18}a table of your own (CSV, Excel), or a folder with one folder per class"
# Presets for the sets that are not about tuberculosis in adults.
_PRESETS = {"kermany": "pneumonia", "nih": "nih14", "chexpert": "chexpert"}


class _Name(click.ParamType):
    """A data set's name; those of other packages are looked up only when one is asked for."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        from cxr_pipeline.data.layouts import layouts

        if value == TABLE or value in LAYOUTS or value in layouts():
            return value
        from difflib import get_close_matches

        names = [*layouts(), TABLE]
        near = get_close_matches(value.lower(), names, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        self.fail(f"{value!r} is not one of {', '.join(map(repr, names))}.{meant}", param, context)


def _pairs(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        old, equals, new = value.rpartition("=")
        if not (equals and old.strip() and new.strip()):
            raise click.BadParameter(f"it reads LABEL=CLASS, such as Tuberculosis=TB. Received: {value!r}")
        pairs[old.strip()] = new.strip()
    return pairs


_folder = click.Path(exists=True, file_okay=False, path_type=Path)
_OWN_OPTIONS = (
    click.option("--image", metavar="COLUMN", help="table: column with the names of the films."),
    click.option("--label", metavar="COLUMN", help="table: column with the labels."),
    click.option("--patient", metavar="COLUMN", help="table: column with the patients."),
    click.option("--split", metavar="COLUMN", help="table: column with train, val, test or external."),
    click.option(
        "--map",
        "classes",
        multiple=True,
        metavar="LABEL=CLASS",
        callback=_pairs,
        help="table: what a label becomes, such as Tuberculosis=TB. Repeatable.",
    ),
    click.option(
        "--films", type=_folder, help="table: folder with the films, at any depth.  [default: the table's own]"
    ),
    click.option("--masks", type=_folder, multiple=True, help="table: folder of lung masks; two for left and right."),
    click.option(
        "--join",
        type=click.Choice(("PatientID", "StudyInstanceUID", "SOPInstanceUID")),
        help="table: the column of films holds this DICOM tag.",
    ),
    click.option(
        "--boxes",
        type=click.Path(exists=True, path_type=Path),
        help="table: boxes of COCO (.json), Pascal VOC (folder of .xml), YOLO (folder of .txt) or a table.",
    ),
    click.option("--source", metavar="NAME", help="table: name of the source.  [default: the file's or folder's]"),
)


def _own_options(function: Any) -> Any:
    for option in reversed(_OWN_OPTIONS):
        function = option(function)
    return function


@partial(command, group=data, name="import", epilog=_SETS)
@click.argument("name", type=_Name(), metavar="NAME")
@click.argument("folder", type=click.Path(exists=True, path_type=Path), metavar="FOLDER|FILE")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Manifest to write, .csv.")
@click.option(
    "--labels",
    type=click.Choice(("tb", "own")),
    default="tb",
    show_default=True,
    help="TB, NTB and NORM, or the data set's own classes, such as NORMAL and PNEUMONIA.",
)
@click.option("--all-views", is_flag=True, help="Also import lateral films (chexpert, covidchestxray).")
@click.option(
    "--extra", is_flag=True, help="Also import copies of other data sets, marked in the column leakage (tbx11k)."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing manifest.")
@_own_options
def import_(
    name: str,
    folder: Path,
    out: Path,
    labels: str,
    all_views: bool,
    extra: bool,
    overwrite: bool,
    masks: tuple[Path, ...],
    classes: dict[str, str],
    **own: Any,
) -> int:
    """Make the manifest of a public data set from the folder that its download was unpacked into, or of your own table.

    Films stay where they are. Boxes go into boxes.csv beside the manifest, and lung masks that must be joined or films
    that must be converted (montgomery, jsrt) into folders there.

    Trees, licences, citations and what leaks from one set into another: docs/data.md.

    \b
    Examples:
      pipeline data import montgomery MontgomerySet/ --out montgomery/manifest.csv
      pipeline data import table ours.xlsx --image File --label Diagnosis --map Tuberculosis=TB --out ours/manifest.csv
      pipeline data import table films/ --out films.csv         (one folder per class)
    """
    from cxr_pipeline.data.layouts.write import import_dataset, import_table

    if name == TABLE:
        from cxr_pipeline.data.layouts.table import TableOptions

        options = TableOptions(masks=masks, classes=classes, **own)
        done = import_table(folder, out, options, overwrite=overwrite)
    else:
        foreign = [key for key, value in {**own, "masks": masks, "map": classes}.items() if value]
        if foreign:
            raise click.UsageError(f"--{foreign[0]} is for `pipeline data import table` only. Leave it out")
        done = import_dataset(name, folder, out, labels=labels, all_views=all_views, extra=extra, overwrite=overwrite)
    _tell(name, done, out)
    return DONE


def _tell(name: str, done: Imported, out: Path) -> None:
    from cxr_pipeline.data.layouts import layouts
    from cxr_pipeline.data.names import printable
    from cxr_pipeline.manifests.summary import as_text

    click.echo(printable(as_text(done.manifest)))
    click.echo()
    for note in done.notes:
        click.echo(printable(f"note: {note}"), err=True)
    if name != TABLE:
        layout = layouts()[name]
        click.echo(f"Licence  {layout.licence}\nCite     {layout.citation}\nLeakage  {layout.leakage}")
    next_step = _own_step(done.manifest, out) if name == TABLE else _next_step(name, done.manifest, out)
    click.echo(printable(f"Manifest {out}. Next: pipeline data check {out}, then {next_step}"))


def _next_step(name: str, manifest: Manifest, out: Path) -> str:
    """What to do with an imported data set: train the preset that fits it, with the shipped lungs where it has none."""
    if name in _PRESETS:
        return f"pipeline train --data {out} --config {_PRESETS[name]} --out my-weights"
    if not (manifest.table["label"] == "TB").any():
        return "join it with films of TB, or ask your own question of it: docs/tasks.md"
    lungs = "" if (manifest.table["mask"] != "").any() else " --set segment.weights=tb"
    return f"pipeline train --data {out}{lungs} --out my-weights"


def _own_step(manifest: Manifest, out: Path) -> str:
    """The command that would train on a manifest of any classes."""
    from cxr_pipeline.configs.schema import load_config
    from cxr_pipeline.manifests.owndata import settings_of, train_command

    if manifest.table["label"].replace("", None).nunique() < 2:
        return "join it with films of other classes: a training needs two, see docs/tasks.md"
    return train_command(manifest, out, settings_of(manifest, load_config("tb")))
