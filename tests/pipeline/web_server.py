"""A server for tests: over the chain without networks, in this process or on a port of its own; and films to send."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from contextlib import contextmanager

import cv2
import uvicorn
from fastapi.testclient import TestClient

from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.runner import identity_of
from cxr_pipeline.web.app import create_app
from cxr_pipeline.web.server import config, listen
from cxr_pipeline.web.settings import Settings
from tests.pipeline import fake_chain
from tests.pipeline.fake_chain import film

KEY = "0123456789abcdefSECRET"


def fake(**options):
    """A chain without networks; `options` as `fake_chain.chain` takes them."""
    stages = fake_chain.chain(**options)
    return Chain(stages, identity_of(stages), {})


@contextmanager
def listening(chain=None, **settings):
    """A server on a free port of this machine; gives its address."""
    wanted = Settings(port=0, **settings)
    with listen(wanted) as socket:
        server = uvicorn.Server(config(wanted, chain or fake()))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def png(seed=0, **options):
    return cv2.imencode(".png", film(seed, **options))[1].tobytes()


def one(data=None, name="a.png"):
    return {"file": (name, png() if data is None else data)}


def several(*films):
    return [("file", (name, data)) for name, data in films]


def serving(chain=None, base_url="http://localhost", **settings):
    return TestClient(create_app(Settings(**settings), chain or fake()), base_url=base_url)


def done(client, job, **options):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        fields = client.get(f"/v1/jobs/{job}", **options).json()
        if fields["status"] == "done":
            return fields
        time.sleep(0.01)
    raise AssertionError(fields)


def refused(answer, status, code):
    assert answer.status_code == status, answer.text
    fields = answer.json()
    assert set(fields) == {"code", "message"}
    assert fields["code"] == code
    assert len(fields["message"].split()) > 4
    return fields["message"]


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def bomb():
    """A PNG of 60000 x 60000 by its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(64)


def pages(count):
    """A TIFF of several pages."""
    from PIL import Image

    file, images = io.BytesIO(), [Image.fromarray(film(seed)) for seed in range(count)]
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:])
    return file.getvalue()


def dicom(syntax="1.2.840.10008.1.2.1", rows=72, data=None, modality="DX"):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    out = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    out.PatientName, out.Modality, out.PhotometricInterpretation = "Doe^Jane", modality, "MONOCHROME2"
    out.Rows, out.Columns, out.BitsAllocated, out.BitsStored, out.HighBit = rows, 96, 8, 8, 7
    out.SamplesPerPixel, out.PixelRepresentation = 1, 0
    out.PixelData = film(5).tobytes() if data is None else data
    file = io.BytesIO()
    out.save_as(file, enforce_file_format=True)
    return file.getvalue()


class Gate:
    """Holds the chain until it is opened."""

    def __init__(self):
        self.open, self.entered = threading.Event(), threading.Event()
        self.chain = fake()
        inner = self.chain.stages[0].run

        def run(records):
            self.entered.set()
            assert self.open.wait(60)
            return inner(records)

        self.chain.stages[0].run = run
