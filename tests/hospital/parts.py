"""What the tests of the node share: DICOM films, an output that stands for answers, a node, and a peer.

Run as a script it is a node to kill: ``python -m tests.hospital.parts OUT PORT PEER DELAY``; PEER is AET@host:port.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from cxr_pipeline.dicom.destinations import destination
from cxr_pipeline.dicom.listen import Listener, ListenSettings
from cxr_pipeline.dicom.node import NodeSettings
from cxr_pipeline.results.outputs import chosen
from cxr_pipeline.results.outputs.base import Output
from cxr_pipeline.results.reader import rows
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.runner import identity_of
from tests.pipeline import fake_chain
from tests.pipeline.fake_chain import film

DX, CT, SECONDARY = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"


def uid(number):
    """The same UID for the same number."""
    return generate_uid(entropy_srcs=["hospital", str(number)])


def dicom_film(seed=0, sop_class=DX, **tags):
    """A DX film of the chain without networks, as a data set; `tags` replace or, with None, remove."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop_class
    out = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    out.SOPClassUID, out.SOPInstanceUID = sop_class, uid(seed)
    out.StudyInstanceUID, out.SeriesInstanceUID = uid(f"study {seed}"), uid(f"series {seed}")
    out.PatientID, out.PatientName, out.StudyDate, out.AccessionNumber = f"P{seed}", "Test^Film", "20240102", f"A{seed}"
    out.PatientBirthDate, out.PatientSex, out.StudyTime, out.StudyID = "19800101", "O", "101500", "1"
    out.ReferringPhysicianName, out.SeriesNumber, out.InstanceNumber = "", 1, 1
    out.Modality, out.BodyPartExamined, out.ViewPosition = "DX", "CHEST", "PA"
    out.PhotometricInterpretation, out.SamplesPerPixel, out.PixelRepresentation = "MONOCHROME2", 1, 0
    pixels = film(seed if isinstance(seed, int) else 0)
    out.Rows, out.Columns = pixels.shape
    out.BitsAllocated, out.BitsStored, out.HighBit = 8, 8, 7
    out.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(out, name)
        else:
            setattr(out, name, value)
    meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    return pydicom.dcmread(io.BytesIO(as_bytes(out)))


def as_bytes(dataset):
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return file.getvalue()


def answer_to(film):
    """The UID of the answer to the film of that id."""
    return uid(f"answer to {film}")


class Answers(Output):
    """A small object for each judged film, that names the film, in place of those of the output `dicom`."""

    name = "dicom"
    about = "for tests"
    suffixes = (".sr.dcm",)

    def files(self, film):
        if not film.record.ok:
            return {}
        answer = dicom_film(0, SECONDARY, Modality="OT", ConversionType="WSD", Manufacturer="cxr-pipeline")
        answer.SOPInstanceUID = answer.file_meta.MediaStorageSOPInstanceUID = answer_to(film.id)
        answer.ImageComments = film.id
        return {".sr.dcm": as_bytes(answer)}


def outputs():
    return (*chosen("masks"), Answers())


def opened(out, peers=(), chain=None, first=0.05, port=0, **settings):
    """A listener that does not listen yet."""
    stages = chain or fake_chain.chain()
    how = {name: settings.pop(name) for name in ("keep_films", "peers_known", "workers") if name in settings}
    how["peers"] = how.pop("peers_known", ())
    how = {"workers": 2, **how}
    wanted = ListenSettings(out, NodeSettings(port=port, **settings), outputs(), batch_size=4, **how)
    places = [destination(one, "CXR") for one in peers]
    listener = Listener(Chain(stages, identity_of(stages, about={"unchecked": ""}), {}), wanted, places)
    for sender in listener.senders:
        sender._first = first
    return listener


@contextmanager
def node(out, peers=(), chain=None, patience=60.0, listener=None, **settings):
    """A node at work in a thread of this process; gives the listener, with its `port`.

    `listener` listens already: with it, only the work is begun.
    """
    if listener is None:
        listener = opened(out, peers, chain, **settings)
        listener.port = listener.start()
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        yield listener
    finally:
        listener.stop()
        listener.spool.wake()
        thread.join(patience)
        assert not thread.is_alive()


class Inbox:
    """A DICOM peer that keeps what it is sent: `got` are the SOP Instance UIDs in the order of their coming."""

    def __init__(self, title="PACS", status=lambda uid: 0):
        self.got, self.about, self.events, self.title, self._status = [], {}, [], title, status
        self._ae = AE(title)
        self._ae.maximum_associations = 50
        for context in AllStoragePresentationContexts:
            self._ae.add_supported_context(context.abstract_syntax)
        self._ae.add_supported_context("1.2.840.10008.1.20.1", scu_role=True, scp_role=True)
        self.port = 0

    def start(self, port=0):
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_EVENT_REPORT, self._event)]
        self._server = self._ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port = self._server.socket.getsockname()[1]
        return self

    def stop(self):
        self._server.shutdown()
        self._ae.shutdown()

    def __enter__(self):
        return self.start(self.port)

    def __exit__(self, *_):
        self.stop()

    def __str__(self):
        return f"{self.title}@127.0.0.1:{self.port}"

    def _store(self, event):
        status = self._status(str(event.request.AffectedSOPInstanceUID))
        if status == 0:
            self.got.append(str(event.request.AffectedSOPInstanceUID))
            self.about[self.got[-1]] = str(event.dataset.get("ImageComments", ""))
        return status

    def _event(self, event):
        self.events.append((event.event_type, event.event_information))
        return 0, None


def send(port, *datasets, title="CXR", caller="UNIT", ae=None):
    """Send data sets over one association; the status of each, None where there was no answer."""
    ae = ae or AE(caller)
    for one in datasets:
        if not any(context.abstract_syntax == one.SOPClassUID for context in ae.requested_contexts):
            ae.add_requested_context(one.SOPClassUID, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title=title)
    assert association.is_established
    try:
        return [association.send_c_store(one).get("Status") for one in datasets]
    finally:
        association.release()


def until(what, seconds=60.0):
    """Wait until `what()` is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def rows_of(out):
    """The rows of results.csv by id."""
    return {row["id"]: row for row in rows(out)}


def read(path):
    return pydicom.dcmread(path)


if __name__ == "__main__":
    target, listen_port, peer, delay = sys.argv[1:5]
    slow = fake_chain.chain(delay=float(delay))
    with node(Path(target), [peer] if peer else [], slow, workers=1, associations=30) as one:
        print(one.port, flush=True)
        sys.stdin.read()
