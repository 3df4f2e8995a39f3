"""ConstraintBuilder: makes matchers on threads, so that no step waits for a grammar to compile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from inferd.allocator import return_freed_memory
from inferd.constraint.matcher import Matcher, MatcherFactory
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.errors import InvalidConstraint
from inferd.messages import Vocabulary
from inferd.request import Request

logger = logging.getLogger("inferd.core")

THREADS = 2


@dataclass(frozen=True, slots=True)
class MatcherBuilt:
    """In the loop's inbox: a request whose matcher is ready. None: its constraint could not be compiled."""

    request: Request
    matcher: Matcher | None


class ConstraintBuilder:
    """Used by the loop alone; `deliver` is called on other threads."""

    def __init__(self, vocab_size: int, deliver: Callable[[MatcherBuilt], None]) -> None:
        self._vocab_size = vocab_size
        self._deliver = deliver
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="constraints")
        self._factory: Future[MatcherFactory] | None = None
        self._aborts: dict[int, list[int | None]] = {}  # of the requests in the making

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        self._factory = self._threads.submit(make_factory, vocabulary, self._vocab_size)

    def build(self, request: Request) -> None:
        """Make the request's matcher; deliver(MatcherBuilt) follows."""
        self._aborts[request.key] = []
        self._threads.submit(self._build, request, self._factory)

    def abort(self, key: int, choice: int | None) -> bool:
        """Note an abort of a request in the making; False when it is none."""
        if key not in self._aborts:
            return False
        self._aborts[key].append(choice)
        return True

    def take_aborts(self, key: int) -> list[int | None]:
        """What has been aborted of a request that was built."""
        return self._aborts.pop(key, [])

    def shutdown(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _build(self, request: Request, factory: Future[MatcherFactory] | None) -> None:
        matcher = None
        try:
            if factory is None:
                logger.error("a constraint came before the vocabulary", extra={"request_id": request.request_id})
            else:
                matcher = factory.result().for_request(request)
        except InvalidConstraint as error:  # the front has compiled it: another version of the library, or a bug
            logger.error("constraint refused: %s", error.message, extra={"request_id": request.request_id})
        finally:
            self._deliver(MatcherBuilt(request, matcher))


def make_factory(vocabulary: Vocabulary, vocab_size: int) -> MatcherFactory:
    factory = MatcherFactory(MatchVocabulary(vocabulary, vocab_size))
    return_freed_memory()  # what building it took
    return factory
