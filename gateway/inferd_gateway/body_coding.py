"""Bodies that come compressed: Content-Encoding gzip and deflate, unpacked piece by piece within a bound."""

from __future__ import annotations

import zlib

GZIP, ZLIB, RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS  # as zlib calls the three formats
CODINGS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": ZLIB}
ACCEPTED = "gzip, deflate"  # as in the Accept-Encoding header of an answer


class BodyError(ValueError):
    """The body is not in the coding that it names."""


class Unpacker:
    """One body. `limit` bounds what comes out: zlib is stopped there, whatever it still has."""

    def __init__(self, coding: str, limit: int) -> None:
        """coding: one of CODINGS."""
        self._coding = coding
        self._left = limit
        self._format = CODINGS[coding]
        self._inflate = zlib.decompressobj(self._format)
        self._begun = False

    def unpack(self, piece: bytes, *, last: bool) -> bytes:
        """What the next piece of the body unpacks to. Raises BodyError, and OverflowError beyond the limit."""
        unpacked = []
        try:
            while piece:
                unpacked.append(self._step(piece))
                # gzip may hold several members, one after the other.
                piece = self._inflate.unused_data if self._inflate.eof else b""
        except zlib.error:
            raise BodyError(f"The body is not valid {self._coding}.") from None
        if last and self._begun and not self._inflate.eof:
            raise BodyError(f"The body ends within its {self._coding} data.")
        return b"".join(unpacked)

    def _step(self, piece: bytes) -> bytes:
        if self._inflate.eof:
            if self._format != GZIP:
                raise BodyError(f"There is data behind the {self._coding} body.")
            self._inflate = zlib.decompressobj(self._format)
        if not self._begun and self._coding == "deflate" and not is_zlib(piece):
            # The name means zlib's format (RFC 9110, section 8.4.1.2), but some clients send the bare one.
            self._format = RAW
            self._inflate = zlib.decompressobj(RAW)
        self._begun = True
        unpacked = self._inflate.decompress(piece, self._left + 1)
        self._left -= len(unpacked)
        if self._left < 0:
            raise OverflowError
        return unpacked


def is_zlib(start: bytes) -> bool:
    """Whether data may begin with a header of zlib's: method 8, and in the first two bytes a multiple of 31."""
    return start[0] & 0x0F == 8 and (len(start) < 2 or int.from_bytes(start[:2], "big") % 31 == 0)
