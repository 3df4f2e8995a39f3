"""API keys and what each may do. Keys are kept as hashes and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from inferd.config import ServerConfig
from inferd.errors import StartupError
from inferd.server.scopes import ADMIN, INFER, OBSERVE, SCOPES


class KeyRing:
    """Digest of each key -> its scopes."""

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        """Pairs (scope, key); a key may come with several scopes."""
        self._scopes: dict[bytes, frozenset[str]] = {}
        for scope, key in keys:
            known = digest(key)
            self._scopes[known] = self._scopes.get(known, frozenset()) | {scope}

    def __bool__(self) -> bool:
        return bool(self._scopes)

    def scopes_of(self, key: str) -> frozenset[str] | None:
        """None for a key that nobody has. Every key is compared: the time must not tell which was nearly right."""
        given, found = digest(key), None
        for known, scopes in self._scopes.items():
            if hmac.compare_digest(given, known):
                found = scopes
        return found


def load_keys(server: ServerConfig) -> list[tuple[str, str]]:
    """All configured keys with their scopes. Raises StartupError."""
    keys = [(INFER, key) for key in server.api_keys] + [(ADMIN, key) for key in server.admin_api_keys]
    if server.api_key_file is not None:
        keys += read_key_file(server.api_key_file)
    if not all(key.strip() for _, key in keys):
        raise StartupError("--api-key: a key must not be empty")
    return keys


def read_key_file(path: str) -> list[tuple[str, str]]:
    """Lines `KEY` (scope infer) or `SCOPE:KEY`; empty lines and those that start with # are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"--api-key-file: {error}") from None
    keys = [parse_key(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise StartupError(f"--api-key-file: no key in {path}")
    return keys


def parse_key(line: str) -> tuple[str, str]:
    """`admin:abc` -> ("admin", "abc"), `abc` -> ("infer", "abc")."""
    scope, colon, key = line.partition(":")
    return (scope, key.strip()) if colon and scope in SCOPES else (INFER, line)


def data_ring(server: ServerConfig, keys: list[tuple[str, str]]) -> KeyRing:
    """For the data port: locked once a key was given that is not AdminService's alone. It knows those too, so that a
    wrong scope is told from a wrong key."""
    return KeyRing(keys if server.api_keys or server.api_key_file is not None else [])


def admin_ring(keys: list[tuple[str, str]]) -> KeyRing:
    """For the admin listener, which is locked once there is a key for it."""
    return KeyRing(keys) if any(scope in (ADMIN, OBSERVE) for scope, _ in keys) else KeyRing([])


def identify(authorization: str) -> str:
    """A name for the holder of a key, from which the key cannot be told; empty without one."""
    key = bearer(authorization)
    return digest(key).hex()[:32] if key else ""


def bearer(authorization: str) -> str:
    """`Bearer KEY` -> KEY; empty for anything else."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
