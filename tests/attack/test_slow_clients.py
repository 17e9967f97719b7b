"""Slow and half-open clients beside honest ones. Everything on this machine, bounded in time and number."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

import httpx2 as httpx

from cxr_pipeline.web import patience, security
from tests.pipeline.web_server import KEY, Gate, fake, listening, one, png, refused, serving

HALF = b"POST /v1/analyze HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def connect(address, first=b""):
    connection = socket.create_connection(("127.0.0.1", port_of(address)), timeout=30)
    connection.sendall(first)
    return connection


def upload(first=b"--b\r\n", length=1_000_000):
    start = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
    return f"{start}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + first


def closed(connection):
    """Whether the other side has closed a connection; waits at most its time-out."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_520_half_sent_headers_keep_no_honest_client_out():
    with listening() as address, ExitStack() as held:
        for _ in range(520):
            held.enter_context(connect(address, HALF))
        began = time.monotonic()
        with httpx.Client(timeout=30) as client:
            for number in range(5):
                answer = client.post(f"{address}/v1/analyze", files=one(png(number)))
                assert answer.status_code == 200, answer.text
        assert time.monotonic() - began < 15


CLIENTS, PACE = int(os.environ.get("CXR_CLIENTS", "12")), float(os.environ.get("CXR_PACE", "0.3"))  # full: 50, 1.2


def honest(address):
    """The seconds that each of some clients waits for its answer, one after the other at an even pace."""
    waited = []
    with httpx.Client(timeout=30) as client:
        for number in range(CLIENTS):
            began = time.monotonic()
            answer = client.post(f"{address}/v1/analyze", files=one(png(number)))
            waited.append(time.monotonic() - began)
            assert answer.status_code == 200, answer.text
            time.sleep(max(0.0, PACE - waited[-1]))
    return sorted(waited)


def test_one_slow_attacker_costs_honest_clients_no_time():
    with listening() as address, ExitStack() as held:
        honest(address)  # helpers start
        alone = honest(address)
        stop = threading.Event()

        def attack():
            """Half headers and uploads of a byte now and then, as many as one machine keeps open."""
            lines = [connect(address, (HALF, upload())[number % 2]) for number in range(200)]
            while not stop.wait(0.5):
                for line in lines:
                    with suppress(OSError):
                        line.send(b"-")
            for line in lines:
                line.close()

        attacker = threading.Thread(target=attack)
        held.callback(attacker.join)
        held.callback(stop.set)
        attacker.start()
        time.sleep(0.5)
        beside = honest(address)
    late = round(0.95 * (CLIENTS - 1))
    assert beside[late] <= 2 * alone[late] + 0.2, (alone, beside)  # the last: this machine may do other things too


def test_half_a_header_has_a_deadline_that_further_bytes_do_not_move(monkeypatch):
    monkeypatch.setattr(patience, "HEADER_SECONDS", 0.5)
    with listening() as address, connect(address, HALF) as connection:
        until, ended = time.monotonic() + 10, False
        while time.monotonic() < until and not ended:
            try:
                connection.sendall(b"a")
            except OSError:
                ended = True
            time.sleep(0.05)
        assert ended


def test_a_second_half_header_on_one_connection_has_one_too(monkeypatch):
    monkeypatch.setattr(patience, "HEADER_SECONDS", 0.5)
    first = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with listening() as address, connect(address, first + HALF) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert closed(connection)


def test_slow_uploads_hold_no_place_in_the_queue():
    with listening(queue=4) as address, ExitStack() as held:
        for _ in range(40):
            held.enter_context(connect(address, upload()))
        time.sleep(0.3)
        assert httpx.get(f"{address}/healthz").json()["queue"] == 0
        assert httpx.post(f"{address}/v1/analyze", files=one(), timeout=30).status_code == 200


def test_an_upload_below_the_least_rate_is_ended(monkeypatch):
    monkeypatch.setattr(security, "_GRACE", 0.5)
    with listening() as address, connect(address, upload()) as connection:
        stop = threading.Event()

        def drip():
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"-")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = connection.recv(4096)
        stop.set()
        thread.join()
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b"slower than" in answer or b"slower than" in connection.recv(4096)
        assert closed(connection)


def test_a_refused_upload_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(patience, "LINGER", 0.2)
    with listening(api_key=KEY) as address, connect(address, upload()) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        assert closed(connection)


def test_one_address_holds_so_many_connections():
    waiting = patience.Waiting(per_address=3)
    assert [waiting.enter("203.0.113.5") for _ in range(4)] == [True, True, True, False]
    assert waiting.enter("203.0.113.6")
    assert all(waiting.enter("127.0.0.1") for _ in range(10))  # a reverse proxy may be there
    for _ in range(2):
        waiting.leave("203.0.113.5")
    assert waiting.enter("203.0.113.5")


def test_wrong_keys_are_slowed_down_and_the_right_one_is_not():
    guesses = security.Guesses()
    waits = [guesses.wait("203.0.113.5") for _ in range(12)]
    assert waits == sorted(waits)
    assert waits[-1] == security._LONGEST_GUESS
    assert guesses.wait("203.0.113.6") == waits[0]
    with serving(api_key=KEY) as client:
        began = time.monotonic()
        for _ in range(3):
            refused(client.get("/v1/limits", headers={"X-API-Key": "wrong"}), 401, "wrong_key")
        assert time.monotonic() - began > 0.6
        began = time.monotonic()
        assert client.get("/v1/limits", headers={"X-API-Key": KEY}).status_code == 200
        assert time.monotonic() - began < 0.5


def test_a_timeout_of_one_answer_gives_its_place_back():
    gate = Gate()
    with serving(gate.chain, timeout=0.05, queue=1) as client:
        refused(client.post("/v1/analyze", files=one()), 504, "timeout")
        gate.open.set()
        until = time.monotonic() + 30
        while client.get("/healthz").json()["queue"] and time.monotonic() < until:
            time.sleep(0.01)
        assert client.get("/healthz").json() | {"version": ""} == {"status": "ok", "version": "", "queue": 0}


@pytest.mark.parametrize("ends", [SystemExit, MemoryError, KeyboardInterrupt])
def test_what_ends_the_judging_thread_costs_one_film(ends):
    chain = fake()
    stage, calls = chain.stages[0], []
    inner = stage.run

    def run(records):
        calls.append(1)
        if len(calls) == 1:
            raise ends("gone")
        return inner(records)

    stage.run = run
    with serving(chain) as client:
        refused(client.post("/v1/analyze", files=one(png(1))), 500, "internal")
        assert client.post("/v1/analyze", files=one(png(2))).status_code == 200
        assert client.get("/healthz").json()["status"] == "ok"
        assert client.get("/healthz").json()["queue"] == 0


def test_a_disk_that_fails_under_a_deletion_does_not_end_the_thread(monkeypatch):
    from pathlib import Path

    unlink = Path.unlink

    def fails(self, missing_ok=False):
        if "uploads" in self.parts:
            raise OSError(5, "Input/output error")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", fails)
    with serving() as client:
        for number in range(2):
            assert client.post("/v1/analyze", files=one(png(number))).status_code == 200
