"""The gRPC channel to a daemon: limits, keepalive, TLS."""

from __future__ import annotations

from pathlib import Path

import grpc

from inferd_gateway.settings import Settings, SettingsError

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A small window, so that a client that stops reading stops its generation and not our memory.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
)
# A Unix socket has no name that could be an authority. With TLS the name is what the certificate is checked against.
PLAINTEXT_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.default_authority", "localhost"))


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=PLAINTEXT_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)


def channel_credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """None without TLS. Raises SettingsError for files that cannot be read."""
    if not settings.backend_tls:
        return None
    roots, key, chain = (
        read(name, path)
        for name, path in (
            ("backend-ca-certs", settings.backend_ca_certs),
            ("backend-keyfile", settings.backend_keyfile),
            ("backend-certfile", settings.backend_certfile),
        )
    )
    return grpc.ssl_channel_credentials(roots, key, chain)


def read(name: str, path: str | None) -> bytes | None:
    try:
        return Path(path).read_bytes() if path is not None else None
    except OSError as error:
        raise SettingsError(f"{name}: {error}") from None
