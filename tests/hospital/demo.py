"""The hospital on one machine: Orthanc, its rule, the node, and every answer back in its study.

    make demo-hospital
    python -m tests.hospital.demo --films 200

Orthanc runs with a temporary configuration on loopback. Its rule (docs/deploy/orthanc/forward.lua) forwards films to
`pipeline listen`, which sends Segmentation, Structured Report, overlay and Presentation State back.
Then the node is killed in the middle of many films, and started again. Ends with 1 where something is not as it should.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np

from cxr_pipeline.data.synthetic import LABELS, make_film
from cxr_pipeline.dicom.webclient import client
from tests.hospital import orthanc
from tests.hospital.parts import CT, as_bytes, dicom_film, send

RULE = Path(__file__).parents[2] / "docs" / "deploy" / "orthanc" / "forward.lua"
ANSWERS = ("SEG", "SR", "OT", "PR")  # modalities of the answers; the overlay is OT
OUTPUTS = "masks,overlays,regions,dicom"
SIZE = 512
_DRAWN = 12  # films that are drawn; the others are these with another grey level


def films(count, first=0):
    """Synthetic chest films as DICOM, all different, each a study of its own."""
    drawn = [make_film(n, label=LABELS[n % 3], size=(SIZE, SIZE)).pixels for n in range(min(count, _DRAWN))]
    for number in range(count):
        pixels = (drawn[number % len(drawn)] * (4000 - 7 * (number // len(drawn)))).round().astype(np.uint16)
        how = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelSpacing": [0.7, 0.7], "Rows": SIZE}
        yield dicom_film(f"demo {first + number}", Columns=SIZE, PixelData=pixels.tobytes(), PatientID="DEMO", **how)


class NodeProcess:
    """`pipeline listen` as a process of its own."""

    def __init__(self, out, port, send_to=()):
        self.out, self.port, self.page = out, port, orthanc.free_port()
        self.command = [sys.executable, "-m", "cxr_pipeline", "listen", "--out", str(out), "--port", str(port)]
        self.command += ["--http", str(self.page), "--outputs", OUTPUTS]
        self.command += [word for one in send_to for word in ("--send-to", one)]

    def start(self):
        self.log = open(self.out.with_suffix(".log"), "ab")  # noqa: SIM115
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        wait(lambda: self.state() is not None, 180, "the node did not start")
        return self

    def state(self):
        """What its page shows; None while it does not answer."""
        assert self.process.poll() is None, self.out.with_suffix(".log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.page}/v1/queue", timeout=30) as answer:
                return json.load(answer)
        except OSError:
            return None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(120)
        finally:
            self.kill()


def wait(what, seconds, why):
    """Wait until `what()` is true; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"{why} within {seconds:g} s")


def modalities(pacs, study):
    """How many objects of each modality a study holds, asked for by QIDO-RS."""
    web = client(pacs.url)
    found = Counter()
    for series in web.search_for_series(str(study)):
        number = len(web.search_for_instances(str(study), series["0020000E"]["Value"][0]))
        found[series["00080060"]["Value"][0]] += number
    return found


def one_study(pacs, node):
    """A study with a film, one from the side and a CT: its four answers, read back by WADO-RS, and nothing else."""
    (film,) = films(1)
    side = dicom_film("side", StudyInstanceUID=film.StudyInstanceUID, ViewPosition="LL", PatientID="DEMO")
    other = dicom_film("ct", CT, Modality="CT", StudyInstanceUID=film.StudyInstanceUID, PatientID="DEMO")
    begun = time.monotonic()
    assert send(pacs.dicom, film, side, other, title="ORTHANC") == [0, 0, 0]
    study = str(film.StudyInstanceUID)
    wait(lambda: all(modalities(pacs, study)[name] for name in ANSWERS), 180, "not all answers stand in the study")
    print(f"one study: {', '.join(ANSWERS)} stand in it after {time.monotonic() - begun:.1f} s")
    assert send(node.port, other) == [0]  # as from a rule that forwards whole studies
    wait(lambda: node.state()["waiting"] == 0, 60, "films wait still")
    time.sleep(2)  # for what must not come
    found = modalities(pacs, study)
    assert found == {"DX": 2, "CT": 1, **dict.fromkeys(ANSWERS, 1)}, found
    for answer in client(pacs.url).retrieve_study(study):
        if answer.Modality in ANSWERS:
            assert answer.PatientID == film.PatientID
            assert answer.AccessionNumber == film.AccessionNumber
            assert answer.Manufacturer == "cxr-pipeline"
    state = node.state()
    assert state["judged"] == {"ok": 1, "refused": 1, "failed": 0}, state["judged"]
    assert state["received"]["left alone"] == 1, state["received"]
    print("  the film from the side was refused, the CT left alone; neither has an answer")


