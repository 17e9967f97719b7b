"""One reader at one run's folder: the sample, what was answered, and the labels that it ends in.

RESULTS/reading/
  sample.json     the films drawn, with the chance and weight of each, in the order in which they are shown
  NAME.jsonl      what a reader clicked, a line for each answer
  labels.csv      a manifest: image, label, weight, and the answer of each reader
  agreement.json  how far the readers agree
"""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.data.files import PART, folder_mode, mode_like, sweep, write_csv, write_json
from cxr_pipeline.reading import ReadingError
from cxr_pipeline.reading.clicks import Clicks
from cxr_pipeline.reading.labels import BAD, UNSURE, agreement, label_of
from cxr_pipeline.reading.sampling import chances, draw
from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.reader import ResultsReader
from cxr_pipeline.stages.base import OK
from cxr_pipeline.stages.scores import AT_THRESHOLD

FOLDER, SAMPLE, LABELS, AGREEMENT = "reading", "sample.json", "labels.csv", "agreement.json"
_KEYS = {"TB": ("t", "TB"), "NTB": ("o", "other"), "NORM": ("n", "normal")}  # key and word of the classes of `tb`
ASKED = 200  # films to read, where nobody says how many
_IDLE = 60.0  # seconds after which a file that is half written is one of a killed reader, and of no other
LEAST = 20  # films with a score, under which a sample is no sample


