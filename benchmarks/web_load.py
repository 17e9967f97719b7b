"""Many clients at once on `pipeline serve`: is every film answered, by its own answer, and how fast.

    python benchmarks/web_load.py                          # 50 clients for a minute, on a server of its own
    python benchmarks/web_load.py --address http://127.0.0.1:8000 --clients 20 --seconds 10

Every client sends films of its own, one after the other, and holds the answer's hash to the film. Told to come back
(429), it does, after the seconds that it is told. A film counts as lost when its connection breaks, its answer is no
200, or it is the answer of another film. Needs nothing beside the package and its extra [web].
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent


def load(address: str, films: list[bytes], clients: int, seconds: float, key: str = "") -> dict:
    """Figures: films answered, lost (by reason), turned away and sent again, seconds of an answer, films per second."""
    times: list[float] = []
    counts: Counter = Counter()
    reasons: Counter = Counter()
    guard = threading.Lock()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        turn = number
        while time.monotonic() < end:
            film = films[turn % len(films)]
            turn += clients
            begun = time.monotonic()
            try:
                away = post(address, film, key)
                reason = ""
            except Exception as error:
                away, reason = 0, f"{type(error).__name__}: {error}"
            with guard:
                counts["turned away"] += away
                counts["lost" if reason else "answered"] += 1
                if reason:
                    reasons[reason] += 1
                else:
                    times.append(time.monotonic() - begun)

    begun = time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    times.sort()
    at = {name: round(times[min(len(times) - 1, int(share * len(times)))], 3) if times else None for name, share in
          (("median", 0.5), ("p95", 0.95), ("max", 1.0))}  # fmt: skip
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "answered": counts["answered"],
        "lost": counts["lost"],
        "reasons": dict(reasons),
        "turned_away_and_sent_again": counts["turned away"],
        "films_a_second": round(counts["answered"] / took, 1),
        "seconds_an_answer": at,
    }


def post(address: str, film: bytes, key: str) -> int:
    """Send a film until it is taken; returns how often it was turned away.

    Raises:
        RuntimeError: another answer than that film's.
        OSError: the connection broke.
    """
    mark = "-----------------cxr"
    start = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="film.png"\r\n\r\n'
    body = start.encode() + film + f"\r\n--{mark}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"} | ({"X-API-Key": key} if key else {})
    place = urlsplit(address)
    away = 0
    while True:
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=300)
        try:
            connection.request("POST", "/v1/analyze", body, headers)
            answer = connection.getresponse()
            fields = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status == 429:
            away += 1
            time.sleep(float(answer.headers["Retry-After"]))
            continue
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}, {fields.get('code')}")
        if fields["sha256"] != hashlib.sha256(film).hexdigest():
            raise RuntimeError("the answer of another film")
        return away


@contextmanager
def server() -> Iterator[str]:
    """`pipeline serve` on a free port; gives its address."""
    command = [sys.executable, "-m", "cxr_pipeline.cli.main", "serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        found = None
        while found is None:
            line = process.stderr.readline()
            if not line:
                raise SystemExit("the server did not start")
            found = re.search(r"http://\S+:\d+", line)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or its log would fill the pipe
        wait(found.group())
        yield found.group()
    finally:
        process.terminate()
        process.wait(60)


def wait(address: str) -> None:
    """Until the server answers."""
    place = urlsplit(address)
    for _ in range(600):
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise SystemExit(f"{address} does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a server that runs; by default one is started")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    from cxr_pipeline.data.synthetic import write_samples

    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder), max(12, given.clients))
        films = [path.read_bytes() for path in sorted((Path(folder) / "images").iterdir())]
    key = os.environ.get("CXR_API_KEY", "")
    if given.address:
        figures = load(given.address, films, given.clients, given.seconds, key)
    else:
        with server() as address:
            figures = load(address, films, given.clients, given.seconds, key)
    print(json.dumps({**figures, "load_average": [round(one, 1) for one in os.getloadavg()]}, indent=2))
    sys.exit(1 if figures["lost"] else 0)


if __name__ == "__main__":
    main()
