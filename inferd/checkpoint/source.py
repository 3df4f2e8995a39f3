"""From what the user typed to a folder or file on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inferd.checkpoint.demo import DEMO_NAME, resolve_demo
from inferd.checkpoint.hub import download
from inferd.errors import StartupError

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::([\w./ +-]{1,200}\.gguf))?", re.ASCII)


def resolve_source(
    model: str,
    revision: str | None,
    notify: Callable[[str, float], None],
    check_config: Callable[[Mapping[str, Any]], object] = lambda config: None,
) -> Path:
    """The checkpoint folder or .gguf file for `model`, downloaded if need be.

    model     an existing folder or .gguf file, `demo`, or a hub id (`org/repo`, `org/repo:file.gguf`)
    revision  branch, tag or commit of a hub id
    notify    called with a phase name and its fraction, 0 to 1, now and then from a download thread
    check_config  called with the config.json of a hub folder before its weights are downloaded; may raise StartupError

    A path on disk wins over a hub id of the same spelling. StartupError, one line, says what to do.
    """
    if model == DEMO_NAME:
        return resolve_demo(notify)
    if not model or "\0" in model or len(model) > 4096:
        raise StartupError("the model name is empty, too long or holds a NUL character")
    path = Path(model).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise StartupError(f"{model[:200]!r}: {error.strerror}") from None
    if exists:
        if revision is not None:
            raise StartupError(f"{model}: a revision ({revision}) applies to hub ids only, this is a local path")
        return path.resolve()
    match = HUB_ID.fullmatch(model)
    if match is None or ".." in model:
        raise StartupError(
            f"{model[:200]!r}: no such folder or file, and not a hub id (org/repo, org/repo:file.gguf) or `{DEMO_NAME}`"
        )
    return download(match[1], match[2], revision, notify, check_config)
