"""Log probabilities of the unmodified distribution: the chosen token's, its rank, the top ones and asked-for ones."""

from __future__ import annotations

import torch

from inferd.request import LogprobParams
from inferd.step import TokenLogprobs


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, params: list[LogprobParams]) -> list[TokenLogprobs]:
    """logits [R, V] float32 as the model gave them, tokens [R] int64 the chosen ids, params per row.

    Ranks count the tokens that are strictly more probable. The asked-for ids come last, in the order of the request.
    """
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = (logprobs > chosen).sum(-1) + 1
    most = min(max((param.top_n for param in params), default=0), logits.shape[1])
    top_values, top_ids = (part.tolist() for part in logprobs.topk(most))
    chosen_values, rank_values = chosen.squeeze(1).tolist(), ranks.tolist()
    result = []
    for row, param in enumerate(params):
        ids, values = top_ids[row][: param.top_n], top_values[row][: param.top_n]
        if param.token_ids:
            ids = ids + list(param.token_ids)
            values = values + logprobs[row, torch.tensor(param.token_ids, device=logits.device)].tolist()
        result.append(TokenLogprobs(chosen_values[row], rank_values[row], ids, values))
    return result
