"""Batched decoding of many prompts, and the log-probability of what was answered."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlhf import finite, runtime
from rlhf.template import format_prompt
from rlhf.tokens import encode

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

LARGEST_ROUNDING = 1e-3  # of a log-probability in float32, in nats
CACHED = 2**19  # numbers of a hidden state


class Answer(NamedTuple):
    text: str
    token_ids: tuple[int, ...]  # as generated, with the final EOS if the answer ended
    ended: bool  # whether the model stopped by itself


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt in the template, never cut: what a policy continues."""
    return encode(tokenizer, [format_prompt(prompt) for prompt in prompts])


def token_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], encoded: Sequence[Sequence[int]] | None
) -> list[list[int]]:
    """The tokens that a policy continues: `encoded`, or those of the prompts in the template.

    Raises ValueError where `encoded` has another number of rows than there are prompts.
    """
    if encoded is None:
        return encode_prompts(tokenizer, prompts)
    if len(encoded) != len(prompts):
        raise ValueError(f"{len(encoded)} rows of tokens are given for {len(prompts)} prompts; give one for each.")
    return [list(ids) for ids in encoded]


def trunk_of(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its head: what gives the hidden states."""
    return getattr(model, model.base_model_prefix)


def context_of(model: PreTrainedModel) -> int:
    """The number of tokens that the model can read; without bound for one that has none, such as BLOOM."""
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    encoded: Sequence[Sequence[int]] | None = None,
    description: str = "answering",
) -> list[Answer]:
    """Answer each prompt (without template) in its order. `temperature` 0 is greedy or beam search, else sampling.

    What is continued is each prompt in the template, or the row of tokens that `encoded` has for it.

    Prompts are sorted by length, batched and padded on the left: a decoder continues from the last position, which
    must be the prompt's. What is drawn for a prompt depends on `seed` and the prompt (uniform_draws), not on the batch.
    Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the context, NotFiniteError for NaN.
    """
    encoded = token_rows(tokenizer, prompts, encoded)
    context = context_of(model)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + max_new_tokens > context:
            raise ValueError(
                f"prompt {prompt[:60]!r} takes {len(ids)} tokens; with {max_new_tokens} new ones it doesn't fit into "
                f"the context of {context}; shorten it or leave it out."
            )
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    draws = uniform_draws(str(seed), prompts, max_new_tokens) if temperature > 0 else None
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers: list[Answer | None] = [None] * len(prompts)
    with tqdm(total=len(prompts), desc=description, unit="prompt", mininterval=5) as progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = (tensor.to(model.device) for tensor in left_padded([encoded[i] for i in batch], pad))
            if draws is not None:
                drawn = sample(model, ids, mask, draws[batch], temperature=temperature, eos=eos, pad=pad)
                asked = (prompts[i] for i in batch)
                finite.require(f"sampling ({description})", {"log-probabilities": drawn.logprobs}, prompts=asked)
                tokens = drawn.tokens
            else:
                with torch.no_grad():
                    tokens = model.generate(
                        input_ids=ids,
                        attention_mask=mask,
                        past_key_values=beam_cache(model, ids.shape[1] + max_new_tokens) if num_beams > 1 else None,
                        max_new_tokens=max_new_tokens,
                        num_beams=num_beams,
                        repetition_penalty=repetition_penalty,
                        do_sample=False,
                        logits_processor=[refuse_nan],
                        pad_token_id=pad,
                        eos_token_id=eos,
                    )[:, ids.shape[1] :]
            for i, row in zip(batch, tokens.tolist(), strict=True):
                answers[i] = _as_answer(row, tokenizer)
            progress.update(len(batch))
    return answers


class _BeamLayer(DynamicLayer):
    """Keys and values of a layer under beam search, in a buffer with room for whole answers.

    transformers copies all of them twice for each token: into the new order of beams, and to append the token. Here the
    order waits for the token, and both go into one buffer, whose predecessor serves the next layer (`spares`).
    """

    def __init__(self, room: int, spares: dict[torch.Size, torch.Tensor]):
        super().__init__()
        self.room, self.spares, self.order, self.buffers = room, spares, None, {}

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.order = beam_idx if self.order is None else self.order[beam_idx]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_, **__) -> tuple[torch.Tensor, ...]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        self.keys, self.values = (
            self._appended("keys", key_states, start),
            self._appended("values", value_states, start),
        )
        self.order = None
        return self.keys, self.values

    def _appended(self, name: str, states: torch.Tensor, start: int) -> torch.Tensor:
        rows, heads, tokens, width = states.shape
        if not start:
            self.buffers[name] = states.new_empty(rows, heads, self.room, width)
        buffer = self.buffers[name]
        if start and self.order is not None:
            spare = self.spares.get(buffer.shape)
            self.spares[buffer.shape], old = buffer, buffer
            buffer = self.buffers[name] = torch.empty_like(old) if spare is None else spare
            torch.index_select(old[:, :, :start], 0, self.order, out=buffer[:, :, :start])
        buffer[:, :, start : start + tokens] = states
        return buffer[:, :, : start + tokens]


def beam_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """An empty cache for beam search of at most `room` tokens; layers that keep all tokens are of _BeamLayer."""
    cache, spares = DynamicCache(config=model.config), {}
    cache.layers = [_BeamLayer(room, spares) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def refuse_nan(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """For `generate` of transformers, which would take NaN for token 0: NotFiniteError. -inf rules a token out."""
    finite.require("decoding", {"logits": scores.amax(dim=-1)})  # NaN where one is
    return scores


def generate_texts(model, tokenizer, prompts: Sequence[str], **options) -> list[str]:
    """The texts of `generate_answers`."""
    return [answer.text for answer in generate_answers(model, tokenizer, prompts, **options)]


def uniform_draws(seed: str, prompts: Sequence[str], count: int) -> torch.Tensor:
    """The random numbers that answers are drawn with, `count` for each prompt: (prompts, count), in [0, 1), float64.

    A row is made of `seed`, the prompt and how often it has stood before in `prompts`, so an answer depends neither on
    the batch that it is drawn in nor on its neighbours, and two models that answer one prompt share their luck.
    """
    seen: dict[str, int] = {}
    rows = np.empty((len(prompts), count))
    for row, prompt in zip(rows, prompts, strict=True):
        seen[prompt] = seen.get(prompt, -1) + 1
        digest = hashlib.sha256(f"{seed}\n{seen[prompt]}\n{prompt}".encode(errors="surrogatepass")).digest()
        row[:] = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)
    return torch.from_numpy(rows)


def left_padded(encoded: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, tokens), padded on the left, as decoding needs it."""
    width = max(map(len, encoded))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
    return ids, mask


def right_padded(encoded: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, tokens), padded on the right, as reading whole texts needs it."""
    width = max(map(len, encoded))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded])
    return ids, mask


class Sampled(NamedTuple):
    """What `sample` drew. Padding stands after EOS, with log-probability 0."""

    tokens: torch.Tensor  # (rows, tokens)
    logprobs: torch.Tensor  # (rows, tokens), in nats, under the distribution that the tokens were drawn from


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    draws: torch.Tensor,
    *,
    temperature: float,
    eos: int,
    pad: int,
) -> Sampled:
    """Draw answers from softmax(logits / temperature), one token at a time, until EOS or until the draws are used up.

    ids, mask: (rows, prompt tokens), padded on the left; draws: (rows, max_new_tokens), uniform in [0, 1). Each token
    takes one of them, looked up in the cumulative distribution; `generate` of transformers draws one for each row and
    entry of the vocabulary, on a CPU a third of its time. Rows that have ended leave the batch. Raises ValueError for a
    temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive.")
    trunk = trunk_of(model)
    rows, max_new_tokens = draws.shape
    device, finest = ids.device, runtime.finest(ids.device)
    draws = draws.to(finest).to(device)
    tokens = torch.full((rows, max_new_tokens), pad, device=device)
    logprobs = torch.zeros(rows, max_new_tokens, device=device)
    places, done = torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.bool, device=device)
    cache, positions = DynamicCache(config=model.config), (mask.cumsum(dim=1) - 1).clamp(min=0)
    for t in range(max_new_tokens):
        output = trunk(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits = head_logits(model, output.last_hidden_state[:, -1], temperature).contiguous()
        distribution = torch.log_softmax(logits, dim=-1)
        cumulative = distribution.exp().cumsum(dim=-1, dtype=finest)
        drawn = draws[places, t, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, drawn, right=True).clamp(max=cumulative.shape[1] - 1)
        live = places[~done]
        tokens[live, t] = chosen[~done].squeeze(1)
        logprobs[live, t] = distribution.gather(1, chosen)[~done].squeeze(1)
        done = done | (chosen.squeeze(1) == eos)
        if done.all():
            break
        mask, positions = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1), positions[:, -1:] + 1
        if done.sum() * 8 >= len(done):  # to take rows out copies the cache, so not for each one
            kept = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            places, done, chosen, mask, positions = (x[kept] for x in (places, done, chosen, mask, positions))
        ids = chosen
    return Sampled(tokens[:, : t + 1], logprobs[:, : t + 1])


