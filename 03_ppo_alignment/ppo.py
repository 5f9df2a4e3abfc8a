"""Proximal policy optimisation (Schulman et al. 2017) for language models, written out.

First the algorithm as pure functions on tensors, then one trainer that uses them. Everywhere (batch, tokens) are the
tokens of the responses, and a mask is 1 on those up to and including EOS and 0 on the padding after it: what stands
there never changes a result.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rlhf import outputs
from rlhf.generation import head_logits, left_padded, sample
from rlhf.template import format_prompt

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _ChosenLogprobs(torch.autograd.Function):
    """log softmax of the logits at the tokens. Its gradient is the one (..., vocabulary) tensor that it makes."""

    @staticmethod
    def forward(ctx, logits, tokens):
        normaliser = logits.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(logits, tokens, normaliser)
        return (logits.gather(-1, tokens.unsqueeze(-1)) - normaliser).squeeze(-1)

    @staticmethod
    def backward(ctx, gradient):
        logits, tokens, normaliser = ctx.saved_tensors
        gradient = gradient.unsqueeze(-1)
        probabilities = (logits - normaliser).exp_()
        return probabilities.mul_(-gradient).scatter_add_(-1, tokens.unsqueeze(-1), gradient), None


def sequence_logprobs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """log pi(token) in nats under softmax(logits / temperature), the distribution that the tokens were drawn from.

    logits: (..., vocabulary), the prediction of each token; tokens: (...), integers. Returns (...), float32 or finer.
    d log pi(token) / d logits = onehot(token) - softmax(logits): written out, because autograd's chain of gather and
    logsumexp keeps several tensors of the size of the logits. Raises ValueError for shapes that don't match or a
    temperature that is not positive.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits {tuple(logits.shape)} don't predict tokens {tuple(tokens.shape)}.")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive.")
    logits = logits if temperature == 1 else logits / temperature
    return _ChosenLogprobs.apply(logits.float() if logits.dtype.itemsize < 4 else logits, tokens)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values under the mask, over all of them together: () from (batch, tokens).

    A mean per response first would weigh the tokens of short responses more. Raises ValueError for an empty mask.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError("the mask is empty: there is no token to average over.")
    return torch.where(mask.bool(), values, 0.0).sum() / count


def masked_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Values divided by their standard deviation under the mask, their mean taken off unless shift_mean is False.

    values, mask: (batch, tokens). Returns (batch, tokens), 0 outside of the mask. The variance is the unbiased one, as
    in Huang et al. 2024, "The N+ implementation details of RLHF with PPO". Raises ValueError for less than two tokens.
    """
    count = mask.sum()
    if count < 2:
        raise ValueError(f"{int(count)} tokens under the mask have no variance; give at least two.")
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask) * count / (count - 1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0.0)


def kl_penalised_rewards(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """Reward of each token: -kl_coef * (log pi - log pi_ref), and the score of the response on its last token.

    logprobs, ref_logprobs, mask: (batch, tokens), of the sampled tokens, in nats; scores: (batch,). Returns
    (batch, tokens). Raises ValueError where a response is empty.
    Source: Ziegler et al. 2019, equation 2, with the k1 estimate of the KL.
    """
    lengths = mask.sum(dim=1).long()
    if (lengths == 0).any():
        raise ValueError(f"response {int((lengths == 0).nonzero()[0])} of the batch is empty: it has no last token.")
    rewards = torch.where(mask.bool(), -kl_coef * (logprobs - ref_logprobs), 0.0)
    return rewards.scatter_add(1, lengths.unsqueeze(1) - 1, scores.to(rewards.dtype).unsqueeze(1))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation: advantages and returns, the targets of the value function.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t, where V and A are 0 after
    the last token. rewards, values, mask: (batch, tokens). Returns two of (batch, tokens), 0 outside of the mask.
    Source: Schulman et al. 2016, equations 11 and 16.
    """
    mask = mask.to(values.dtype)
    rewards, values = torch.where(mask.bool(), rewards, 0.0), torch.where(mask.bool(), values, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped objective, negated, and the share of tokens where the clipping took the gradient away.

    ratio = pi / pi_old;  L = -mean(min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A)). All: (batch, tokens); returns two
    of (). Source: Schulman et al. 2017, equation 7.
    """
    ratio = torch.exp(torch.where(mask.bool(), logprobs - old_logprobs, 0.0))
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, masked_mean((clipped > unclipped).float(), mask).detach()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Half the squared error of the values, of the worse of two: as they are, and held within clip of the old ones.

    All: (batch, tokens); returns (). Source: the value clipping of OpenAI's baselines, as in Huang et al. 2024.
    """
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (held - returns) ** 2), mask)


