"""Read, calibrate, screen on films whose labels are known: what the loop of docs/scores.md gains, and what it takes.

    python docs/experiments/reading_loop.py --data manifest.csv --source shenzhen --work FOLDER

Films drawn at random from the splits `train` and `val` are judged by `pipeline run`. `pipeline read` serves some of
them, and each gets its true label: by the page's own keys in a headless Chromium, or (`--by requests`) by the requests
that the page sends. `calibrate` and `plan` take the labels that the page wrote, and `screen` decides the folder again.
Sensitivity and specificity are of films that nobody read, nor another film of the same patient: those left of the
folder, which lie away from the threshold, as the sample takes most of those near it; and films of a second folder, set
aside before anything was drawn to be read, which are as the films come.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests' browser needs nothing that is not installed

from cxr_pipeline.models.figures.metrics import wilson
from cxr_pipeline.results.reader import rows
from tests.pipeline.chromium import BROWSER, tab

SPLITS = ("train", "val")
BY = ("keys", "requests")
_PIPELINE = (sys.executable, "-m", "cxr_pipeline")


@dataclass(frozen=True)
class Film:
    """A film of the manifest."""

    image: str
    label: str
    patient: str


@dataclass
class Times:
    """Seconds that passed, and of the processor (the browser's not counted), by part of the loop."""

    passed: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Measure what is done within, and the processes that end in it."""
        begun, used = time.monotonic(), _used()
        yield
        self.passed[part], self.processor[part] = time.monotonic() - begun, _used() - used


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def choose(manifest: Path, count: int, sources: Sequence[str], seed: int = 0) -> list[Film]:
    """Films drawn at random among those of `SPLITS` with a label; of these sources, or of all where none is named."""
    with manifest.open(newline="", encoding="utf-8") as file:
        known = [
            Film(str((manifest.parent / row["image"]).resolve()), row["label"], row.get("patient") or row["image"])
            for row in csv.DictReader(file)
            if row["split"] in SPLITS and row["label"] and (not sources or row["source"] in sources)
        ]
    if len(known) < count:
        raise SystemExit(f"{len(known)} labelled films of {', '.join(SPLITS)} in {manifest}; {count} are asked for")
    return [known[place] for place in np.random.default_rng(seed).permutation(len(known))[:count]]


def pipeline(*arguments: object) -> str:
    """What a command prints; one that could not do its work ends this script."""
    done = subprocess.run([*_PIPELINE, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pipeline {arguments[0]} ended with {done.returncode}")
    return done.stdout


@contextmanager
def reading_page(out: Path, count: int) -> Iterator[str]:
    """`pipeline read` at work; gives its address, and ends it as Ctrl-C does."""
    command = [*_PIPELINE, "read", str(out), "--reader", "truth", "--films", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = next((line for line in server.stdout if line.startswith("Page")), None)
            if line is None:
                raise SystemExit(f"pipeline read ended with {server.wait()}")
            yield line.split()[-1]
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate()


def by_keys(address: str, labels: Sequence[str], folder: Path) -> None:
    """Answer as a reader does: press the key that the page names, and see the next film come."""
    said = "document.querySelector('#said').textContent"
    with tab(folder) as page:
        page.open(address)
        for number, label in enumerate(labels, 1):
            page.wait(f"{said}.startsWith('Film {number} of ')")
            page.press(page.run(f"document.querySelector('[data-value={label}]').getAttribute('aria-keyshortcuts')"))
        page.wait(f"{said}.includes('All films are read')")
        page.run("document.querySelector('#finish').click()")
        page.wait("document.querySelector('#end').textContent.includes('labels.csv')")
        if page.errors:
            raise SystemExit(f"the page complained: {page.errors}")


def by_requests(address: str, labels: Sequence[str]) -> None:
    """Answer by what the page sends, without a page."""
    place, _, key = address.partition("#")

    def ask(path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        head = {"X-API-Key": key, "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(place + path, data, head)) as answer:
            return answer.read()

    for number, label in enumerate(labels, 1):
        if json.loads(ask("v1/reading"))["next"] != number:
            raise SystemExit(f"the page does not ask for film {number}")
        ask(f"v1/films/{number}")
        ask(f"v1/films/{number}/levels")
        ask(f"v1/films/{number}/answer", {"answer": label, "seconds": 1})
    ask("v1/labels", {})


def figures(scores: Sequence[float], sick: Sequence[bool]) -> dict[str, dict]:
    """Sensitivity and specificity of scores, of which 50 and more are positive."""
    reached, truth = np.asarray(scores, float) >= 50, np.asarray(sick, bool)
    out = {}
    for name, right, n in (
        ("sensitivity", (reached & truth).sum(), truth.sum()),
        ("specificity", (~reached & ~truth).sum(), (~truth).sum()),
    ):
        value = float(right / n) if n else None
        ends = [float(end) for end in wilson(right, n)] if n else [0.0, 1.0]
        out[name] = {"value": value, "ci95": ends, "n": int(n)}
    return out


def scores_of(out: Path) -> dict[str, float]:
    """The score of each film of a results folder that has one, by its path."""
    return {row["image"]: float(row["tb_score"]) for row in rows(out) if row.get("tb_score")}


def judge(films: Sequence[Film], folder: Path) -> Path:
    """The results folder of a run over these films."""
    folder.mkdir(parents=True)
    manifest = folder / "films.csv"
    manifest.write_text("image\n" + "".join(f"{film.image}\n" for film in films), encoding="utf-8")
    pipeline("run", manifest, "--out", folder / "out", "--no-report")
    return folder / "out"


def loop(films: Sequence[Film], aside: Sequence[Film], work: Path, *, read: int, by: str, target: float = 0.9) -> dict:
    """The whole loop in the folder `work`, which is made; what came out, ready for JSON."""
    times, known = Times(), {film.image: film for film in films}
    with times.of("run"):
        out = judge(films, work / "films")
    folders = {"not read": out, **({"set aside": judge(aside, work / "aside")} if aside else {})}
    before = {name: scores_of(folder) for name, folder in folders.items()}
    with times.of("read"), reading_page(out, read) as address:
        sample = json.loads((out / "reading" / "sample.json").read_text(encoding="utf-8"))["films"]
        truth = [known[one["image"]].label for one in sample]
        if by == "keys":
            by_keys(address, truth, work / "profile")
        else:
            by_requests(address, truth)
    labels, site = out / "reading" / "labels.csv", work / "site.yaml"
    with labels.open(newline="", encoding="utf-8") as file:
        assert [row["label"] for row in csv.DictReader(file)] == truth, "the labels written are not those given"
    with times.of("calibrate"):
        pipeline("calibrate", "--data", labels, "--out", site, "--target-sensitivity", target)
    with times.of("plan"):
        pipeline("plan", out, "--data", labels)
    with times.of("screen"):
        pipeline("screen", out, "--site", site, "--no-report")
    if aside:
        pipeline("screen", folders["set aside"], "--site", site, "--no-report")
    after = {name: scores_of(folder) for name, folder in folders.items()}
    patients = {known[one["image"]].patient for one in sample}
    measured = {}
    for name, of in (("not read", films), ("set aside", aside)):
        kept = [film for film in of if film.image in before[name] and film.patient not in patients] if of else []
        sick = [film.label == "TB" for film in kept]
        measured[name] = {
            when: figures([scores[name][film.image] for film in kept], sick)
            for when, scores in (("before", before), ("after", after))
        }
    return {
        "films": len(films),
        "with_score": len(before["not read"]),
        "read": len(truth),
        "read_with_tb": truth.count("TB"),
        "by": by,
        "measured": measured,
        "seconds": {name: round(value, 1) for name, value in times.passed.items()},
        "processor_seconds": {name: round(value, 1) for name, value in times.processor.items()},
    }


def said(made: dict) -> str:
    """The outcome as lines to read."""
    lines = [
        f"{made['films']} films, {made['with_score']} of them with a score; {made['read']} read by {made['by']}, "
        f"{made['read_with_tb']} of these with TB."
    ]
    for group, times in made["measured"].items():
        for name in ("sensitivity", "specificity"):
            parts = []
            for when, of in times.items():
                (low, high), value = of[name]["ci95"], of[name]["value"]
                parts.append(f"{when} {'none' if value is None else f'{value:.3f}'} ({low:.3f} to {high:.3f})")
            lines.append(f"{group:10} {name}  {'   '.join(parts)}   n {times['after'][name]['n']}")
    for name, passed in made["seconds"].items():
        lines.append(f"{name:10} {passed:6.1f} s passed, {made['processor_seconds'][name]:.1f} s of the processor")
    return "\n".join(lines)


def main() -> None:
    """Run the loop and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="manifest with image, label and split")
    parser.add_argument("--source", action="append", default=[], help="films of this source only; repeatable")
    parser.add_argument("--work", type=Path, required=True, help="folder to make")
    parser.add_argument("--films", type=int, default=200, help="how many films to run")
    parser.add_argument("--read", type=int, default=100, help="how many of the films are read")
    parser.add_argument("--aside", type=int, default=200, help="how many further films measure alone")
    parser.add_argument("--by", choices=BY, default=BY[0] if BROWSER else BY[1])
    parser.add_argument("--target-sensitivity", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.work.exists():
        parser.error(f"{given.work} is there already. Name a folder that is not")
    films = choose(given.data, given.films + given.aside, given.source, given.seed)
    made = loop(
        films[: given.films],
        films[given.films :],
        given.work,
        read=given.read,
        by=given.by,
        target=given.target_sensitivity,
    )
    (given.work / "loop.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(said(made))


if __name__ == "__main__":
    main()