def head_logits(model: PreTrainedModel, states: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """logits / temperature of the trunk's last hidden states, in float32: (rows, vocabulary) from (rows, width).

    What some architectures do to the logits after the head is done here too: a factor (Cohere, Granite, Falcon-H1) or a
    soft cap (Gemma 2). check_logits tells whether that is all. In float32 under autocast too: GPT-2's logits lie near
    -100, where bfloat16 rounds to halves, and log-probabilities would be wrong by as much. Without a cap the
    temperature can divide what goes in, which is smaller. With few rows a CPU takes half the time when the large matrix
    stands on the left.
    """
    head, config = model.get_output_embeddings(), model.config
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    factor /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    with torch.autocast(states.device.type, enabled=False):
        states = states.float()
        if type(head) is torch.nn.Linear and head.bias is None and cap is None:
            return (head.weight.float() @ (states / (temperature / factor)).t()).t()
        logits = head(states.to(head.weight.dtype)).float() * factor
        return (logits if cap is None else cap * torch.tanh(logits / cap)) / temperature


@torch.no_grad()
def check_logits(model: PreTrainedModel, tokens: int = 8) -> None:
    """Compare head_logits with the model's own logits, on a few tokens.

    Raises ValueError where they differ by more than the model's precision explains: the model does something to its
    logits that head_logits does not know, and would be sampled from and trained on another distribution than its own.
    """
    ids = torch.arange(tokens, device=model.device)[None] % model.config.vocab_size
    own, states = model(input_ids=ids).logits[0].float(), trunk_of(model)(input_ids=ids).last_hidden_state[0]
    gap = (torch.log_softmax(own, dim=-1) - torch.log_softmax(head_logits(model, states), dim=-1)).abs().max().item()
    if not gap <= max(LARGEST_ROUNDING, 4 * torch.finfo(states.dtype).eps * own.abs().max().item()):
        raise ValueError(
            f"{type(model).__name__} does more to its logits than its head: what rlhf.generation.head_logits computes "
            f"differs by {gap:.2g} nats; it can't be sampled from rightly. Choose another model, or teach head_logits."
        )


def _as_answer(ids: list[int], tokenizer) -> Answer:
    ended = tokenizer.eos_token_id in ids
    if ended:
        ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
    return Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), tuple(ids), ended)