def kl_estimates(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two estimates of KL(pi || pi_ref) in nats per response, from tokens drawn from pi: k1 and k3.

    With d = log pi - log pi_ref of a token, k1 = d and k3 = exp(-d) - 1 + d, summed over the tokens of each response:
    (batch,) each. Both have the KL as their mean; k1 may be negative, k3 never is, and varies less while the two are
    near. Source: Schulman 2020, "Approximating KL divergence".
    """
    d = torch.where(mask.bool(), logprobs - ref_logprobs, 0.0)
    return d.sum(dim=1), (torch.exp(-d) - 1 + d).sum(dim=1)


class FixedKL:
    """The price of a nat of KL, the same for the whole run."""

    def __init__(self, coef: float):
        self.coef = coef

    def update(self, kl: float, responses: int) -> None:
        """A measured KL changes nothing."""


class AdaptiveKL:
    """A price that rises while the KL is above its target and falls while it is below.

    e = clip(KL / target - 1, -0.2, 0.2);  coef <- coef (1 + e responses / horizon). The clipping keeps one odd batch
    from throwing the price. Source: Ziegler et al. 2019, section 2.2.
    """

    def __init__(self, coef: float, target: float, horizon: float):
        if min(coef, target, horizon) <= 0:
            raise ValueError(f"coef {coef}, target {target} and horizon {horizon} of the KL must be positive.")
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, responses: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * responses / self.horizon


@dataclass(frozen=True)
class Settings:
    """What a run of PPOTrainer depends on; rewards are in the unit of the scores, KL in nats."""

    updates: int
    batch_size: int  # responses per update
    micro_batch_size: int  # responses that one forward or backward pass takes; memory, not the result, depends on it
    mini_batches: int  # optimiser steps per pass over the batch
    epochs: int  # passes over each batch
    max_new_tokens: int
    learning_rate: float
    temperature: float = 1.0
    value_learning_rate: float | None = None  # of what learns the values beside the policy; None: the same
    adam_epsilon: float = 1e-8  # in units of the gradient: what it exceeds moves a weight less than at the full rate
    warmup_updates: int = 0
    kl_coef: float = 0.05
    kl_target: float | None = None  # nats per response; with one, kl_coef is only the start (AdaptiveKL)
    kl_horizon: float = 10_000  # responses over which an adaptive kl_coef moves
    kl_ceiling: float | None = None  # nats per response; above it for `kl_patience` updates, the run stops
    kl_patience: int = 3
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    missing_eos_penalty: float = 0.0  # subtracted from the score of a response that did not end ...
    missing_eos_score: float | None = None  # ... or the score that it gets instead
    score_after_eos: bool = False  # TRL's convention: the score stands one token after EOS, where there is one
    max_grad_norm: float = 1.0
    checkpoint_every: int = 0  # updates; 0: never
    seed: int = 0


class Rollout(NamedTuple):
    """What the policy wrote for a batch of prompts. (batch, tokens) are the tokens of the responses."""

    sequences: torch.Tensor  # (batch, prompt + tokens), prompts padded on the left, responses on the right
    attention: torch.Tensor  # the same shape: 1 on prompt and response
    responses: torch.Tensor  # (batch, tokens)
    mask: torch.Tensor  # (batch, tokens): 1 up to and including EOS
    ended: torch.Tensor  # (batch,): whether there is an EOS
    logprobs: torch.Tensor | None = None  # (batch, tokens): of the tokens under the policy that drew them; 0 outside
    values: torch.Tensor | None = None  # (batch, tokens): of the states that they were drawn in; 0 outside


def response_mask(responses: torch.Tensor, eos: int) -> torch.Tensor:
    """1 up to and including the first EOS of each row, 0 after it: (batch, tokens) from (batch, tokens)."""
    is_eos = (responses == eos).long()
    return (is_eos.cumsum(dim=1) - is_eos == 0).long()


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) under the mask: 1 for a perfect value function, 0 for a constant one."""
    mask = mask.bool()
    variance = returns[mask].var()
    return float(1 - (returns - values)[mask].var() / variance) if variance > 0 else float("nan")


class PPOTrainer:
    """PPO on a policy: answer a batch of prompts, score the answers, estimate advantages, take a few clipped steps.

    policy, ref: causal language models with the same tokenizer; the reference is left as it is. Both run without
    dropout: with it, the probability of a token would differ between rollout and training. reward_fn(prompts,
    responses) gives one finite number for each response, higher is better. prompts are texts without template. The
    value of a state is read off the policy's own trunk by a linear head that starts at zero, or off `value_model`, a
    model for sequence classification with one label. Checkpoints go to `checkpoints`, TensorBoard files to `logs`,
    where given.

    Raises ValueError for settings that don't fit together, for fewer prompts than a batch and for a prompt that leaves
    no room for an answer.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        ref: PreTrainedModel,
        reward_fn: Callable[[list[str], list[str]], Sequence[float]],
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        settings: Settings,
        *,
        value_model: PreTrainedModel | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ):
        self.policy, self.ref, self.value_model = policy.eval(), ref.eval(), value_model and value_model.eval()
        self.reward_fn, self.tokenizer, self.settings = reward_fn, tokenizer, settings
        self.device = policy.device
        self.prompts = list(prompts)
        self.encoded = tokenizer([format_prompt(p) for p in self.prompts], truncation=False, verbose=False)["input_ids"]
        self._check()
        torch.manual_seed(settings.seed)
        self.generator = torch.Generator().manual_seed(settings.seed)  # of the order of prompts and mini-batches
        self.value_head = torch.nn.Linear(policy.config.hidden_size, 1).to(self.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.value_module = self.value_head if value_model is None else value_model  # what learns the values
        groups = [[p for p in module.parameters() if p.requires_grad] for module in (policy, self.value_module)]
        self.parameters = [p for group in groups for p in group]
        self.rates = (settings.learning_rate, settings.value_learning_rate or settings.learning_rate)
        groups = [{"params": group} for group in groups]
        self.optimizer = torch.optim.AdamW(groups, eps=settings.adam_epsilon, weight_decay=0.0, fused=True)
        self.embedding, self.head_weight = policy.get_input_embeddings(), policy.get_output_embeddings().weight
        self.tied = self.head_weight is self.embedding.weight
        if self.tied:
            # The head's gradient fills the whole matrix, the input's a few rows of it. Autograd would add the two in a
            # copy of the matrix; a leaf of its own on the same memory lets `optimise` add the rows in place.
            self.embedding.sparse = True
            self.head_weight = self.head_weight.detach().requires_grad_(self.head_weight.requires_grad)
        self.kl = FixedKL(settings.kl_coef)
        if settings.kl_target is not None:
            self.kl = AdaptiveKL(settings.kl_coef, settings.kl_target, settings.kl_horizon)
        self.update, self.too_far, self.rows = 0, 0, []
        self.order, self.position = torch.randperm(len(self.prompts), generator=self.generator), 0
        self.checkpoints, self.last_checkpoint = checkpoints, None
        self.writer = SummaryWriter(str(logs)) if logs else None
        self.seconds = dict.fromkeys(("generation", "scoring", "forward", "backward", "optimiser"), 0.0)

    def _check(self) -> None:
        settings = self.settings
        if settings.batch_size % settings.mini_batches:
            raise ValueError(
                f"a batch of {settings.batch_size} can't be cut into {settings.mini_batches} equal mini-batches."
            )
        if len(self.prompts) < settings.batch_size:
            raise ValueError(
                f"{len(self.prompts)} prompts are fewer than a batch of {settings.batch_size}; give more prompts or "
                f"lower batch_size."
            )
        if self.tokenizer.pad_token_id in (None, self.tokenizer.eos_token_id):
            raise ValueError("the tokenizer needs a pad token that is not EOS, or answers never learn to end.")
        for name, model in (("policy", self.policy), ("reference", self.ref)):
            head = model.get_output_embeddings()
            if not isinstance(head, torch.nn.Linear) or head.bias is not None:
                raise ValueError(
                    f"the head of the {name} is {head}; PPOTrainer needs a linear layer without bias, like GPT-2's."
                )
        room = self.policy.config.max_position_embeddings - settings.max_new_tokens
        for prompt, ids in zip(self.prompts, self.encoded, strict=True):
            if len(ids) > room:
                raise ValueError(
                    f"prompt {prompt[:60]!r} has {len(ids)} tokens with its template; with {settings.max_new_tokens} "
                    f"new ones it doesn't fit into the context; leave it out."
                )
        if not any(p.requires_grad for p in self.policy.parameters()):
            raise ValueError("every weight of the policy is frozen; call policy.requires_grad_(True).")

    @property
    def curve(self) -> pd.DataFrame:
        """One row per update so far."""
        return pd.DataFrame(self.rows)

    def train(self) -> pd.DataFrame:
        """Run until `updates` updates are done, or the KL has been above its ceiling for too long. Returns the curve.

        Raises FloatingPointError where the loss or the KL is not finite, ValueError for scores that can't be used.
        """
        settings = self.settings
        ceiling = math.inf if settings.kl_ceiling is None else settings.kl_ceiling
        with tqdm(total=settings.updates, initial=self.update, desc="PPO", unit="update") as progress:
            while self.update < settings.updates and self.too_far < settings.kl_patience:
                row = self.step()
                progress.set_postfix(reward=f"{row['reward']:.2f}", kl=f"{row['kl']:.2f}", refresh=False)
                progress.update()
                self.too_far = self.too_far + 1 if row["kl"] > ceiling else 0
                if settings.checkpoint_every and self.update % settings.checkpoint_every == 0:
                    self.save()
        if self.too_far >= settings.kl_patience:
            print(
                f"Stopped after {self.update} of {settings.updates} updates: the KL has been above "
                f"{ceiling:g} nats for {self.too_far} updates. A higher kl_coef or a lower learning rate "
                f"keeps the policy nearer."
            )
        return self.curve

    def step(self) -> dict[str, float]:
        """One update: rollout, scores, advantages, gradient steps. Returns its row of the curve."""
        settings = self.settings
        numbers = self._next_prompts()
        with self._timed("generation"):
            rollout = self.generate(numbers)
        with self._timed("scoring"):
            scores = self.score([self.prompts[i] for i in numbers], rollout)
            known = rollout.values is not None
            old_logprobs, values = (rollout.logprobs, rollout.values) if known else self.read(rollout)
            ref_logprobs = self.read_ref(rollout)
        mask, value_mask = rollout.mask, self.value_mask(rollout)
        kl_k1, kl_k3 = kl_estimates(old_logprobs, ref_logprobs, mask)
        rewards = kl_penalised_rewards(old_logprobs * mask, ref_logprobs * mask, scores, value_mask, self.kl.coef)
        if settings.whiten_rewards:
            rewards = masked_whiten(rewards, value_mask, shift_mean=False)
        advantages, returns = gae(rewards, values, value_mask, settings.gamma, settings.lam)
        if settings.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        row = {
            "update": self.update + 1,
            "episode": (self.update + 1) * settings.batch_size,
            "reward": scores.mean().item(),
            "kl": kl_k1.mean().item(),
            "kl_k3": kl_k3.mean().item(),
            "reward_minus_kl": (scores - self.kl.coef * kl_k1).mean().item(),
            "entropy": -masked_mean(old_logprobs, mask).item(),
            "explained_variance": explained_variance(values, returns, value_mask),
            "response_length": mask.sum(dim=1).float().mean().item(),
            "stop_rate": rollout.ended.float().mean().item(),
            "kl_coef": self.kl.coef,
            "learning_rate": self.settings.learning_rate * self.warmth,
        }
        self._check_finite(row)
        row |= self.optimise(rollout, old_logprobs, values, advantages, returns)
        self.kl.update(row["kl"], settings.batch_size)
        self.update += 1
        self.rows.append(row)
        if self.writer:
            for name, value in row.items():
                self.writer.add_scalar(f"ppo/{name}", value, row["episode"])
        return row

    @property
    def warmth(self) -> float:
        """The share of the learning rates that this update uses: it rises over the warm-up and then stays."""
        return min(1.0, (self.update + 1) / (self.settings.warmup_updates + 1))

    def _next_prompts(self) -> list[int]:
        """The next batch, in a random order that visits every prompt before any comes again."""
        size = self.settings.batch_size
        if self.position + size > len(self.order):
            self.order, self.position = torch.randperm(len(self.prompts), generator=self.generator), 0
        self.position += size
        return self.order[self.position - size : self.position].tolist()

    @torch.no_grad()
    def generate(self, numbers: list[int]) -> Rollout:
        """Sampled answers to the prompts of these numbers, with log-probabilities and values as they were drawn."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        prompts, attention = (t.to(self.device) for t in left_padded([self.encoded[i] for i in numbers], pad))
        options = {"max_new_tokens": self.settings.max_new_tokens, "temperature": self.settings.temperature}
        with self._autocast():
            drawn = sample(self.policy, prompts, attention, **options, eos=eos, pad=pad)
        mask = response_mask(drawn.tokens, eos)
        rollout = Rollout(
            sequences=torch.cat([prompts, drawn.tokens], dim=1),
            attention=torch.cat([attention, mask], dim=1),
            responses=drawn.tokens,
            mask=mask,
            ended=(drawn.tokens == eos).any(dim=1),
        )
        if self.value_model is not None or self.settings.score_after_eos:  # their values need another forward pass
            return rollout
        values = self.value_head(drawn.states).squeeze(-1) * mask
        return rollout._replace(logprobs=drawn.logprobs, values=values)

    def texts(self, rollout: Rollout) -> list[str]:
        """The answers as text, without what stands after EOS."""
        tokens = rollout.responses.masked_fill(rollout.mask == 0, self.tokenizer.pad_token_id)
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def score(self, prompts: list[str], rollout: Rollout) -> torch.Tensor:
        """What the reward function gives for each answer, less what an answer that did not end forfeits: (batch,)."""
        responses = self.texts(rollout)
        given = np.asarray(self.reward_fn(prompts, responses), dtype=np.float32)
        if given.shape != (len(prompts),):
            raise ValueError(
                f"the reward function returned shape {given.shape} for {len(prompts)} responses; it must give one "
                f"number for each."
            )
        if not np.isfinite(given).all():
            i = int(np.flatnonzero(~np.isfinite(given))[0])
            raise ValueError(
                f"the reward function returned {given[i]} for the response {responses[i][:80]!r} to the prompt "
                f"{prompts[i][:60]!r}."
            )
        scores = torch.from_numpy(given).to(self.device)
        if self.settings.missing_eos_score is not None:
            return torch.where(rollout.ended, scores, self.settings.missing_eos_score)
        return scores - self.settings.missing_eos_penalty * (~rollout.ended).float()

    def value_mask(self, rollout: Rollout) -> torch.Tensor:
        """The tokens that have a reward and a value: those of the mask, and with `score_after_eos` one more."""
        if not self.settings.score_after_eos:
            return rollout.mask
        longer = torch.cat([torch.ones_like(rollout.mask[:, :1]), rollout.mask[:, :-1]], dim=1)
        return rollout.mask | longer

    def _states(self, model: PreTrainedModel, rollout: Rollout, rows: torch.Tensor) -> torch.Tensor:
        """The trunk's last hidden states where it predicts the tokens of the responses: (rows, tokens, width).

        Columns that are padding in all of these rows are cut off before the forward pass, and so is the last token,
        which predicts nothing, unless the state after it has a value.
        """
        tokens = rollout.responses.shape[1]
        used = rollout.attention[rows].any(dim=0).nonzero()
        start, prompt = int(used[0]), rollout.sequences.shape[1] - tokens
        end = int(used[-1]) + self.settings.score_after_eos
        attention = rollout.attention[rows, start:end]
        states = getattr(model, model.base_model_prefix)(
            input_ids=rollout.sequences[rows, start:end],
            attention_mask=attention,
            position_ids=(attention.cumsum(dim=1) - 1).clamp(min=0),
        ).last_hidden_state
        states = states[:, prompt - start - 1 :][:, :tokens]
        return torch.nn.functional.pad(states, (0, 0, 0, tokens - states.shape[1]))

    def _logprobs(self, model: PreTrainedModel, states: torch.Tensor, rollout: Rollout, rows: torch.Tensor):
        """log-probabilities of the tokens, 0 outside of the mask: (rows, tokens). No logits are made for padding."""
        mask = rollout.mask[rows].bool()
        weight = self.head_weight if model is self.policy else model.get_output_embeddings().weight
        # The head is linear, so the temperature may divide what goes in: no second tensor of logits.
        logits = head_logits(weight, states[mask] / self.settings.temperature)
        logprobs = sequence_logprobs(logits, rollout.responses[rows][mask])
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, logprobs)

    def _values(self, states: torch.Tensor, rollout: Rollout, rows: torch.Tensor) -> torch.Tensor:
        head = self.value_head
        if self.value_model is not None:
            states, head = self._states(self.value_model, rollout, rows), self.value_model.score
        mask = self.value_mask(rollout)[rows].bool()
        values = head(states[mask]).float().squeeze(-1)
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)

    def forward(self, rollout: Rollout, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log-probabilities and values of the rows of a rollout under the policy as it is: two of (rows, tokens)."""
        with self._autocast():
            states = self._states(self.policy, rollout, rows)
            return self._logprobs(self.policy, states, rollout, rows), self._values(states, rollout, rows)

    def _by_length(self, rollout: Rollout, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """The rows in micro-batches of similar length, so that little of a forward pass is padding."""
        size = min(self.settings.micro_batch_size, self.settings.batch_size // self.settings.mini_batches)
        return rows[rollout.attention[rows].sum(dim=1).argsort()].split(size)

    def read(self, rollout: Rollout) -> list[torch.Tensor]:
        """forward of all rows, without gradient: log-probabilities and values, two of (batch, tokens)."""
        return self._in_micro_batches(self.forward, rollout)

    def read_ref(self, rollout: Rollout) -> torch.Tensor:
        """log-probabilities under the reference: (batch, tokens)."""

        def forward(rollout, rows):
            with self._autocast():
                return [self._logprobs(self.ref, self._states(self.ref, rollout, rows), rollout, rows)]

        return self._in_micro_batches(forward, rollout)[0]

    @torch.no_grad()
    def _in_micro_batches(self, forward: Callable, rollout: Rollout) -> list[torch.Tensor]:
        """What `forward` gives for the rows of a rollout, each (rows, tokens), for all rows."""
        parts = self._by_length(rollout, torch.arange(len(rollout.mask), device=self.device))
        results = [torch.cat(tensors) for tensors in zip(*(forward(rollout, rows) for rows in parts), strict=True)]
        back = torch.cat(list(parts)).argsort()
        return [tensor[back] for tensor in results]

    def optimise(self, rollout: Rollout, old_logprobs, old_values, advantages, returns) -> dict[str, float]:
        """Passes over the batch in mini-batches, one optimiser step each. Returns means over all of these steps.

        A mini-batch may be cut into micro-batches: each counts by its share of the tokens, so that the gradient is that
        of the whole mini-batch, whatever the cut.
        """
        settings = self.settings
        mask, value_mask = rollout.mask, self.value_mask(rollout)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.warmth
        steps = []
        for _ in range(settings.epochs):
            shuffled = torch.randperm(len(mask), generator=self.generator).to(self.device)
            for mini in shuffled.chunk(settings.mini_batches):
                sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
                for rows in self._by_length(rollout, mini):
                    share = mask[rows].sum() / mask[mini].sum()
                    value_share = value_mask[rows].sum() / value_mask[mini].sum()
                    with self._timed("forward"):
                        logprobs, values = self.forward(rollout, rows)
                        loss, clipped = policy_loss(
                            logprobs, old_logprobs[rows], advantages[rows], mask[rows], settings.clip
                        )
                        v_loss = value_loss(
                            values, old_values[rows], returns[rows], value_mask[rows], settings.value_clip
                        )
                        total = share * loss + settings.value_coef * value_share * v_loss
                    with self._timed("backward"):
                        total.backward()
                    with torch.no_grad():
                        change = kl_estimates(old_logprobs[rows], logprobs, mask[rows])[1].sum() / mask[rows].sum()
                        for name, value, weight in (
                            ("policy_loss", loss, share),
                            ("value_loss", v_loss, value_share),
                            ("clip_fraction", clipped, share),
                            ("approx_kl", change, share),
                        ):
                            sums[name] += (value * weight).item()
                with self._timed("optimiser"):
                    self._join_tied_gradients()
                    sums["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm).item()
                    self._check_finite(sums)
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
                steps.append(sums)
        return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}

    def _join_tied_gradients(self) -> None:
        """The gradient of a matrix that is input and head: the input's rows added to the head's, in its memory."""
        if self.tied and self.head_weight.requires_grad:
            self.embedding.weight.grad = self.head_weight.grad.add_(self.embedding.weight.grad)
            self.head_weight.grad = None

    def _check_finite(self, numbers: dict[str, float]) -> None:
        bad = [name for name, value in numbers.items() if not math.isfinite(value) and name != "explained_variance"]
        if bad:
            listed = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            kept = (
                f"the last checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "there is no checkpoint"
            )
            raise FloatingPointError(
                f"update {self.update + 1}: {' and '.join(bad)} not finite ({listed}); {kept}. Lower the learning rate "
                f"or max_grad_norm, and look at the rewards."
            )

    def save(self) -> Path:
        """Everything that the next update depends on, in checkpoints/update_<n>, put in place when it is complete."""
        if self.checkpoints is None:
            raise ValueError("no folder for checkpoints was given; pass checkpoints=... to PPOTrainer.")
        path = Path(self.checkpoints) / f"update_{self.update:05d}"
        moments = {
            f"{i}.{name}": torch.as_tensor(value)
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        randomness = {"cpu": torch.get_rng_state(), "generator": self.generator.get_state(), "order": self.order}
        if torch.cuda.is_available():
            randomness["cuda"] = torch.cuda.get_rng_state()
        state = {
            "update": self.update,
            "position": self.position,
            "too_far": self.too_far,
            "kl_coef": self.kl.coef,
            "prompts": len(self.prompts),
            "rows": self.rows,
        }
        with outputs.new_folder(path) as folder:
            self.policy.save_pretrained(folder / "policy")
            values = {name: tensor.contiguous() for name, tensor in self.value_module.state_dict().items()}
            save_file(values, folder / "value.safetensors")
            save_file(moments, folder / "optimizer.safetensors")
            save_file(randomness, folder / "random.safetensors")
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        self.last_checkpoint = path
        return path

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of `save`, with the same models, prompts and settings as there.

        Raises FileNotFoundError where it is incomplete and ValueError where the prompts are others.
        """
        path = Path(path)
        if not (path / "state.json").exists():
            raise FileNotFoundError(f"{path} is no checkpoint of PPOTrainer: it has no state.json.")
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["prompts"] != len(self.prompts):
            raise ValueError(f"{path} was made with {state['prompts']} prompts, but there are {len(self.prompts)} now.")
        self.policy.load_state_dict(type(self.policy).from_pretrained(path / "policy").state_dict())
        self.value_module.load_state_dict(load_file(path / "value.safetensors"))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in load_file(path / "optimizer.safetensors").items():
            i, name = key.split(".", 1)
            moments.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        randomness = load_file(path / "random.safetensors")
        torch.set_rng_state(randomness["cpu"])
        self.generator.set_state(randomness["generator"])
        if torch.cuda.is_available() and "cuda" in randomness:
            torch.cuda.set_rng_state(randomness["cuda"])
        self.order, self.position = randomness["order"], state["position"]
        self.update, self.too_far, self.rows = state["update"], state["too_far"], state["rows"]
        self.kl.coef = state["kl_coef"]
        self.last_checkpoint = path

    def _autocast(self):
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )

    @contextmanager
    def _timed(self, part: str):
        """Adds the seconds of the block to `seconds[part]`."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[part] += time.perf_counter() - started
