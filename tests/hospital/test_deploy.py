"""The examples for deployment are sound: their commands parse, their settings are those that the programs know."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cxr_pipeline.cli.main import cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"


def parsed(words):
    """The options of a command line, as click understands them; without a run."""
    name, *arguments = words
    return cli.commands[name].make_context(name, list(arguments)).params


def said_by(*words):
    """Exit code and message of a command that ends before any weights are loaded."""
    from click.testing import CliRunner

    result = CliRunner().invoke(cli, list(words))
    return result.exit_code, f"{result.output} {result.exception}"


def test_the_containers_listen_to_each_other_and_to_this_machine_alone():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    node = parsed([services["node"]["entrypoint"][1], *services["node"]["command"]])
    orthanc = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text())
    title, host, port = orthanc["DicomModalities"]["cxr"]
    assert (title, host, port) == (node["ae_title"], "node", node["port"])
    assert node["send_to"] == (f"{orthanc['DicomAet']}@orthanc:{orthanc['DicomPort']}",)
    assert node["bind"] == "0.0.0.0"
    assert node["allow"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for source in (one.split(":")[0] for one in service.get("volumes", ())):
            assert source in compose["volumes"] or (DEPLOY / source).exists(), source
    docker = (ROOT / "Dockerfile").read_text()
    assert "/results" in docker
    locks = re.findall(r"--requirement (\S+)", docker)
    installed = "".join((ROOT / lock).read_text() for lock in locks)
    for package in ("pynetdicom", "highdicom", "dicomweb-client", "uvicorn", "prometheus-client"):
        assert f"\n{package}==" in installed, package


def test_the_service_of_systemd_calls_the_command_as_it_is():
    unit = (DEPLOY / "cxr-listen.service").read_text()
    words = shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1])
    assert words[0].endswith("/pipeline")
    options = parsed(words[1:])
    assert options["send_to"] == options["allow"]


def test_the_rule_forwards_to_the_node_by_its_default_title_and_port():
    rule = (DEPLOY / "orthanc" / "forward.lua").read_text()
    defaults = parsed(["listen", "--out", "x"])
    assert f"""["{defaults["ae_title"]}", "127.0.0.1", {defaults["port"]}]""" in rule
    from cxr_pipeline.dicom.objects import CR, DX

    assert set(re.findall(r"\['(1\.2\.840[\d.]+)'\] = true", rule)) == {CR, DX}


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_nginx_takes_its_example(tmp_path):
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=films.example.org -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    site = (DEPLOY / "nginx.conf").read_text()
    site = site.replace("/etc/ssl/films.pem", f"{tmp_path}/cert.pem").replace(
        "/etc/ssl/films.key", f"{tmp_path}/key.pem"
    )
    (tmp_path / "site.conf").write_text(site)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ access_log off; include {tmp_path}/site.conf; }}\n"
    )
    said = subprocess.run(["nginx", "-t", "-c", str(tmp_path / "nginx.conf")], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bind", "0.0.0.0"], "--allow"),
        (["--allow", "A@b:c"], "AET@host:port"),
        (["--send-to", "PACS"], "--send-to reads AET@host:port"),
        (["--send-to", "https://user:secret@pacs/x"], "CXR_DICOMWEB_AUTH"),
        (["--ae-title", "a" * 17], "16 characters"),
        (["--http", "0", "--http-host", "0.0.0.0"], "API key"),
        (["--outputs", "nonsense"], "no output is called"),
        (["--outputs", "masks", "--send-to", "PACS@host:104"], "add dicom"),
    ],
)
def test_a_node_that_cannot_work_is_refused_before_weights_are_loaded(tmp_path, monkeypatch, words, said):
    pytest.importorskip("pynetdicom")
    monkeypatch.delenv("CXR_API_KEY", raising=False)
    monkeypatch.setattr("cxr_pipeline.cli.hospital._opened", None)
    code, text = said_by("listen", "--out", str(tmp_path / "out"), *words)
    assert code != 0
    assert said in text
    assert not (tmp_path / "out").exists()


def test_a_run_without_films_is_refused_before_weights_are_loaded(tmp_path):
    for words, said in (([], "Missing argument"), (["--from", "ftp://pacs"], "dicomweb:https")):
        code, text = said_by("run", "--out", str(tmp_path / "out"), *words)
        assert code != 0
        assert said in text
