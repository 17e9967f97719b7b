"""Files that are nearly films, of every format: each is read or named, in time, within memory, and the run goes on.

CXR_MUTATIONS says how many of each format; the full number, 10,000, takes hours.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.run.isolation import BYTES, IsolatedReader
from tests.attack.mutants import films, mutants

COUNT = int(os.environ.get("CXR_MUTATIONS", "40"))
SECONDS = 20.0  # for a film of 72x96 pixels, on a busy machine
FILMS = films()


@pytest.fixture(scope="module")
def reader():
    made = IsolatedReader(seconds=SECONDS)
    yield made
    made.close()


def peak(reader: IsolatedReader) -> int:
    """Bytes that the helpers held at the most; 0 where the system does not say."""
    most = 0
    for helper in reader._all:
        try:
            status = Path(f"/proc/{helper._process.pid}/status").read_text()
        except OSError:
            continue
        most = max([most, *(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))])
    return most


@pytest.mark.timeout(0 if COUNT > 1000 else 600)
@pytest.mark.parametrize("kind", sorted(FILMS))
def test_mutated_files_cost_themselves_alone(kind, reader, tmp_path, record_property):
    others = [FILMS[name] for name in sorted(FILMS)]
    path, codes, slowest = tmp_path / "film", {}, 0.0
    for number, content in enumerate(mutants(FILMS[kind], COUNT, sorted(FILMS).index(kind), others)):
        path.write_bytes(content)
        began = time.monotonic()
        try:
            film = reader(path)
            code = "read"
            assert film.pixels.dtype == np.float32
            assert 0 <= film.pixels.min() <= film.pixels.max() <= 1
        except RadiographError as error:
            code = error.code
            assert str(error)
        slowest = max(slowest, time.monotonic() - began)
        if code in ("decoder_crashed", "too_slow"):  # kept, to look at
            folder = os.environ.get("CXR_MUTANTS_KEPT")
            if folder:
                Path(folder, f"{kind}-{number}").write_bytes(content)
        codes[code] = codes.get(code, 0) + 1
    record_property("codes", codes)
    print(kind, COUNT, codes, f"slowest {slowest:.2f} s, peak {peak(reader) / 1e6:.0f} MB")
    assert sum(codes.values()) == COUNT
    assert slowest <= 2 * SECONDS + 5
    assert peak(reader) <= BYTES + 500_000_000
