"""Renders chat templates in a few processes of their own, each killed when it takes too long."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import inferd_gateway
from inferd_gateway.errors import ApiError
from inferd_gateway.templates.worker import HEADER

START_TIMEOUT_S = 20.0
MAX_CHARS = 8 * 2**20


@dataclass(frozen=True)
class ChatTemplate:
    """A template and what its renderer must know. `key` names the whole in the worker processes."""

    source: str
    special_tokens: tuple[str, ...]
    content_format: str  # auto, string, openai
    variables: tuple[tuple[str, str], ...]

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.job).encode()).hexdigest()

    @property
    def job(self) -> dict[str, Any]:
        """What a worker loads it from."""
        return {
            "source": self.source,
            "special": self.special_tokens,
            "content_format": self.content_format,
            "variables": dict(self.variables),
            "max_chars": MAX_CHARS,
        }


@dataclass(frozen=True)
class Conversation:
    """What a template renders. Each message: role, content (one string, or the texts of its parts), reasoning_content,
    further keys; traits.TemplateTraits gives it the template's own form."""

    messages: list[dict[str, Any]]
    kwargs: dict[str, Any]
    tools: list[dict[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool


class Worker:
    """One renderer process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.loaded: set[str] = set()

    @classmethod
    async def start(cls) -> Worker:
        """Raises a 503 ApiError for a process that does not come up."""
        path = [str(Path(inferd_gateway.__file__).parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "inferd_gateway.templates.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            # An empty entry would be the working directory, from which no code is run.
            env={"PYTHONPATH": os.pathsep.join(filter(None, path)), "PATH": os.environ.get("PATH", "")},
        )  # fmt: skip
        worker = cls(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker._read()
        except (TimeoutError, asyncio.IncompleteReadError):
            await worker.kill()
            raise no_worker() from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        body = json.dumps(job).encode()
        self._process.stdin.write(HEADER.pack(len(body)) + body)
        await self._process.stdin.drain()
        return await self._read()

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        (size,) = HEADER.unpack(await self._process.stdout.readexactly(HEADER.size))
        frame: dict[str, Any] = json.loads(await self._process.stdout.readexactly(size))
        return frame

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


class Renderer:
    """A pool of renderer processes, started when first needed. The one used last is used next: it is warm."""

    def __init__(self, workers: int = 2, timeout_s: float = 2.0) -> None:
        self._timeout_s = timeout_s
        self._idle: asyncio.LifoQueue[Worker | None] = asyncio.LifoQueue()
        self._starting: set[asyncio.Task[Worker]] = set()
        for _ in range(workers):
            self._idle.put_nowait(None)

    async def warm(self, template: ChatTemplate) -> str | None:
        """Compile the template in one process; what is wrong with it, if anything."""
        try:
            reply = await self._ask(template, {}, START_TIMEOUT_S + self._timeout_s)
        except TimeoutError:
            return "no process was free to compile it"
        except ApiError as error:
            return error.message
        return reply.get("error")

    async def render(
        self, template: ChatTemplate, conversation: Conversation, limit_s: float
    ) -> list[tuple[str, bool]]:
        """(text, trusted) runs of the prompt. Raises a 400 ApiError when the template refuses or fails, a 503 when it
        cannot be run, TimeoutError after limit_s."""
        reply = await self._ask(template, vars(conversation), limit_s)
        if "error" in reply:
            raise template_error(reply["error"])
        return [(text, trusted) for text, trusted in reply["segments"]]

    async def _ask(self, template: ChatTemplate, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
        until = time.monotonic() + limit_s
        worker: Worker | None = await self._take(limit_s)
        try:
            assert worker is not None
            return await self._answer(worker, template, job, until - time.monotonic())
        except BaseException:
            # Cancelled between question and answer, the process is out of step; else it is stuck or dead.
            await self._discard(worker)
            worker = None
            raise
        finally:
            self._idle.put_nowait(worker)

    async def _take(self, limit_s: float) -> Worker:
        """A worker that nobody uses. Raises TimeoutError, and a 503 ApiError when none can be started."""
        async with asyncio.timeout(limit_s):
            worker = await self._idle.get()
            if worker is not None:
                return worker
            starting = asyncio.create_task(Worker.start())
            self._starting.add(starting)
            starting.add_done_callback(self._starting.discard)
            try:
                return await asyncio.shield(starting)
            except BaseException:
                starting.add_done_callback(self._leave)  # the start goes on: whoever comes next has its worker
                raise

    def _leave(self, started: asyncio.Task[Worker]) -> None:
        failed = started.cancelled() or started.exception() is not None
        self._idle.put_nowait(None if failed else started.result())

    async def _answer(
        self, worker: Worker, template: ChatTemplate, job: dict[str, Any], limit_s: float
    ) -> dict[str, Any]:
        """Raises a 400 ApiError for a template that takes too long or kills its process, TimeoutError after limit_s."""
        message: dict[str, Any] = {"key": template.key, **job}
        if template.key not in worker.loaded:
            message["template"] = template.job
        try:
            async with asyncio.timeout(min(self._timeout_s, limit_s)):
                reply = await worker.ask(message)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            if isinstance(error, TimeoutError) and limit_s < self._timeout_s:
                raise
            raise template_error("the chat template took too long or too much memory") from None
        if "error" not in reply:
            worker.loaded.add(template.key)
        return reply

    async def _discard(self, worker: Worker | None) -> None:
        if worker is not None:
            await asyncio.shield(worker.kill())

    async def close(self) -> None:
        starting = list(self._starting)
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        while not self._idle.empty():
            await self._discard(self._idle.get_nowait())


def template_error(message: str) -> ApiError:
    return ApiError(400, message, code="chat_template_error", param="messages")


def no_worker() -> ApiError:
    message = "The process that renders chat templates did not start."
    return ApiError(503, message, error_type="server_error", code="template_unavailable", retry=True,
                    headers={"retry-after": "1"})  # fmt: skip