def killed(pacs, node, count):
    """Films while the node is killed: one set of answers for each."""
    sent = list(films(count, first=1000))
    begun = time.monotonic()
    done = len(pacs.instances(Modality="SR"))
    assert set(send(pacs.dicom, *sent, title="ORTHANC")) == {0}
    wait(lambda: len(pacs.instances(Modality="SR")) >= done + count // 4, 600, "the answers do not come")
    node.kill()
    there = len(pacs.instances(Modality="SR")) - done
    print(f"{count} films: the node was killed after {there} answers")
    time.sleep(1)
    node.start()
    wait(lambda: len(pacs.instances(Modality="SR")) >= done + count, 1800, "the answers are not complete")
    wait(lambda: node.state()["waiting"] == 0 and not node.state()["destinations"][0]["waiting"], 300, "films wait")
    seconds = time.monotonic() - begun
    time.sleep(2)  # for what must not come
    wrong = [str(one.StudyInstanceUID) for one in sent if modalities(pacs, one.StudyInstanceUID) != ONCE]
    assert not wrong, (len(wrong), modalities(pacs, wrong[0]))
    print(f"  started again: {count} films have their answers, none twice; {seconds:.0f} s with Orthanc and the kill")


ONCE = Counter({"DX": 1, **dict.fromkeys(ANSWERS, 1)})


def checked(out):
    """Every answer through dciodvfy; how many there are."""
    files = sorted((out / "dicom").glob("*.dcm"))
    if shutil.which("dciodvfy") is None:
        print("dciodvfy is not installed (Debian's package dicom3tools): answers were not checked by it")
        return len(files)
    wrong = {}
    for file in files:
        said = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, errors="replace")
        errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
        if errors:
            wrong[file.name] = errors[:3]
    assert not wrong, (len(wrong), next(iter(wrong.items())))
    print(f"dciodvfy finds no error in {len(files)} answers")
    return len(files)


def throughput(work, count):
    """Films a second of the node, and of a run on the same films; the share."""
    sent = list(films(count, first=5000))
    folder = work / "films"
    folder.mkdir()
    for number, film in enumerate(sent):
        (folder / f"{number:04}.dcm").write_bytes(as_bytes(film))
    command = [sys.executable, "-m", "cxr_pipeline", "run", str(folder), "--out", str(work / "run"), "--no-report"]
    subprocess.run([*command, "--outputs", OUTPUTS], check=True, capture_output=True)
    by_run = count / json.loads((work / "run" / "run.json").read_text())["seconds"]["total"]
    node = NodeProcess(work / "node", orthanc.free_port()).start()
    try:
        begun = time.monotonic()
        half = len(sent) // 2
        for part in (sent[:half], sent[half:]):
            assert set(send(node.port, *part)) == {0}
        wait(lambda: node.state()["judged"]["ok"] == count, 1800, "not all films were judged")
        by_node = count / (time.monotonic() - begun)
    finally:
        node.stop()
    print(f"{count} films of {SIZE} px: node {by_node:.2f} a second, run {by_run:.2f}: {by_node / by_run:.0%}")
    return by_node / by_run


def demo(work, *, count, measured):
    """All of it, in the folder `work`."""
    port = orthanc.free_port()
    with orthanc.running(
        work / "orthanc", modalities={"cxr": ["CXR", "127.0.0.1", port]}, lua=RULE, heartbeat=1
    ) as pacs:
        node = NodeProcess(work / "results", port, [f"ORTHANC@127.0.0.1:{pacs.dicom}"]).start()
        try:
            one_study(pacs, node)
            killed(pacs, node, count)
        finally:
            node.stop()
    assert checked(work / "results") == 4 * (count + 1)
    share = throughput(work, measured) if measured else None
    return share


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=200, help="films while the node is killed")
    parser.add_argument("--measured", type=int, default=100, help="films for the throughput; 0 leaves it out")
    asked = parser.parse_args()
    why = orthanc.missing()
    if why:
        print(f"Not shown: {why}.")
        return 0
    with tempfile.TemporaryDirectory(prefix="cxr-demo-") as folder:
        share = demo(Path(folder), count=asked.films, measured=asked.measured)
    return 0 if share is None or share >= 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
