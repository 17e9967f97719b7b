"""What a run says of the files that it left out, and of films that are there twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_pipeline.data.files import mode_like, write_csv
from cxr_pipeline.data.names import brief, printable
from cxr_pipeline.run.inputs import Input, LeftOut, left_out_in_words

LEFT_OUT = "left_out.csv"
_NAMED = 5  # files of each reason that run.json names


def about_inputs(inputs: Sequence[Input], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """What run.json says of what was left out, by reason, and of equal films.

    Returns:
        ``left_out``: by reason ``count`` and the first ``files``; ``same_files``: how many inputs equal another.
    """
    reasons: dict[str, dict[str, Any]] = {}
    for one in left_out:
        part = reasons.setdefault(one.reason, {"count": 0, "files": []})
        part["count"] += 1
        if len(part["files"]) < _NAMED:
            part["files"].append(printable(one.file))
    return {"left_out": reasons, "same_files": sum(bool(one.note) for one in inputs)}


def tell_of_inputs(inputs: Sequence[Input], left_out: Sequence[LeftOut], out: Path) -> list[str]:
    """Sentences for the console on what was left out, and on films that are there twice."""
    sentences = left_out_in_words(left_out)
    if sentences:
        sentences.append(f"All of them: {brief(out / LEFT_OUT, 200)}")
    same = [one for one in inputs if one.note]
    if same:
        first = f"{brief(same[0].path, 200)} ({same[0].note})"
        sentences.append(f"{len(same)} film(s) are the same file as another, see `warnings`: such as {first}")
    return sentences


def write_left_out(out: Path, left_out: Sequence[LeftOut]) -> None:
    """`left_out.csv` in the results folder: columns file and reason. Without such files an older one goes."""
    if not left_out:
        (out / LEFT_OUT).unlink(missing_ok=True)
        return
    rows = ({"file": printable(one.file), "reason": one.reason} for one in left_out)
    write_csv(out / LEFT_OUT, ("file", "reason"), rows, mode=mode_like(out / "run.json"))
