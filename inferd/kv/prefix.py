"""BlockHasher names the contents of full blocks: a hash over every token up to the block's end, and the salt.

The chain follows the idea of vLLM's automatic prefix caching. The hash is keyed with random bytes of this process, so
that nobody outside can make two prefixes collide or guess which ones are cached.
"""

from __future__ import annotations

import os
from array import array
from hashlib import blake2b

from inferd.sequence import Sequence

DIGEST_BYTES = 16


class BlockHasher:
    """Hashes chains of blocks. After forget(salt) the same tokens get other hashes."""

    def __init__(self, block_size: int, key: bytes | None = None) -> None:
        self._block_size = block_size
        self._key = os.urandom(32) if key is None else key
        self._epoch = 0
        self._salt_epochs: dict[str, int] = {}  # of salts forgotten one by one

    def block_hash(self, sequence: Sequence, index: int) -> bytes:
        """Of the sequence's full block `index`, whose tokens are all known. Hashes what is not hashed yet."""
        hashes = sequence.block_hashes
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else self._root(sequence.request.cache.salt)
            start = len(hashes) * self._block_size
            tokens = array("I", sequence.token_ids[start : start + self._block_size])
            hashes.append(blake2b(parent + tokens.tobytes(), digest_size=DIGEST_BYTES, key=self._key).digest())
        return hashes[index]

    def forget(self, salt: str | None) -> None:
        """Chains of salt (None: of any) that start from now on share nothing with the earlier ones."""
        if salt is None:
            self._epoch += 1
        else:
            self._salt_epochs[salt] = self._salt_epochs.get(salt, 0) + 1

    def _root(self, salt: str) -> bytes:
        text = f"{self._epoch}/{self._salt_epochs.get(salt, 0)}/{salt}"
        return blake2b(text.encode(), digest_size=DIGEST_BYTES, key=self._key, person=b"salt").digest()
