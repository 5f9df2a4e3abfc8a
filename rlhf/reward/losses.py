"""Two losses of rankings: by pairs of answers, and by the whole order."""

import torch
from torch.nn.functional import logsigmoid


def pairwise_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(r_i - r_j), the mean over the pairs of an item in which answer i ranks before j: (...).

    scores: (..., answers), logits of the reward model. ranks: (..., answers), 1 is the best, equal ones tie. Pairs that
    tie say nothing and are left out; an item of ties alone has a loss of 0.
    Source: Ouyang et al. 2022, eq. 1.
    """
    better = ranks[..., :, None] < ranks[..., None, :]
    losses = -logsigmoid(scores[..., :, None] - scores[..., None, :]) * better
    return losses.sum(dim=(-2, -1)) / better.sum(dim=(-2, -1)).clamp(min=1)


def plackett_luce_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """-log P(ranking): the best answer is drawn by softmax of the scores, then the best of the rest, and so on: (...).

    scores, ranks: as for pairwise_loss, which it equals for two answers; the probabilities of all orders sum to 1. An
    answer of a tie is drawn against the worse answers alone, not against those it ties with: ties say nothing here
    either, and their probabilities are no share of that sum.
    Source: Plackett 1975; the loss ListMLE of Xia et al. 2008.
    """
    worse = ranks[..., None, :] > ranks[..., :, None]
    competing = worse | torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    others = scores[..., None, :].masked_fill(~competing, -torch.inf)
    return (others.logsumexp(dim=-1) - scores).sum(dim=-1)
