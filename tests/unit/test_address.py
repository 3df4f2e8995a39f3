from __future__ import annotations

import pytest

from inferd.address import bare_host, join_address, split_address

PAIRS = [("127.0.0.1", 80, "127.0.0.1:80"), ("::1", 0, "[::1]:0"), ("fe80::1%lo", 65535, "[fe80::1%lo]:65535"),
         ("gpu.test", 1, "gpu.test:1")]  # fmt: skip


@pytest.mark.parametrize(("host", "port", "address"), PAIRS)
def test_there_and_back(host: str, port: int, address: str) -> None:
    assert join_address(host, port) == join_address(bare_host(f"[{host}]"), port) == address
    assert split_address(address) == (host, port)


@pytest.mark.parametrize(
    "address", ["", ":80", "host", "host:", "host:x", "host:65536", "::1:80", "::1", "[]:80", "[::1]"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(address)
