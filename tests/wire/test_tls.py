"""TLS and client certificates on both gRPC listeners."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from inferd.config import ServerConfig
from inferd.errors import StartupError
from inferd.server.options import check_tls
from inferd.server.tls import Certificates, server_credentials
from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import collect, make_generate
from inferd.v1 import admin_pb2
from inferd.v1.admin_pb2_grpc import AdminServiceStub
from inferd.v1.inference_pb2_grpc import InferenceServiceStub


@dataclass(frozen=True)
class Authority:
    folder: Path
    ca: trustme.CA

    @property
    def root(self) -> bytes:
        return self.ca.cert_pem.bytes()

    def files(self, name: str = "localhost") -> dict[str, str]:
        """Options with a certificate of this authority."""
        issued = self.ca.issue_cert(name, "127.0.0.1")
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        issued.private_key_pem.write_to_path(key)
        cert.unlink(missing_ok=True)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(cert, append=True)
        self.ca.cert_pem.write_to_path(self.folder / "ca.crt")
        return {"tls_cert": str(cert), "tls_key": str(key)}

    def credentials(self, *, with_certificate: bool = False) -> grpc.ChannelCredentials:
        if not with_certificate:
            return grpc.ssl_channel_credentials(self.root)
        issued = self.ca.issue_cert("client.test")
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return grpc.ssl_channel_credentials(self.root, issued.private_key_pem.bytes(), chain)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, trustme.CA())


def generates(address: str, credentials: grpc.ChannelCredentials) -> bool:
    with grpc.secure_channel(address, credentials) as channel:
        call = InferenceServiceStub(channel).Generate(make_generate(), timeout=5)
        try:
            return bool(collect(call))
        except grpc.RpcError:
            return call.code() is not grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def started() -> Iterator[Any]:
    running: list[DaemonProcess] = []

    def start(**server: Any) -> DaemonProcess:
        running.append(DaemonProcess(fake_config(server=server)))
        return running[-1].wait_ready()

    yield start
    for daemon in running:
        daemon.__exit__()


def test_tls_on_both_listeners(authority: Authority, started: Any) -> None:
    daemon = started(**authority.files(), admin_listen="127.0.0.1:0")
    assert generates(daemon.address, authority.credentials())
    assert not generates(daemon.address, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes()))
    with grpc.insecure_channel(daemon.address) as plain, pytest.raises(grpc.RpcError):
        list(InferenceServiceStub(plain).Generate(make_generate(), timeout=5))
    with grpc.secure_channel(daemon.admin, authority.credentials()) as admin:
        assert list(AdminServiceStub(admin).WatchLoad(admin_pb2.WatchLoadRequest(once=True), timeout=5))


def test_client_certificates(authority: Authority, started: Any) -> None:
    files = authority.files()
    daemon = started(**files, tls_client_ca=str(authority.folder / "ca.crt"))
    assert not generates(daemon.address, authority.credentials())
    assert generates(daemon.address, authority.credentials(with_certificate=True))
    stranger = trustme.CA().issue_cert("client.test")
    chain = b"".join(blob.bytes() for blob in stranger.cert_chain_pems)
    assert not generates(
        daemon.address, grpc.ssl_channel_credentials(authority.root, stranger.private_key_pem.bytes(), chain)
    )


def test_a_renewed_certificate_is_taken_without_a_restart(authority: Authority, started: Any) -> None:
    files = authority.files()
    daemon = started(**files)
    assert generates(daemon.address, authority.credentials())
    successor = Authority(authority.folder, trustme.CA())
    successor.files()
    assert generates(daemon.address, successor.credentials())
    assert not generates(daemon.address, authority.credentials())


def test_a_broken_renewal_keeps_the_old_certificate(authority: Authority) -> None:
    files = authority.files()
    certificates = Certificates(files["tls_cert"], files["tls_key"], None)
    certificates.read()
    assert certificates.renewed() is None
    Path(files["tls_key"]).write_text("nonsense")
    os.utime(files["tls_key"], ns=(1, 1))
    assert certificates.renewed() is None
    authority.files()
    assert certificates.renewed() is not None


def test_options_that_make_no_sense(authority: Authority) -> None:
    files = authority.files()
    for server in (
        ServerConfig(tls_cert=files["tls_cert"]),
        ServerConfig(tls_client_ca="x"),
        ServerConfig(tls_key=files["tls_key"], tls_client_ca="x"),
    ):
        with pytest.raises(StartupError, match="tls"):
            check_tls(server)
    with pytest.raises(StartupError, match="nowhere"):
        server_credentials(ServerConfig(tls_cert="nowhere", tls_key="nowhere"))
    with pytest.raises(StartupError, match="TLS files"):
        server_credentials(ServerConfig(tls_cert=files["tls_key"], tls_key=files["tls_cert"]))
