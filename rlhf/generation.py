"""Batched decoding of many prompts, and the log-probability of what was answered."""

from typing import NamedTuple

from rlhf.template import format_prompt

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase


class Answer(NamedTuple):
    text: str
    token_ids: tuple[int, ...]  # as generated, with the final EOS if the answer ended
    ended: bool  # whether the model stopped by itself


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    description: str = "answering",
) -> list[Answer]:
    """Answer each prompt (without template) in its order. `temperature` 0 is greedy or beam search, else sampling.

    Prompts are sorted by length, batched and padded on the left: a decoder continues from the last position, which
    must be the prompt's. Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the context.
    """
    encoded = tokenizer([format_prompt(prompt) for prompt in prompts], truncation=False, verbose=False)["input_ids"]
    context = model.config.max_position_embeddings
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + max_new_tokens > context:
            raise ValueError(
                f"prompt {prompt[:60]!r} has {len(ids)} tokens with its template; with {max_new_tokens} new tokens it "
                f"doesn't fit into the context of {context}; shorten it or leave it out."
            )
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers: list[Answer | None] = [None] * len(prompts)
    with torch.random.fork_rng(), tqdm(total=len(prompts), desc=description, unit="prompt", mininterval=5) as progress:
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            new = _generate(
                model,
                tokenizer,
                [encoded[i] for i in batch],
                max_new_tokens,
                temperature,
                num_beams,
                repetition_penalty,
            )
            for i, ids in zip(batch, new, strict=True):
                answers[i] = _as_answer(ids, tokenizer)
            progress.update(len(batch))
    return answers


def generate(model, tokenizer, prompts: list[str], **options) -> list[str]:
    """The texts of `answer`."""
    return [reply.text for reply in answer(model, tokenizer, prompts, **options)]


def left_padded(encoded: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, tokens), padded on the left, as decoding needs it."""
    width = max(map(len, encoded))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
    return ids, mask


class Sampled(NamedTuple):
    """What `sample` drew. Padding stands after EOS, with log-probability and state 0."""

    tokens: torch.Tensor  # (rows, tokens)
    logprobs: torch.Tensor  # (rows, tokens), in nats, under the distribution that the tokens were drawn from
    states: torch.Tensor  # (rows, tokens, width): the trunk's last hidden state that predicted each token


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    eos: int,
    pad: int,
) -> Sampled:
    """Draw answers from softmax(logits / temperature), one token at a time, until EOS or `max_new_tokens`.

    ids, mask: (rows, tokens), padded on the left. Each token takes one uniform number per row, looked up in the
    cumulative distribution; `generate` of transformers draws one for each row and entry of the vocabulary, on a CPU a
    third of its time. Rows that have ended leave the batch. Raises ValueError for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive.")
    trunk, head = getattr(model, model.base_model_prefix), model.get_output_embeddings()
    device, rows = ids.device, len(ids)
    tokens = torch.full((rows, max_new_tokens), pad, device=device)
    logprobs = torch.zeros(rows, max_new_tokens, device=device)
    states = torch.zeros(rows, max_new_tokens, model.config.hidden_size, device=device)
    places, done = torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.bool, device=device)
    cache, positions = DynamicCache(config=model.config), (mask.cumsum(dim=1) - 1).clamp(min=0)
    for t in range(max_new_tokens):
        output = trunk(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        state = output.last_hidden_state[:, -1]
        distribution = torch.log_softmax(_logits(head, state).float() / temperature, dim=-1)
        cumulative = distribution.exp().cumsum(dim=-1, dtype=torch.float64)
        drawn = torch.rand(rows, 1, dtype=torch.float64).to(device)[places] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, drawn, right=True).clamp(max=cumulative.shape[1] - 1)
        live = places[~done]
        tokens[live, t] = chosen[~done].squeeze(1)
        logprobs[live, t] = distribution.gather(1, chosen)[~done].squeeze(1)
        states[live, t] = state[~done].float()
        done = done | (chosen.squeeze(1) == eos)
        if done.all():
            break
        mask, positions = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1), positions[:, -1:] + 1
        if done.sum() * 8 >= len(done):  # to take rows out copies the cache, so not for each one
            kept = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            places, done, chosen, mask, positions = (x[kept] for x in (places, done, chosen, mask, positions))
        ids = chosen
    return Sampled(tokens[:, : t + 1], logprobs[:, : t + 1], states[:, : t + 1])


def head_logits(weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """states @ weight.T, (rows, vocabulary), of a linear head without bias: weight (vocabulary, width).

    The large matrix stands on the left: for few rows that takes a CPU half the time.
    """
    return (weight @ states.t()).t()


def _logits(head: torch.nn.Module, state: torch.Tensor) -> torch.Tensor:
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return head(state)
    return head_logits(head.weight, state).contiguous()


@torch.no_grad()
def _generate(model, tokenizer, encoded, max_new_tokens, temperature, num_beams, repetition_penalty) -> list[list[int]]:
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids, mask = (tensor.to(model.device) for tensor in left_padded(encoded, pad))
    if temperature > 0:
        drawn = sample(model, ids, mask, max_new_tokens=max_new_tokens, temperature=temperature, eos=eos, pad=pad)
        return drawn.tokens.tolist()
    generated = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        repetition_penalty=repetition_penalty,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=eos,
    )
    return generated[:, ids.shape[1] :].tolist()


def _as_answer(ids: list[int], tokenizer) -> Answer:
    ended = tokenizer.eos_token_id in ids
    if ended:
        ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
    return Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), tuple(ids), ended)


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    answers: list[Answer],
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """log p(answer | prompt) in nats, summed over the tokens that were generated (EOS too). Returns (prompts,).

    `temperature` is that of the sampling: p is the distribution that the tokens were drawn from.
    """
    encoded = tokenizer([format_prompt(prompt) for prompt in prompts], truncation=False, verbose=False)["input_ids"]
    rows = [ids + list(reply.token_ids) for ids, reply in zip(encoded, answers, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    totals = np.zeros(len(rows))
    trunk = getattr(model, model.base_model_prefix)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(rows[i]) for i in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):  # padding on the right: positions then need no correction
            ids[row, : len(rows[i])] = torch.tensor(rows[i])
            mask[row, : len(rows[i])] = 1
        hidden = trunk(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).last_hidden_state
        for row, i in enumerate(batch):
            # Logits of the answer alone and of one row at a time: batch x tokens x vocabulary is gigabytes for GPT-2.
            answered = hidden[row, len(encoded[i]) - 1 : len(rows[i]) - 1]
            logprobs = torch.log_softmax(model.get_output_embeddings()(answered).float() / temperature, dim=-1)
            chosen = torch.tensor(answers[i].token_ids, dtype=torch.long, device=model.device)
            totals[i] = logprobs.gather(-1, chosen[:, None]).sum(dtype=torch.float64).item()
    return totals
