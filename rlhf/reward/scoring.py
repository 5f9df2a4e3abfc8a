"""Batched scoring with a reward model: the same number for an answer alone, in any batch, with any padding side."""

from collections.abc import Sequence

from rlhf import finite, tokens
from rlhf.generation import by_length, context_of, right_padded
from rlhf.template import format_prompt, format_response

import numpy as np
import torch


def encode(tokenizer, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool]) -> list[list[int]]:
    """Token ids of template, prompt, response and EOS: the text that a reward model is trained on and scores.

    `ended` says which responses ended: one that was cut off has no EOS, in training, in PPO and in the evaluation.
    Raises ValueError for lists of unequal length.
    """
    if not len(prompts) == len(responses) == len(ended):
        counts = f"{len(prompts)} prompts, {len(responses)} responses and {len(ended)} marks of an end"
        raise ValueError(f"{counts} are given; give one response and one mark per prompt.")
    texts = [format_prompt(p) + format_response(r) for p, r in zip(prompts, responses, strict=True)]
    encoded = tokens.encode(tokenizer, texts)
    return [ids + [tokenizer.eos_token_id] * bool(end) for ids, end in zip(encoded, ended, strict=True)]


@torch.no_grad()
def score(model, tokenizer, prompts, responses, ended, *, batch_size: int = 32) -> np.ndarray:
    """The reward model's logit for each response to its prompt (without template): (len(prompts),), float64.

    prompts, responses, ended: as for `encode`. Batches are padded on the right whatever `tokenizer.padding_side` says:
    GPT-2's classification head takes its position ids from the place in the row, so padding on the left would shift
    them and change the score. Raises ValueError for lists of unequal length, for a model whose pad token is missing or
    is EOS, and for a text longer than the model's context, which is never cut silently; NotFiniteError for a reward
    that is none.
    """
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id or pad != model.config.pad_token_id:
        raise ValueError(
            f"the tokenizer's pad token ({tokenizer.pad_token!r}, id {pad}) must differ from EOS and be the model's "
            f"({model.config.pad_token_id}), or the score is read at the wrong token; load both by rlhf.models."
        )
    encoded = encode(tokenizer, prompts, responses, ended)
    context = context_of(model)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > context:
            length = f"{len(ids)} tokens with its prompt, more than the context of {context}"
            raise ValueError(f"the response to {prompt[:60]!r} takes {length}; shorten it or leave it out.")
    scores = score_tokens(model, encoded, pad, batch_size)
    bad = (prompt for prompt, number in zip(prompts, scores, strict=True) if not np.isfinite(number))
    finite.require("scoring", {"reward": scores}, prompts=bad, kept=model.config._name_or_path)
    return scores


@torch.no_grad()
def score_tokens(model, rows: Sequence[Sequence[int]], pad: int, batch_size: int = 32) -> np.ndarray:
    """The logit of each row of tokens at its last one: (rows,), float64. Batches are padded on the right by `pad`."""
    model.eval()
    device = next(model.parameters()).device
    scores = np.zeros(len(rows))
    for batch in by_length(model, rows, batch_size):
        ids, mask = (tensor.to(device) for tensor in right_padded([list(rows[i]) for i in batch], pad))
        logits = model(input_ids=ids, attention_mask=mask).logits  # of the last token that is not padding
        scores[batch] = logits.reshape(len(batch)).cpu().double().numpy()
    return scores


def score_pairs(model, tokenizer, pairs, *, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the chosen and of the rejected answers of preference pairs, two of (pairs,). All have ended."""
    ended = [True] * len(pairs)
    prompts, chosen, rejected = (list(pairs[column]) for column in ("prompt", "chosen", "rejected"))
    first = score(model, tokenizer, prompts, chosen, ended, batch_size=batch_size)
    return first, score(model, tokenizer, prompts, rejected, ended, batch_size=batch_size)


@torch.no_grad()
def rescale(model, factor: float) -> None:
    """Multiply the scores of a reward model by `factor`, in its head.

    A Bradley-Terry loss fixes no scale. Settings of PPO (the KL coefficient, the clip range of the value) are in units
    of the reward, so they mean the same for every reward model once SFT answers have standard deviation 1 (Ziegler et
    al. 2019 normalise the same way). Raises ValueError for a factor that is not positive and finite.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"factor {factor} would turn or wipe out the order of the scores; give a positive number.")
    model.score.weight.mul_(factor)
