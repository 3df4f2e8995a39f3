"""Downloads from the model hub, through huggingface-hub and its cache."""

from __future__ import annotations

import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from inferd.checkpoint.gguf_checkpoint import split_siblings
from inferd.checkpoint.json_file import read_json_object
from inferd.errors import StartupError

PATTERNS = ["*.safetensors", "*.json", "*.jinja"]
IGNORED = ["consolidated*", "original/*", "onnx/*", "*.onnx*", "checkpoint-*/*"]


def download(
    repo: str,
    file: str | None,
    revision: str | None,
    notify: Callable[[str, float], None],
    check_config: Callable[[Mapping[str, Any]], object] = lambda config: None,
    timeout_s: float = 10.0,
) -> Path:
    """The folder of a repository, or one GGUF file of it (all its parts when it is split).

    check_config: called with a folder's config.json before its weights are fetched; a StartupError of it ends all.

    timeout_s bounds the first answer of the hub, not the transfer. What is in the cache is used when the hub cannot be
    reached. StartupError when neither has it.
    """
    # Imported here: the hub client costs start-up time that a local checkpoint must not pay.
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # Its HTTP library, whose errors are no OSErrors, differs between versions: HfHubHTTPError derives from their root.
    http_error: type[Exception] = HfHubHTTPError.__mro__[1]

    wanted = [str(part) for part in split_siblings(Path(file))] if file else PATTERNS
    notify("download", 0.0)
    online = answers(constants.ENDPOINT, timeout_s)
    try:
        fetch = partial(
            huggingface_hub.snapshot_download,
            repo,
            revision=revision,
            ignore_patterns=None if file else IGNORED,
            etag_timeout=timeout_s,
            local_files_only=not online,
        )
        if not file:
            config = checked(Path(fetch(allow_patterns=["config.json"])), repo, None) / "config.json"
            check_config(read_json_object(config))
        folder = Path(fetch(allow_patterns=wanted, tqdm_class=progress_class(notify)))
    except GatedRepoError:
        raise StartupError(f"{repo}: gated on the hub; accept its terms there and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise StartupError(f"{repo}: has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise StartupError(f"{repo}: no such repository on the hub, or a private one (set HF_TOKEN)") from None
    except (http_error, OSError, ValueError) as error:
        reason = first_line(error) if online else "the hub cannot be reached"
        raise StartupError(
            f"{repo}: cannot be downloaded and is not in the cache ({reason}); "
            "check the connection, or pass a local folder or .gguf file"
        ) from None
    notify("download", 1.0)
    return checked(folder, repo, file)


def answers(endpoint: str, timeout_s: float) -> bool:
    """Whether a connection to the hub opens. The client itself would retry for half a minute before it gives up."""
    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(endpoint)
    try:
        address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
        socket.create_connection(address, timeout=timeout_s).close()
    except OSError:
        return False
    return True


def checked(folder: Path, repo: str, file: str | None) -> Path:
    """The path asked for inside the snapshot; StartupError when the repository does not hold it."""
    if file:
        if not (folder / file).is_file():
            raise StartupError(f"{repo}: has no file {file}")
        return folder / file
    if not (folder / "config.json").is_file():
        raise StartupError(f"{repo}: has no config.json; for a GGUF repository name the file: {repo}:FILE.gguf")
    return folder


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def progress_class(notify: Callable[[str, float], None]) -> type[Any]:
    """A silent stand-in for tqdm that reports the bytes written as a fraction of the bytes known so far."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]  # ships no types

    class Progress(tqdm):  # type: ignore[misc]  # so its subclass is Any
        _report_lock = threading.Lock()
        _reported = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self.total = kwargs.get("total") or 0
            self.n = kwargs.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if not self.counts_bytes or not self.total:
                return
            fraction = min(1.0, self.n / self.total)
            with Progress._report_lock:
                if fraction - Progress._reported < 0.01:
                    return
                Progress._reported = fraction
            notify("download", fraction)

    return Progress
