"""What the policy did and what is learned from it: the tensors that the parts of an update pass on."""

from typing import NamedTuple

import torch


class Rollout(NamedTuple):
    """What the policy answered to a batch of prompts. (batch, tokens) are the tokens of the answers."""

    sequences: torch.Tensor  # (batch, prompt + tokens), prompts padded on the left, answers on the right
    attention: torch.Tensor  # the same shape: 1 on prompt and answer
    responses: torch.Tensor  # (batch, tokens)
    mask: torch.Tensor  # (batch, tokens): 1 up to and including EOS
    ended: torch.Tensor  # (batch,): whether there is an EOS
    sampler_logprobs: torch.Tensor  # (batch, tokens): what the sampler took for the log-probabilities of the tokens
    lower: torch.Tensor | None = None  # (batch, prompt + tokens, width): what frozen layers make of the sequences


class Experience(NamedTuple):
    """A rollout, what is learned from it, (batch, tokens) each, and what was measured on it: a row of the curve."""

    rollout: Rollout
    logprobs: torch.Tensor  # of the policy that answered
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    row: dict[str, float]
