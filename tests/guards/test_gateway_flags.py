"""`inferd up` hands flags to the gateway by name: the gateway must have them, with the same defaults."""

from __future__ import annotations

import pytest
from inferd_gateway.settings import Settings

from inferd.cli.flags import GATEWAY_FLAGS, SHARED_WITH_GATEWAY, Flag


@pytest.mark.parametrize("flag", GATEWAY_FLAGS, ids=lambda flag: flag.name)
def test_the_gateway_has_the_flag_with_our_default(flag: Flag) -> None:
    assert getattr(Settings(), flag.name.replace("-", "_")) == flag.default


@pytest.mark.parametrize("name", SHARED_WITH_GATEWAY.values())
def test_the_gateway_has_the_shared_flag(name: str) -> None:
    assert hasattr(Settings(), name.replace("-", "_"))


def test_the_gateway_takes_keys_from_the_environment_that_up_sets() -> None:
    assert {"api_key", "backend_api_key"} <= set(Settings.__dataclass_fields__)