def by_length(model: torch.nn.Module, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Batches of the places of rows of tokens, the shortest first: at most batch_size in each, and at least one.

    On a CPU they are fewer where a hidden state would have more than CACHED numbers: the activations of a large batch
    do not stay in its cache, so that GPT-2 takes twice as long for 32 texts at once as for 32 in fours.
    """
    weight, batch = next(model.parameters()), []  # the embedding: (tokens, width)
    most = CACHED // weight.shape[-1] if weight.device.type == "cpu" else None
    for place in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) == batch_size or (most and (len(batch) + 1) * len(rows[place]) > most)):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.no_grad()
def answer_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[Answer],
    *,
    batch_size: int,
    temperature: float = 1.0,
    encoded: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """log p(answer | prompt) in nats, summed over the tokens that were generated (EOS too). Returns (prompts,).

    prompts, encoded: as for generate_answers. `temperature` is that of the sampling: p is the distribution that the
    tokens were drawn from.
    """
    encoded = token_rows(tokenizer, prompts, encoded)
    rows = [ids + list(answer.token_ids) for ids, answer in zip(encoded, answers, strict=True)]
    totals = np.zeros(len(rows))
    trunk = trunk_of(model)
    for batch in by_length(model, rows, batch_size):
        ids, mask = right_padded([rows[i] for i in batch], tokenizer.pad_token_id)  # positions need no correction
        hidden = trunk(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).last_hidden_state
        for row, i in enumerate(batch):
            # Logits of the answer alone and of one row at a time: batch x tokens x vocabulary is gigabytes for GPT-2.
            answered = hidden[row, len(encoded[i]) - 1 : len(rows[i]) - 1]
            logprobs = torch.log_softmax(head_logits(model, answered, temperature), dim=-1)
            chosen = torch.tensor(answers[i].token_ids, dtype=torch.long, device=model.device)
            totals[i] = logprobs.gather(-1, chosen[:, None]).cpu().sum(dtype=torch.float64).item()
    asked = (prompt for prompt, total in zip(prompts, totals, strict=True) if not np.isfinite(total))
    finite.require("reading answers", {"log-probabilities": totals}, prompts=asked)
    return totals
