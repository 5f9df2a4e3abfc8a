"""Policy, reference and value model: what they answer, and what they say of what was answered."""

from collections.abc import Callable, Sequence

from rlhf import runtime
from rlhf.generation import head_logits, left_padded, sample, token_rows, trunk_of, uniform_draws
from rlhf.ppo import algorithm
from rlhf.ppo.experience import Rollout
from rlhf.ppo.settings import Settings
from rlhf.ppo.shared_layers import shared_by

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Nats per token, on average. Rounding of the trunk to bfloat16 gives some hundredths.
LARGEST_SAMPLER_GAP = 0.1


class Actors:
    """The models of a PPO run with its prompts: sampling, log-probabilities and values.

    The value of a state is read off the policy's own trunk by a linear head that starts at zero, or off `value_model`.
    Frozen lower layers that the models share run once for a rollout (shared_layers).
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        ref: PreTrainedModel,
        value_model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        encoded: Sequence[Sequence[int]] | None,
        settings: Settings,
    ):
        self.policy, self.ref, self.value_model = policy.eval(), ref.eval(), value_model and value_model.eval()
        self.tokenizer, self.settings, self.device = tokenizer, settings, policy.device
        self.prompts = list(prompts)
        self.in_template = encoded is None
        self.encoded = token_rows(tokenizer, self.prompts, encoded)
        width = policy.get_output_embeddings().weight.shape[1]
        self.value_head = torch.nn.Linear(width, 1, device="meta").to_empty(device=self.device)  # no draw is made
        self.value_head.load_state_dict({"weight": torch.zeros(1, width), "bias": torch.zeros(1)})
        self.value_module = self.value_head if value_model is None else value_model  # what learns the values
        everyone = [model for model in (self.policy, self.ref, self.value_model) if model is not None]
        self.shared = shared_by(everyone)
        self.upper = {model: self.shared.upper(model) for model in everyone} if self.shared else {}

    @property
    def micro_batch_size(self) -> int:
        """The answers that a pass takes: no more than a mini-batch has."""
        return min(self.settings.micro_batch_size, self.settings.batch_size // self.settings.mini_batches)

    @torch.no_grad()
    def generate(self, indices: Sequence[int], draws: str) -> Rollout:
        """Sampled answers to the prompts of these indices; `draws` names the random numbers (uniform_draws)."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        prompts, attention = (t.to(self.device) for t in left_padded([self.encoded[i] for i in indices], pad))
        numbers = uniform_draws(draws, [self.prompts[i] for i in indices], self.settings.max_new_tokens)
        with runtime.autocast(self.device):
            drawn = sample(
                self.policy, prompts, attention, numbers, temperature=self.settings.temperature, eos=eos, pad=pad
            )
        mask = algorithm.response_mask(drawn.tokens, eos)
        rollout = Rollout(
            sequences=torch.cat([prompts, drawn.tokens], dim=1),
            attention=torch.cat([attention, mask], dim=1),
            responses=drawn.tokens,
            mask=mask,
            ended=(drawn.tokens == eos).any(dim=1),
            sampler_logprobs=drawn.logprobs,
        )
        if self.shared is None:
            return rollout
        return rollout._replace(lower=self._in_micro_batches(self._lower, rollout)[0])

    def check_sampler(self) -> float:
        """How far the sampler's log-probabilities lie from the trainer's, in nats per token, on one micro-batch.

        The two read the same tokens in another way: one by one with a cache, and all at once. PPO's ratios assume that
        they agree. Raises ValueError where they differ by more than rounding.
        """
        rollout = self.generate(range(min(self.micro_batch_size, len(self.prompts))), draws="check")
        difference = self.compute_logprobs_and_values(rollout)[0] - rollout.sampler_logprobs
        gap = algorithm.masked_mean(difference.abs(), rollout.mask).item()
        if not gap <= LARGEST_SAMPLER_GAP:
            raise ValueError(
                f"the sampler's log-probabilities differ from the trainer's by {gap:.2g} nats per token, more than "
                f"{LARGEST_SAMPLER_GAP}: PPO would correct for steps that were not taken. Train in float32, or check "
                f"that the policy gives the same logits with a cache as without."
            )
        return gap

    def value_mask(self, rollout: Rollout) -> torch.Tensor:
        """The tokens that have a reward and a value: (batch, tokens)."""
        return rollout.mask

    def _states(self, model: PreTrainedModel, rollout: Rollout, rows: torch.Tensor) -> torch.Tensor:
        """The trunk's last hidden states where it predicts the tokens of the answers: (rows, tokens, width).

        Columns that are padding in all of these rows are cut off before the forward pass, and so is the last token,
        which predicts nothing.
        """
        tokens = rollout.responses.shape[1]
        start, inputs = self._inputs(rollout, rows)
        trunk = trunk_of(model)
        if rollout.lower is not None:
            width = inputs.pop("input_ids").shape[1]
            inputs |= {"inputs_embeds": rollout.lower[rows, start : start + width], "use_cache": False}
            trunk = self.upper[model]
        prompt = rollout.sequences.shape[1] - tokens
        states = trunk(**inputs).last_hidden_state[:, prompt - start - 1 :]
        return torch.nn.functional.pad(states, (0, 0, 0, tokens - states.shape[1]))

    def _inputs(self, rollout: Rollout, rows: torch.Tensor) -> tuple[int, dict[str, torch.Tensor]]:
        """The first column that is no padding in all of these rows, and what a trunk reads from there on."""
        used = rollout.attention[rows].any(dim=0).nonzero()
        start, end = int(used[0]), int(used[-1])
        attention = rollout.attention[rows, start:end]
        return start, {
            "input_ids": rollout.sequences[rows, start:end],
            "attention_mask": attention,
            "position_ids": (attention.cumsum(dim=1) - 1).clamp(min=0),
        }

    def _lower(self, rollout: Rollout, rows: torch.Tensor) -> list[torch.Tensor]:
        """What the shared layers make of the rows: one of (rows, prompt + tokens, width), 0 on padding."""
        start, inputs = self._inputs(rollout, rows)
        with runtime.autocast(self.device):
            states = self.shared.lower(**inputs)
        right = rollout.sequences.shape[1] - start - states.shape[1]
        return [torch.nn.functional.pad(states, (0, 0, start, right))]

    def _logprobs(self, model: PreTrainedModel, states: torch.Tensor, rollout: Rollout, rows: torch.Tensor):
        """log-probabilities of the tokens, 0 outside of the mask: (rows, tokens). No logits are made for padding."""
        mask = rollout.mask[rows].bool()
        logits = head_logits(model, states[mask], self.settings.temperature)
        logprobs = algorithm.token_logprobs(logits, rollout.responses[rows][mask])
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, logprobs)

    def _values(self, states: torch.Tensor, rollout: Rollout, rows: torch.Tensor) -> torch.Tensor:
        head = self.value_head
        if self.value_model is not None:
            states, head = self._states(self.value_model, rollout, rows), self.value_model.score
        mask = self.value_mask(rollout)[rows].bool()
        with torch.autocast(self.device.type, enabled=False):
            values = head(states[mask].float()).squeeze(-1)
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)

    def forward(self, rollout: Rollout, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log-probabilities and values of the rows of a rollout under the policy as it is: two of (rows, tokens)."""
        with runtime.autocast(self.device):
            states = self._states(self.policy, rollout, rows)
            return self._logprobs(self.policy, states, rollout, rows), self._values(states, rollout, rows)

    def _by_length(self, rollout: Rollout, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """The rows in micro-batches of similar length, so that little of a forward pass is padding."""
        return rows[rollout.attention[rows].sum(dim=1).argsort()].split(self.micro_batch_size)

    def compute_logprobs_and_values(self, rollout: Rollout) -> list[torch.Tensor]:
        """`forward` of all rows, without gradient: two of (batch, tokens)."""
        return self._in_micro_batches(self.forward, rollout)

    def compute_ref_logprobs(self, rollout: Rollout) -> torch.Tensor:
        """log-probabilities under the reference: (batch, tokens)."""

        def forward(rollout, rows):
            with runtime.autocast(self.device):
                return [self._logprobs(self.ref, self._states(self.ref, rollout, rows), rollout, rows)]

        return self._in_micro_batches(forward, rollout)[0]

    @torch.no_grad()
    def _in_micro_batches(self, forward: Callable, rollout: Rollout) -> list[torch.Tensor]:
        """What `forward` gives for the rows of a rollout, each (rows, tokens), for all rows."""
        parts = self._by_length(rollout, torch.arange(len(rollout.mask), device=self.device))
        results = [torch.cat(tensors) for tensors in zip(*(forward(rollout, rows) for rows in parts), strict=True)]
        back = torch.cat(list(parts)).argsort()
        return [tensor[back] for tensor in results]