class Session:
    """A reader's work on a results folder.

    Args:
        results: what `pipeline run` left.
        reader: name of who reads: letters, digits, `-` and `_`.
        count: films to draw; with an older sample, that one is taken up again.
        blind: whether score, answer, heat and boxes are kept from the reader.
        seed: of the draw, 0 where there is none; with an older sample, that one's, or None.

    Raises:
        ReadingError: no results, no scores, over half of the films not where they were, or another sample.
        OSError: the folder cannot be read or written.
    """

    def __init__(
        self,
        results: Path,
        reader: str = "reader",
        *,
        count: int | None = None,
        blind: bool = True,
        seed: int | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", reader) or reader in (Path(SAMPLE).stem, Path(AGREEMENT).stem):
            raise ReadingError(
                f"a reader's name is letters, digits, - and _, at most 40, and not 'sample'. Received: {reader!r}"
            )
        try:
            self._results = ResultsReader(results)
        except ResultsError as error:
            raise ReadingError(str(error)) from None
        self.info = self._results.info
        decisions = self.info.get("config", {}).get("classify", {})
        if not decisions.get("positive") or decisions.get("multi_label"):
            raise ReadingError(f"the films in {results} have no score: its chain ends before the classifier")
        self.classes = list(decisions["classes"])
        self.cutoff = float(decisions.get("cutoff", AT_THRESHOLD))
        self.reader, self.blind = reader, blind
        self.folder = results / FOLDER
        self._mode = mode_like(results / "run.json")
        self.folder.mkdir(mode=folder_mode(self._mode), exist_ok=True)
        sweep(self.folder, idle=_IDLE)
        self.sample = self._sample(count, seed)
        wanted = {film["id"] for film in self.sample}
        self._entries = {entry["row"]["id"]: entry for entry in self._results if entry["row"]["id"] in wanted}
        self.gone: set[str] = set()  # ids of films of the sample that cannot be shown
        self._check()
        self.clicks = Clicks(self.folder / f"{reader}.jsonl")

    def _sample(self, count: int | None, seed: int | None) -> list[dict[str, Any]]:
        path = self.folder / SAMPLE
        found = path.exists()
        if not found:
            self._draw(path, count or ASKED, seed or 0)
        said = json.loads(path.read_text(encoding="utf-8"))
        if count is not None and count != said["asked"]:
            raise ReadingError(
                f"{path} holds a sample of {said['asked']} films, and {count} are asked for. Leave --films out, or "
                "move that folder away to draw anew"
            )
        # Of two readers who begin at once, one gets the sample of the other.
        if found and seed is not None and seed != said["seed"]:
            raise ReadingError(
                f"{path} was drawn with the seed {said['seed']}, and {seed} is asked for. Leave --seed out, or move "
                "that folder away to draw anew"
            )
        return said["films"]

    def _draw(self, path: Path, asked: int, seed: int) -> None:
        """Draw a sample into a file. Where another reader did so meanwhile, that one stays: all read the same films."""
        rows = [row for row in self._results.rows() if row["status"] == OK and row.get("tb_score")]
        if len(rows) < LEAST:
            raise ReadingError(f"{len(rows)} films have a score; at least {LEAST} are needed to draw from")
        scores = np.array([float(row["tb_score"]) for row in rows])
        chance = chances(scores, self.cutoff, asked)
        films = [
            {
                "id": rows[place]["id"],
                "image": rows[place]["image"],
                "sha256": rows[place].get("sha256", ""),
                "score": float(scores[place]),
                "chance": round(float(chance[place]), 8),
                "weight": round(1 / float(chance[place]), 6),
            }
            for place in draw(chance, scores, seed)
        ]
        about = {"asked": asked, "of": len(rows), "seed": seed, "threshold": self.cutoff, "films": films}
        own = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
        write_json(own, about, mode=self._mode)
        try:
            os.link(own, path)  # never over one that is there
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(own, path)
        finally:
            own.unlink(missing_ok=True)

    def _check(self) -> None:
        lost = [film["id"] for film in self.sample if film["id"] not in self._entries]
        if lost:
            raise ReadingError(
                f"{len(lost)} films of the sample are not in the results any more, such as {lost[0]}. Move "
                f"{self.folder} away to draw anew"
            )
        gone = {film["id"]: film["image"] for film in self.sample if not os.path.isfile(film["image"])}
        if len(gone) > len(self.sample) / 2:
            raise ReadingError(
                f"{len(gone)} of {len(self.sample)} films are not where they were, such as "
                f"{next(iter(gone.values()))}. Call this from the folder that the run was called from, or put the "
                "films back"
            )
        self.gone |= set(gone)

    @property
    def answers(self) -> list[dict[str, str]]:
        """What a film may be answered with: `value`, `key` and `text`."""
        if set(self.classes) <= set(_KEYS):
            out = [{"value": name, "key": _KEYS[name][0], "text": _KEYS[name][1]} for name in self.classes]
        else:
            out = [{"value": name, "key": str(k), "text": name} for k, name in enumerate(self.classes[:9], 1)]
        return [*out, {"value": UNSURE, "key": "u", "text": UNSURE}, {"value": BAD, "key": "b", "text": BAD}]

    @property
    def next(self) -> int | None:
        """The number, from 1, of the first film without an answer that can be shown; None where there is none."""
        closed = self.gone | set(self.clicks.answers)
        open_ = (n for n, film in enumerate(self.sample, 1) if film["id"] not in closed)
        return next(open_, None)

    def film(self, number: int) -> dict[str, Any]:
        """A film of the sample by its number, from 1.

        Raises:
            ReadingError: there is no such film.
        """
        if not 1 <= number <= len(self.sample):
            raise ReadingError(f"the sample has the films 1 to {len(self.sample)}. Received: {number}")
        return self.sample[number - 1]

    def entry(self, film: dict[str, Any]) -> dict[str, Any]:
        """What the journal holds of a film."""
        return self._entries[film["id"]]

    @property
    def results(self) -> Path:
        """The results folder."""
        return self._results.folder

    def answer(self, number: int, answer: str, **further: Any) -> None:
        """Keep the answer to a film; the disk has it when this returns.

        Raises:
            ReadingError: no such film, a film beyond the next one, or no such answer.
            OSError: the disk takes no more.
        """
        film = self.film(number)
        allowed = [one["value"] for one in self.answers]
        if answer not in allowed:
            raise ReadingError(f"an answer is one of {', '.join(allowed)}. Received: {answer!r}")
        if self.next is not None and number > self.next:
            # A film skipped would be one that the reader chose not to answer, and no sample has that.
            raise ReadingError(f"film {self.next} comes first. Answer it, with {UNSURE} where you cannot tell")
        self.clicks.add(film["id"], answer, blind=self.blind, **further)

    def everyone(self) -> dict[str, dict[str, str]]:
        """The answers of all readers of this folder, by name and film."""
        # From the files, also our own: the same reader may have a second window open.
        out = {path.stem: Clicks(path).answers for path in self.folder.glob("*.jsonl")}
        return {name: answers for name, answers in sorted(out.items()) if answers}

    def write(self) -> Path:
        """Write labels.csv and agreement.json from all that was answered so far; returns the former's path.

        Raises:
            OSError: a file cannot be written.
        """
        readers = self.everyone()
        rows = []
        for film in self.sample:
            given = {name: answers[film["id"]] for name, answers in readers.items() if film["id"] in answers}
            if not given:
                continue
            rows.append(
                {
                    "image": os.path.abspath(film["image"]),
                    "label": label_of(list(given.values()), self.classes),
                    "source": self.results.resolve().name,
                    "weight": f"{film['weight']:.6g}",
                    **{f"read_by_{name}": answer for name, answer in given.items()},
                }
            )
        columns = ["image", "label", "source", "weight", *(f"read_by_{name}" for name in readers)]
        path = self.folder / LABELS
        write_csv(path, columns, [{name: row.get(name, "") for name in columns} for row in rows], mode=self._mode)
        write_json(self.folder / AGREEMENT, agreement(readers), mode=self._mode)
        return path
