"""Keras starts without a word on stderr, and what others write there while it starts is passed on."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
from cxr_pipeline.models import backend
{before}
print(backend.keras().__name__)
"""


@pytest.mark.slow
def test_tensorflow_says_nothing_of_itself():
    answer = subprocess.run([sys.executable, "-c", CODE.format(before="")], capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("keras\n", "")


def test_what_is_no_noise_is_passed_on(capfd):
    import os

    from cxr_pipeline.models.backend import _without_noise

    lines = [
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
        b"I0000 00:00:1795622183.737918    9110 cudart_stub.cc:31] Could not find cuda drivers\n",
        b"something to know\n",
    ]

    def start():
        with _without_noise():
            for line in lines:
                os.write(2, line)
            raise ImportError

    with pytest.raises(ImportError):
        start()
    assert capfd.readouterr().err == "something to know\n"
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
