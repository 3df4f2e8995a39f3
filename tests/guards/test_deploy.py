"""The Dockerfile and the manifests are linted and match the commands they start. Neither is run here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from inferd.cli.arguments import parse
from inferd.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "1.35"
MANIFESTS = sorted((ROOT / "tools" / "kubernetes").glob("*.yaml"))


def documents() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def deployment(name: str) -> dict[str, Any]:
    return next(d for d in documents() if d["kind"] == "Deployment" and d["metadata"]["name"] == name)


def container(name: str) -> dict[str, Any]:
    (only,) = deployment(name)["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(
        [str(hadolint), "--failure-threshold", "style", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("document", documents(), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_manifests_match_the_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_wrong_manifest_does_not() -> None:
    document = json.loads(json.dumps(deployment("inferd")))
    document["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["inferd", "inferd-gateway"])
def test_every_probe_is_there_and_asks_a_port_of_the_container(name: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check = container(name)[probe]
        assert check["grpc"]["port"] == ports["grpc"] if name == "inferd" else check["httpGet"]["port"] in ports


@pytest.mark.parametrize("name", ["inferd", "inferd-gateway"])
def test_selectors_and_grace_fit(name: str) -> None:
    labels = deployment(name)["spec"]["template"]["metadata"]["labels"]
    for document in documents():
        if document["metadata"]["name"] == name:
            selector = document["spec"]["selector"]
            assert selector.get("matchLabels", selector) == labels
    pod = deployment(name)["spec"]["template"]["spec"]
    drain = next(int(text) for word in container(name)["command"] for text in re.findall(r"timeout=(\d+)", word))
    assert pod["terminationGracePeriodSeconds"] >= drain + 10
    assert pod["enableServiceLinks"] is False


def test_the_daemon_understands_its_command_line() -> None:
    program, command, *argv = container("inferd")["command"]
    assert (program, command) == ("inferd", "serve")
    parsed = parse(COMMANDS["serve"], argv)
    ports = {port["name"]: port["containerPort"] for port in container("inferd")["ports"]}
    assert (parsed.get("port"), parsed.get("metrics-port")) == (ports["grpc"], ports["metrics"])


def test_no_stage_is_chosen_by_a_variable_that_some_builders_leave_empty() -> None:
    """buildah 1.28 resolves no default in the name of an earlier stage, so that a plain build would fail."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    used = set(re.findall(r"\$\{([A-Z_]+)", text)) - {"PATH"}
    assert used == set(re.findall(r"^ARG (\w+)=", text, re.MULTILINE))


def test_the_image_starts_as_nobody_special_and_says_whether_it_serves() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .*CMD \["inferd", "health"\]$', text, re.MULTILINE)
    assert re.search(r'^CMD \["inferd", "up", "demo"\]$', text, re.MULTILINE)
    assert "ENTRYPOINT" not in text
