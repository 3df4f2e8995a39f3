"""API keys: kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.requests import Request

from inferd_gateway.errors import ApiError
from inferd_gateway.settings import Settings, SettingsError

INFER, ADMIN, OBSERVE = "infer", "admin", "observe"
SCOPES = (INFER, ADMIN, OBSERVE)


class KeyRing:
    """The keys, as hashes, and what each may do. Empty: every caller passes."""

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        """Pairs (scope, key); a key may come with several scopes."""
        self._scopes: dict[bytes, frozenset[str]] = {}
        for scope, key in keys:
            known = digest(key)
            self._scopes[known] = self._scopes.get(known, frozenset()) | {scope}

    def has(self, scope: str) -> bool:
        """Whether some key has the scope."""
        return any(scope in scopes for scopes in self._scopes.values())

    def holder(self, authorization: str | None) -> str | None:
        """A name for the holder of a key that was checked, from which the key cannot be told; None without keys."""
        if not self._scopes or authorization is None:
            return None
        return digest(authorization.strip().partition(" ")[2].strip()).hex()[:32]

    def check(self, authorization: str | None, needed: frozenset[str] = frozenset({INFER})) -> None:
        """`authorization` is the header's value; a key needs one of the scopes. Raises a 401 or 403 ApiError."""
        if not self._scopes:
            return
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("You didn't provide an API key: send the header 'Authorization: Bearer KEY'.")
        given, found = digest(token.strip()), None
        # Every key is compared, so that the time does not tell which one is near.
        for known, scopes in self._scopes.items():
            if hmac.compare_digest(given, known):
                found = scopes
        if found is None:
            raise unauthorized("Incorrect API key provided.")
        if not found & needed:
            message = f"The key has the scope {' and '.join(sorted(found))}, not {' or '.join(sorted(needed))}."
            raise ApiError(403, message, error_type="permission_error", code="forbidden")


def credential(request: Request) -> str | None:
    """The Authorization header; Anthropic's clients send x-api-key instead."""
    key = request.headers.get("x-api-key")
    return request.headers.get("authorization") or (f"Bearer {key}" if key else None)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def unauthorized(message: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, error_type="authentication_error", code="invalid_api_key", headers=headers)


def load_keys(settings: Settings) -> KeyRing:
    """Raises SettingsError."""
    keys = [(INFER, key) for key in settings.api_key]
    if settings.api_key_file is not None:
        try:
            lines = Path(settings.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"api-key-file: {error}") from None
        found = [parse_key(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise SettingsError(f"api-key-file: no key in {settings.api_key_file}")
        keys += found
    if not all(key.strip() for _, key in keys):
        raise SettingsError("api-key: a key must not be empty")
    return KeyRing(keys)


def parse_key(line: str) -> tuple[str, str]:
    """`observe:abc` -> ("observe", "abc"), `abc` -> ("infer", "abc")."""
    scope, colon, key = line.partition(":")
    return (scope, key.strip()) if colon and scope in SCOPES else (INFER, line)
