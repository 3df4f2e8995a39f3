"""The gateway as a process: where it may listen, HTTPS, TLS to the daemon, and how Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from inferd_gateway.serve import main
from inferd_gateway.settings import Settings, SettingsError, check

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.product import ROOT, free_port, wait_until


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"host": "0.0.0.0", "api_key": ("k",)},
        {"host": "0.0.0.0", "api_key_file": "keys"},
        {"host": "::", "insecure": True},
        {"host": "::", "ssl_certfile": "c", "ssl_keyfile": "k", "ssl_ca_certs": "a"},
        {"backend_tls": True, "backend_ca_certs": "a", "backend_certfile": "c", "backend_keyfile": "k"},
    ],
)
def test_what_may_listen(settings: dict[str, Any]) -> None:
    check(Settings(**settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"host": "example.test", "ssl_certfile": "c", "ssl_keyfile": "k"}, "host"),
        ({"ssl_certfile": "c"}, "ssl-keyfile"),
        ({"ssl_ca_certs": "a"}, "ssl-ca-certs"),
        ({"backend_certfile": "c", "backend_tls": True}, "backend-keyfile"),
        ({"backend_ca_certs": "a"}, "backend-tls"),
        ({"model_alias": ("a",)}, "model-alias"),
        ({"backend": ("::1:50051",)}, "backend"),
    ],
)
def test_what_may_not(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        check(Settings(**settings))


@pytest.mark.parametrize("argv", [["--host=0.0.0.0"], ["--ssl-certfile=nowhere", "--ssl-keyfile=nowhere"]])
def test_a_refused_start_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("inferd-gateway: ")


@contextmanager
def process(*flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gateway'}"}
    command = [sys.executable, "-m", "inferd_gateway", f"--port={port}", *flags]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield running, port
    finally:
        if running.poll() is None:
            running.kill()
            running.communicate()


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_all_of_it_over_ipv6(host: str) -> None:
    with DaemonProcess(fake_config(server={"host": host, "admin_listen": "[::1]:0"})) as daemon:
        daemon.wait_ready()
        assert daemon.admin is not None
        assert daemon.admin.startswith("[::1]:")
        metrics = f"http://[::1]:{daemon.metrics_port}/metrics"
        assert answers(metrics)
        with process(f"--host={host}", f"--backend=[::1]:{daemon.port}") as (_, port):
            wait_until(lambda: answers(f"http://[::1]:{port}/health"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(number: signal.Signals) -> None:
    with process() as (running, port):
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/version"))
        running.send_signal(number)
        errors = running.communicate(timeout=20)[1]
    assert running.returncode == 0
    assert "Traceback" not in errors


def answers(url: str, **options: Any) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False, **options).status_code == 200
    except httpx.TransportError:
        return False


def files_of(authority: trustme.CA, folder: Path, name: str) -> tuple[str, str]:
    """Paths of a certificate chain and its key."""
    issued = authority.issue_cert(name, "127.0.0.1")
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(cert, append=True)
    return str(cert), str(key)


def test_tls_all_the_way(tmp_path: Path) -> None:
    """HTTPS with client certificates before, gRPC with client certificates behind."""
    authority = trustme.CA()
    ca = tmp_path / "ca.crt"
    authority.cert_pem.write_to_path(ca)
    cert, key = files_of(authority, tmp_path, "localhost")
    client_cert, client_key = files_of(authority, tmp_path, "client.test")
    server = {"tls_cert": cert, "tls_key": key, "tls_client_ca": str(ca)}
    with DaemonProcess(fake_config(server=server)) as daemon:
        daemon.wait_ready()
        flags = (
            *(f"--backend=localhost:{daemon.port}", "--backend-tls", f"--backend-ca-certs={ca}"),
            *(f"--backend-certfile={client_cert}", f"--backend-keyfile={client_key}"),
            *(f"--ssl-certfile={cert}", f"--ssl-keyfile={key}", f"--ssl-ca-certs={ca}"),
        )
        with process(*flags) as (_, port):
            trusted = ssl.create_default_context(cafile=str(ca))
            known = ssl.create_default_context(cafile=str(ca))
            known.load_cert_chain(client_cert, client_key)
            url = f"https://localhost:{port}"
            wait_until(lambda: answers(f"{url}/health", verify=known))
            body = {"prompt": "hello", "max_tokens": 4}
            response = httpx.post(f"{url}/v1/completions", json=body, verify=known, timeout=10, trust_env=False)
            assert response.status_code == 200
            assert not answers(f"{url}/health", verify=trusted)
