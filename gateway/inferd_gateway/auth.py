"""API keys: kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from inferd_gateway.errors import ApiError
from inferd_gateway.settings import Settings, SettingsError


class KeyRing:
    """The keys that open the protected routes. Empty: every caller passes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(digest(key) for key in keys)

    def check(self, authorization: str | None) -> None:
        """`authorization` is the header's value. Raises a 401 ApiError."""
        if not self._digests:
            return
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("You didn't provide an API key: send the header 'Authorization: Bearer KEY'.")
        given = digest(token.strip())
        # Every key is compared, so that the time does not tell which one is near.
        if not sum(hmac.compare_digest(given, known) for known in self._digests):
            raise unauthorized("Incorrect API key provided.")


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def unauthorized(message: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, error_type="authentication_error", code="invalid_api_key", headers=headers)


def load_keys(settings: Settings) -> KeyRing:
    keys = list(settings.api_key)
    if settings.api_key_file is not None:
        try:
            lines = Path(settings.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"api-key-file: {error}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise SettingsError(f"api-key-file: no key in {settings.api_key_file}")
        keys += found
    if not all(key.strip() for key in keys):
        raise SettingsError("api-key: a key must not be empty")
    return KeyRing(keys)
