"""Orthanc with its DICOMweb plug-in, on loopback, with a temporary configuration; a test is skipped without it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

PLUGINS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")
USER, PASSWORD = "demo", "demo-of-this-machine"


def missing():
    """Why Orthanc cannot be started here; empty where it can."""
    if binary() is None:
        return "Orthanc is not installed (Debian's package orthanc)"
    if plugin() is None:
        return "Orthanc has no DICOMweb plug-in here (Debian's package orthanc-dicomweb)"
    return ""


def binary():
    return next((found for name in ("Orthanc", "/usr/sbin/Orthanc") if (found := shutil.which(name))), None)


def plugin():
    found = [path for folder in PLUGINS for path in sorted(Path(folder).glob("libOrthancDicomWeb.so*"))]
    return found[0] if found else None


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Orthanc:
    """A running Orthanc: where it listens, and what it holds.

    Attributes:
        http, dicom: its ports.
        url: of its DICOMweb service.
    """

    def __init__(self, folder, *, modalities=None, lua=None, heartbeat=0, secret=False, title="ORTHANC"):
        self.folder, self.http, self.dicom, self.title = Path(folder), free_port(), free_port(), title
        self.secret = secret
        self.url = f"http://127.0.0.1:{self.http}/dicom-web"
        self.config = {
            "Name": title,
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "DicomAet": title,
            "DicomPort": self.dicom,
            "DicomServerEnabled": True,
            "HttpPort": self.http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": secret,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomAlwaysAllowStore": True,
            "DicomModalities": modalities or {},
            "StableAge": 1,
            "Plugins": [str(plugin())],
            "LuaScripts": [str(lua)] if lua else [],
            "LuaHeartBeatPeriod": heartbeat,
            "JobsHistorySize": 10_000,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "HttpsVerifyPeers": False,
            "ConcurrentJobs": 4,
            "HttpThreadsCount": 8,
        }

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(self.config))
        self.log = open(self.folder / "log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen([binary(), str(path)], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                self.get("/system")
                return self
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.1)
        raise AssertionError("Orthanc did not start within a minute")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def headers(self):
        import base64

        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return {"Authorization": f"Basic {basic}"} if self.secret else {}

    def ask(self, path, data=None, method=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, self.headers(), method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path):
        return json.loads(self.ask(path))

    def upload(self, data):
        """Store an object, given as the bytes of its file."""
        return json.loads(self.ask("/instances", data, "POST"))

    def instances(self, **tags):
        """SOP Instance UIDs of what it holds, of those whose tags match."""
        query = {"Level": "Instance", "Query": {name: value for name, value in tags.items()}, "Expand": True}
        found = json.loads(self.ask("/tools/find", json.dumps(query).encode(), "POST"))
        return [one["MainDicomTags"]["SOPInstanceUID"] for one in found]

    def file(self, uid):
        """The bytes of the object with that SOP Instance UID."""
        found = json.loads(self.ask("/tools/lookup", uid.encode(), "POST"))
        return self.ask(f"/instances/{next(one['ID'] for one in found if one['Type'] == 'Instance')}/file")


@contextmanager
def running(folder, **settings):
    one = Orthanc(folder, **settings)
    one.start()
    try:
        yield one
    finally:
        one.stop()
