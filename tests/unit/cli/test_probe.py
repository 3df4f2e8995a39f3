"""Probes against a real health server and a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from inferd.cli.main import main
from inferd.cli.probe import first_model, grpc_answers, grpc_serves, until

SERVICE = "inferd.v1.InferenceService"


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def daemon(servicer: health.HealthServicer) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_starting_daemon_answers_and_a_ready_one_serves(daemon: str, servicer: health.HealthServicer) -> None:
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    assert grpc_answers(daemon)
    assert not grpc_serves(daemon)
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    assert grpc_serves(daemon)


def test_health_command_prints_the_status(
    daemon: str, servicer: health.HealthServicer, capsys: pytest.CaptureFixture[str]
) -> None:
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main(["health", "--backend", daemon]) == 1
    assert capsys.readouterr().err == f"{daemon} {SERVICE}: NOT_SERVING\n"
    assert main(["health", "--backend", daemon, "--service", ""]) == 0
    assert capsys.readouterr().out == f"{daemon} process: SERVING\n"
    assert main(["health", "--backend", daemon, "--service", "nobody"]) == 1
    assert "NOT_FOUND" in capsys.readouterr().err


def test_nobody_answers(free_port: int) -> None:
    assert not grpc_answers(f"127.0.0.1:{free_port}")
    assert first_model(f"http://127.0.0.1:{free_port}", None) is None


class Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer key"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "tiny"}]} if allowed else {}).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_the_first_model_is_asked_for_with_the_key() -> None:
    with HTTPServer(("127.0.0.1", 0), Models) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert first_model(url, "key") == "tiny"
        assert first_model(url, None) is None
        server.shutdown()
        thread.join()


def test_until_asks_again() -> None:
    answers = iter([None, "", "yes", "no"])
    assert asyncio.run(until(lambda: next(answers))) == "yes"
