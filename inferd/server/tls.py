"""TLS of the gRPC listeners. Renewed files are read by themselves: every handshake looks at their times."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import grpc

from inferd.config import ServerConfig
from inferd.errors import StartupError
from inferd.server.options import check_tls

logger = logging.getLogger("inferd.server")

Configuration = grpc.ServerCertificateConfiguration


class Certificates:
    """The files, and what was last read of them."""

    def __init__(self, cert: str, key: str, client_ca: str | None) -> None:
        self._paths = [Path(path) for path in (cert, key, client_ca) if path is not None]
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._times: list[int] = []

    def read(self) -> Configuration:
        """Raises OSError, and ssl.SSLError for files that are no pair of certificate and key."""
        times = [path.stat().st_mtime_ns for path in self._paths]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._cert, self._key)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
        roots = Path(self._client_ca).read_bytes() if self._client_ca else None
        pair = (Path(self._key).read_bytes(), Path(self._cert).read_bytes())
        self._times = times
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def renewed(self) -> Configuration | None:
        """The new configuration once the files have changed; None while they have not, or make no sense."""
        try:
            if [path.stat().st_mtime_ns for path in self._paths] == self._times:
                return None
            fresh = self.read()
        except (OSError, ssl.SSLError) as error:
            logger.error("the renewed certificate cannot be used, the old one stays: %s", error)
            return None
        logger.info("the certificate was renewed")
        return fresh


def server_credentials(server: ServerConfig) -> grpc.ServerCredentials | None:
    """None without TLS. Raises StartupError for files that cannot be used."""
    check_tls(server)
    if server.tls_cert is None or server.tls_key is None:
        return None
    certificates = Certificates(server.tls_cert, server.tls_key, server.tls_client_ca)
    try:
        first = certificates.read()
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"TLS files {server.tls_cert}, {server.tls_key}: {error}") from None
    return grpc.dynamic_ssl_server_credentials(
        first,
        certificates.renewed,  # type: ignore[arg-type]  # the stubs do not know that None keeps the old one
        require_client_authentication=server.tls_client_ca is not None,
    )
