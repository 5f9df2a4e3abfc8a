"""PPO's loop: answer a batch of prompts, score the answers, estimate advantages, take a few clipped steps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlhf import finite, resume, runtime
from rlhf.generation import context_of
from rlhf.ppo import algorithm, checkpoint, monitor
from rlhf.ppo.actors import Actors
from rlhf.ppo.experience import Experience, Rollout
from rlhf.ppo.settings import Settings
from rlhf.training import lr_scale

import numpy as np
import pandas as pd
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

RewardFunction = Callable[[list[str], list[str], list[bool]], Sequence[float]]


class PPOTrainer(Actors):
    """PPO on a policy.

    policy, ref: causal language models with the same tokenizer; the reference is left as it is. Both run without
    dropout: with it, the probability of a token would differ between rollout and training. Where the policy's lower
    layers are frozen and the reference has the same ones, they run once for each batch (shared_layers). prompts are
    texts; the policy continues each in the template, or the row of tokens that `encoded` has for it.
    reward_fn(prompts, responses, ended) gives one finite number for each response, higher is better; ended says which
    have an EOS. The value of a state is read off the policy's own trunk by a linear head that starts at zero, or off
    `value_model`, a model for sequence classification with one label; with several answers per prompt no value is
    learnt (algorithm.leave_one_out). With settings.advantage it is the trainer of RLOO or GRPO, whose advantages take
    the place of gae's. Checkpoints go to `checkpoints`, TensorBoard files to `logs`.

    Raises ValueError for settings that don't fit together, for fewer prompts than a batch and for a prompt that leaves
    no room for an answer.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        ref: PreTrainedModel,
        reward_fn: RewardFunction,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        settings: Settings,
        *,
        encoded: Sequence[Sequence[int]] | None = None,
        value_model: PreTrainedModel | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ):
        super().__init__(policy, ref, value_model, tokenizer, prompts, encoded, settings)
        self.reward_fn = reward_fn
        self._check()
        self.generator = torch.Generator().manual_seed(settings.seed)  # of the order of prompts and mini-batches
        groups = [[p for p in module.parameters() if p.requires_grad] for module in (policy, self.value_module)]
        self.parameters = [p for group in groups for p in group]
        self.rates = (settings.learning_rate, settings.value_learning_rate or settings.learning_rate)
        self.optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups], eps=settings.adam_epsilon, weight_decay=0.0, fused=True
        )
        self.kl_coef, self.update, self.too_far, self.rows = settings.kl_coef, 0, 0, []
        self.order, self.position = torch.randperm(len(self.prompts), generator=self.generator), 0
        self.checkpoints, self.last_checkpoint, self.asked = checkpoints, None, []
        self.start_weights = resume.of_weights(*filter(None, (policy, ref, value_model)))
        self.writer = SummaryWriter(str(logs)) if logs else None
        self.seconds = dict.fromkeys(("generation", "scoring", "forward", "backward", "optimiser"), 0.0)

    def _check(self) -> None:
        settings = self.settings
        if settings.batch_size % settings.mini_batches:
            raise ValueError(
                f"a batch of {settings.batch_size} can't be cut into {settings.mini_batches} equal mini-batches."
            )
        size, rest = divmod(settings.batch_size, settings.answers_per_prompt)
        if rest:
            raise ValueError(
                f"{settings.batch_size} is no multiple of {settings.answers_per_prompt} answers per prompt."
            )
        if settings.answers_per_prompt > 1 and (self.value_model or settings.lam != 1):
            raise ValueError("several answers per prompt are a baseline: give no value model, and lam 1.")
        known = ("gae", *algorithm.GROUP_ADVANTAGES)
        if settings.advantage not in known:
            raise ValueError(f"advantage {settings.advantage!r} is none of {', '.join(known)}.")
        if settings.advantage != "gae" and settings.answers_per_prompt < 2:
            raise ValueError(f"{settings.advantage} compares answers: give answers_per_prompt of 2 or more.")
        if len(self.prompts) < size:
            found = f"{len(self.prompts)} prompts are fewer than a batch of {size}"
            raise ValueError(f"{found}; give more prompts or lower batch_size.")
        if self.tokenizer.pad_token_id in (None, self.tokenizer.eos_token_id):
            raise ValueError("the tokenizer needs a pad token that is not EOS, or answers never learn to end.")
        room = context_of(self.policy) - settings.max_new_tokens
        for prompt, ids in zip(self.prompts, self.encoded, strict=True):
            if len(ids) > room:
                raise ValueError(
                    f"prompt {prompt[:60]!r} takes {len(ids)} tokens; with {settings.max_new_tokens} new ones it "
                    f"doesn't fit into the context; leave it out."
                )
        if not any(p.requires_grad for p in self.policy.parameters()):
            raise ValueError("every weight of the policy is frozen; call policy.requires_grad_(True).")

    @property
    def curve(self) -> pd.DataFrame:
        """One row per update so far."""
        return pd.DataFrame(self.rows)

    @functools.cached_property
    def probed_rewards(self) -> list[str]:
        """What the reward function gives for a short answer to two of the prompts, by which a checkpoint knows it."""
        prompts = self.prompts[:2]
        return [f"{reward:.3g}" for reward in self.reward_fn(prompts, ["Yes."] * len(prompts), [True] * len(prompts))]

    @property
    def has_ended(self) -> bool:
        """Whether all updates are done, or the KL has been above its ceiling for too long."""
        return self.update >= self.settings.updates or self.too_far >= self.settings.kl_patience

    @property
    def lr_scale(self) -> float:
        """The share of the learning rates that this update takes."""
        return lr_scale(self.update, self.settings.warmup_updates)

    def train(self) -> pd.DataFrame:
        """Run until `updates` updates are done, or the KL has been above its ceiling for too long. Returns the curve.

        With a folder for checkpoints it goes on from the last one there, and writes one when it is due (resume.Timer)
        and at the end; with settings.checkpoint_every it writes and keeps those instead.
        Warns where the answers lose their variety (monitor.LIMITS).
        Raises NotFiniteError where the loss or the KL is not finite, ValueError for scores that can't be used and where
        sampler and trainer disagree (check_sampler), OutOfMemoryError where not even one answer fits (_in_memory).
        """
        runtime.free_memory()  # of the trainings before this one in the same process
        settings = self.settings
        ceiling = math.inf if settings.kl_ceiling is None else settings.kl_ceiling
        if self.checkpoints:
            resume.require_room(self.checkpoints, self.policy, self.value_module)
            if not self.update:
                checkpoint.take_up(self)
        timer = resume.Timer()
        if not self.update:
            gap = self._in_memory(self.check_sampler)
            print(f"log-probabilities: the sampler's differ from the trainer's by {gap:.0e} nats per token")
        warned = set(monitor.warnings(self.rows))  # before a pause
        with tqdm(total=settings.updates, initial=self.update, desc="PPO", unit="update") as progress:
            while not self.has_ended:
                row = self.step()
                for line in monitor.warnings(self.rows):
                    if line not in warned:
                        warned.add(line)
                        tqdm.write(f"Warning: {line}")
                progress.set_postfix(reward=f"{row['reward']:.2f}", kl=f"{row['kl']:.2f}", refresh=False)
                progress.update()
                self.too_far = self.too_far + 1 if row["kl"] > ceiling else 0
                if settings.checkpoint_every:
                    if self.update % settings.checkpoint_every == 0:
                        self.save()
                elif self.checkpoints and (timer.due() or self.has_ended):
                    resume.keep_only(self.save())
        if self.too_far >= settings.kl_patience:
            print(
                f"Stopped after {self.update} of {settings.updates} updates: the KL has been above {ceiling:g} nats "
                f"for {self.too_far} updates. A higher kl_coef or a lower learning rate keeps the policy nearer."
            )
        if self.writer:
            self.writer.close()
        return self.curve

    def step(self) -> dict[str, float]:
        """One update: rollout, scores, advantages, gradient steps. Returns its row of the curve."""
        settings = self.settings
        indices, draws = self._next_prompts(), f"{settings.seed} update {self.update}"
        experience = self._in_memory(self.experience, indices, draws)
        learning = {"kl_coef": self.kl_coef, "learning_rate": settings.learning_rate * self.lr_scale}
        row = {"update": self.update + 1, "episode": (self.update + 1) * settings.batch_size}
        row |= experience.row | learning
        self._check_finite(row)
        row |= self.optimise(*experience[:-1])
        if settings.kl_target is not None:
            self.kl_coef = algorithm.adapted_kl_coef(
                self.kl_coef, row["kl"], settings.kl_target, settings.batch_size, settings.kl_horizon
            )
        self.update += 1
        self.rows.append(row)
        if self.writer:
            for name, value in row.items():
                self.writer.add_scalar(f"ppo/{name}", value, row["episode"])
            self.writer.flush()
        return row

    def generate(self, indices: Sequence[int], draws: str) -> Rollout:
        self.asked = list(indices)
        rollout = super().generate(indices, draws)
        self._check_finite({"log-probabilities of the answers": rollout.sampler_logprobs})
        return rollout

    def experience(self, indices: Sequence[int], draws: str) -> Experience:
        """Answers to the prompts of these indices, and their advantages and returns; nothing is trained."""
        settings = self.settings
        with self._timed("generation"):
            rollout = self.generate(indices, draws)
        with self._timed("scoring"):
            scores = self.score([self.prompts[i] for i in indices], rollout)
            old_logprobs, values = self.compute_logprobs_and_values(rollout)
            ref_logprobs = self.compute_ref_logprobs(rollout)
        mask, value_mask = rollout.mask, self.value_mask(rollout)
        kl_k1, kl_k3 = algorithm.kl_estimates(old_logprobs, ref_logprobs, mask)
        rewards = algorithm.kl_penalised_rewards(old_logprobs, ref_logprobs, scores, value_mask, self.kl_coef)
        if settings.whiten_rewards:
            rewards = algorithm.masked_whiten(rewards, value_mask, shift_mean=False)
        totals, answers = rewards.sum(dim=1), settings.answers_per_prompt
        if answers > 1:
            values = algorithm.leave_one_out(totals, answers)[:, None] * value_mask
        advantages, returns = algorithm.gae(rewards, values, value_mask, settings.gamma, settings.lam)
        if settings.advantage != "gae":
            advantages = algorithm.GROUP_ADVANTAGES[settings.advantage](totals, answers, mask)
        if settings.whiten_advantages:
            advantages = algorithm.masked_whiten(advantages, mask)
        row = {
            "reward": scores.mean().item(),
            "reward_std": scores.std(correction=0).item(),
            "kl": kl_k1.mean().item(),
            "kl_k3": kl_k3.mean().item(),
            "reward_minus_kl": (scores - self.kl_coef * kl_k1).mean().item(),
            "entropy": -algorithm.masked_mean(old_logprobs, mask).item(),
            "explained_variance": algorithm.explained_variance(values, returns, value_mask),
            "response_length": mask.sum(dim=1).float().mean().item(),
            "stop_rate": rollout.ended.float().mean().item(),
        } | monitor.variety(rollout.responses, mask)
        return Experience(rollout, old_logprobs, values, advantages, returns, row)

    def _next_prompts(self) -> list[int]:
        """The next batch, in a random order that visits every prompt before any comes again.

        What a pass leaves over begins the next batch, and those prompts come last in the next pass. With several
        answers per prompt, a prompt stands as often, side by side.
        """
        size = self.settings.batch_size // self.settings.answers_per_prompt
        if self.position + size > len(self.order):
            rest, new = self.order[self.position :], torch.randperm(len(self.prompts), generator=self.generator)
            used = torch.isin(new, rest)
            self.order, self.position = torch.cat([rest, new[~used], new[used]]), 0
        self.position += size
        batch = self.order[self.position - size : self.position]
        return batch.repeat_interleave(self.settings.answers_per_prompt).tolist()

    def score(self, prompts: list[str], rollout: Rollout) -> torch.Tensor:
        """What the reward function gives for each answer, less what an answer that did not end forfeits: (batch,)."""
        tokens = rollout.responses.masked_fill(rollout.mask == 0, self.tokenizer.pad_token_id)
        responses = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        if self.in_template:  # an answer; else what was written goes on where the prompt stops, perhaps in a word
            responses = [text.strip() for text in responses]
        given = np.asarray(self.reward_fn(prompts, responses, rollout.ended.tolist()), dtype=np.float32)
        if given.shape != (len(prompts),):
            raise ValueError(
                f"the reward function returned shape {given.shape} for {len(prompts)} responses; it must give one "
                f"number for each."
            )
        for i in np.flatnonzero(~np.isfinite(given)):
            found = f"the reward function returned {given[i]} for the response {responses[i][:80]!r}"
            self._check_finite({f"reward ({found})": given}, [prompts[i]])
        return torch.from_numpy(given).to(self.device) - self.settings.missing_eos_penalty * (~rollout.ended).float()

    def optimise(self, rollout: Rollout, old_logprobs, old_values, advantages, returns) -> dict[str, float]:
        """Passes over the batch in mini-batches, one optimiser step each. Returns means over all of these steps.

        A mini-batch may be cut into micro-batches: each counts by its share of the tokens, so that the gradient is that
        of the whole mini-batch, whatever the cut.
        """
        settings, mask = self.settings, rollout.mask
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.lr_scale
        steps = []
        for _ in range(settings.epochs):
            shuffled = torch.randperm(len(mask), generator=self.generator).to(self.device)
            for mini in shuffled.chunk(settings.mini_batches):
                sums = self._in_memory(self._backward, mini, rollout, old_logprobs, old_values, advantages, returns)
                with self._timed("optimiser"):
                    sums["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm).item()
                    self._check_finite(sums)
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
                steps.append(sums)
        return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}

    def _backward(self, mini, rollout, old_logprobs, old_values, advantages, returns) -> dict[str, float]:
        """Add the gradient of a mini-batch, in micro-batches. Returns what was measured on it."""
        settings, mask, value_mask = self.settings, rollout.mask, self.value_mask(rollout)
        sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
        for rows in self._by_length(rollout, mini):
            share = mask[rows].sum() / mask[mini].sum()
            value_share = value_mask[rows].sum() / value_mask[mini].sum()
            with self._timed("forward"):
                logprobs, values = self.forward(rollout, rows)
                values = values if settings.answers_per_prompt == 1 else old_values[rows]
                loss, clipped = algorithm.policy_loss(
                    logprobs, old_logprobs[rows], advantages[rows], mask[rows], settings.cliprange
                )
                v_loss = algorithm.value_loss(
                    values, old_values[rows], returns[rows], value_mask[rows], settings.cliprange_value
                )
                total = share * loss + settings.vf_coef * value_share * v_loss
            with self._timed("backward"):
                total.backward()
            with torch.no_grad():
                _, change = algorithm.kl_estimates(old_logprobs[rows], logprobs, mask[rows])
            sums["policy_loss"] += (share * loss).item()
            sums["value_loss"] += (value_share * v_loss).item()
            sums["clip_fraction"] += (share * clipped).item()
            sums["approx_kl"] += (change.sum() / mask[mini].sum()).item()
        return sums

    def _in_memory(self, compute: Callable, *arguments):
        """What `compute` gives. While a GPU's memory is too small for it, it is done again with half the micro-batch.

        The gradient is that of the whole mini-batch, whatever the cut. Raises OutOfMemoryError where one is too many.
        """
        while True:
            try:
                return compute(*arguments)
            except torch.OutOfMemoryError as error:
                size = self.micro_batch_size
                if size == 1:
                    fault = f"update {self.update + 1}: the memory of the GPU is too small for one answer at a time"
                    raise torch.OutOfMemoryError(f"{fault}; lower batch_size or max_new_tokens.") from error
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.settings = dataclasses.replace(self.settings, micro_batch_size=size // 2)
            tqdm.write(f"Out of memory: micro_batch_size is now {size // 2}, not {size}; the steps are the same.")

    def _check_finite(self, numbers: dict[str, float], prompts: Sequence[str] | None = None) -> None:
        finite.require(
            f"update {self.update + 1}",
            {name: value for name, value in numbers.items() if name != "explained_variance"},
            prompts=(self.prompts[i] for i in self.asked) if prompts is None else prompts,
            kept=self.last_checkpoint or "none",
            advice=f"Lower the learning rate ({self.settings.learning_rate:g}) or max_grad_norm; look at the rewards.",
        )

    def save(self) -> Path:
        """Everything that the next update depends on, in checkpoints/update_<n>, put in place when it is complete."""
        return checkpoint.save(self)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of `save`, with the same models, prompts and settings as there."""
        checkpoint.restore(self, path)

    @contextmanager
    def _timed(self, part: str):
        """Adds the seconds of the block to `seconds[part]`."""
        started = runtime.clock()
        yield
        self.seconds[part] += runtime.clock() - started
