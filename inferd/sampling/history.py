"""The tokens of one sequence as the sampler needs them: which occurred, how often in the output, and the last few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferd.sampling.growing import GrowingArray


class TokenHistory:
    """tokens: prompt, then output; the last num_output_tokens of them are output. One writer: the worker.

    token_ids and output_counts are aligned: each distinct token, and its occurrences in the output.
    """

    def __init__(self, tokens: Sequence[int], num_output_tokens: int) -> None:
        self._index: dict[int, int] = {}
        self._ids = GrowingArray(np.int64)
        self._counts = GrowingArray(np.int32)
        self._tokens = GrowingArray(np.int64)
        split = len(tokens) - num_output_tokens
        self._extend(tokens[:split], 0)
        self._extend(tokens[split:], 1)

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def token_ids(self) -> np.ndarray:
        return self._ids.values

    @property
    def output_counts(self) -> np.ndarray:
        return self._counts.values

    def extend_output(self, tokens: Sequence[int]) -> None:
        self._extend(tokens, 1)

    def ends_with(self, tokens: Sequence[int]) -> bool:
        count = len(tokens)
        return count <= self.num_tokens and self._tokens.values[self.num_tokens - count :].tolist() == list(tokens)

    def _extend(self, tokens: Sequence[int], occurrences: int) -> None:
        self._tokens.extend(tokens)
        for token in tokens:
            place = self._index.get(token)
            if place is None:
                place = self._index[token] = len(self._ids)
                self._ids.extend((token,))
                self._counts.extend((0,))
            self._counts.values[place] += occurrences
