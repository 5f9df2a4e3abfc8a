"""Classic faults of RLHF, each planted alone into a run of PPO: a function that builds the run's trainer with it.

The code that is at fault is here: the trainer, the reward model and the settings of a sound run know nothing of it.
"""

import dataclasses
from collections.abc import Callable, Sequence

from rlhf import models, outputs, tokens
from rlhf.generation import right_padded, trunk_of
from rlhf.ppo.experience import Rollout
from rlhf.ppo.trainer import PPOTrainer, RewardFunction
from rlhf.reward import scoring
from rlhf.studies.common import Study

import numpy as np
import torch
from transformers import PreTrainedModel

OTHER_TEMPLATE = "\n\nHuman: {prompt}\n\nAssistant: {response}"
FASTER = 10  # times the run's learning rate
SMALLER = 2  # times smaller than the run's are the batches: thirteen runs take as long as six and a half


class Start:
    """What every run starts from: the study's policy, prompts and settings, the reward model and the reward's unit.

    Inputs: those of a Study, and reward_unit.json. Raises FileNotFoundError where one is missing.
    """

    def __init__(self, study: Study):
        self.study, self.tokenizer = study, study.tokenizer
        self.settings = dataclasses.replace(study.settings, batch_size=study.settings.batch_size // SMALLER)
        self.batch_size = study.profile.decoding.batch_size
        self.reward_model = models.load_reward_model(study.profile)
        self.unit = outputs.read_json(study.profile, "reward_unit.json")["logits"]

    def score(self, model: PreTrainedModel, prompts, responses, ended) -> np.ndarray:
        """A reward model's logits, read as they should be: (prompts,)."""
        return scoring.score(model, self.tokenizer, prompts, responses, ended, batch_size=self.batch_size)

    def reward(self, prompts, responses, ended) -> np.ndarray:
        """The reward of a sound run, in deviations of SFT's answers: (prompts,)."""
        return self.score(self.reward_model, prompts, responses, ended) / self.unit

    def policy(self) -> PreTrainedModel:
        return models.load_policy(self.study.profile, "sft_full")

    def trainer(self, reward: RewardFunction | None = None, kind: type[PPOTrainer] = PPOTrainer, **changes):
        """A trainer with the run's settings and `changes` of them; without arguments that of a sound run."""
        study, settings = self.study, dataclasses.replace(self.settings, **changes)
        return kind(self.policy(), study.sft, reward or self.reward, self.tokenizer, study.training_prompts, settings)


class PadIsEosTrainer(PPOTrainer):
    """Takes every EOS for padding, as code does that builds its mask by `tokens != pad` when pad is EOS."""

    def generate(self, indices: Sequence[int], draws: str) -> Rollout:
        rollout = super().generate(indices, draws)
        mask = rollout.mask * (rollout.responses != self.tokenizer.eos_token_id)
        mask[:, 0] = 1  # an answer that is EOS alone would have no token left
        return rollout._replace(mask=mask)


def pad_is_eos(start: Start) -> PPOTrainer:
    """Pad is EOS: the end of an answer is masked like padding, in the loss and in what the reward model reads."""

    def reward(prompts, responses, ended):
        return start.reward(prompts, responses, [False] * len(ended))

    return start.trainer(reward, kind=PadIsEosTrainer)


def template_mismatch(start: Start) -> PPOTrainer:
    """The reward model reads another template than the one that it was trained on."""

    def reward(prompts, responses, ended):
        texts = [OTHER_TEMPLATE.format(prompt=p, response=r) for p, r in zip(prompts, responses, strict=True)]
        eos, encoded = [start.tokenizer.eos_token_id], tokens.encode(start.tokenizer, texts)
        rows = [ids + eos * bool(end) for ids, end in zip(encoded, ended, strict=True)]
        logits = scoring.score_tokens(start.reward_model, rows, start.tokenizer.pad_token_id, start.batch_size)
        return logits / start.unit

    return start.trainer(reward)


@torch.no_grad()
def logits_at_last_column(model: PreTrainedModel, rows: list[list[int]], pad: int) -> np.ndarray:
    """The logits of rows padded on the right, read where the longest row ends: (rows,)."""
    ids, mask = (tensor.to(model.device) for tensor in right_padded(rows, pad))
    states = trunk_of(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    return model.score(states[:, -1]).squeeze(-1).cpu().double().numpy()


def wrong_token(start: Start) -> PPOTrainer:
    """The reward is read in the last column of the padded batch: on padding, for all answers but the longest."""

    def reward(prompts, responses, ended):
        rows = scoring.encode(start.tokenizer, prompts, responses, ended)
        batches = [rows[i : i + start.batch_size] for i in range(0, len(rows), start.batch_size)]
        pad = start.tokenizer.pad_token_id
        return np.concatenate([logits_at_last_column(start.reward_model, b, pad) for b in batches]) / start.unit

    return start.trainer(reward)


def no_kl_penalty(start: Start) -> PPOTrainer:
    """The KL coefficient is zero: nothing holds the policy near the answers that the reward model knows."""
    return start.trainer(kl_coef=0.0)


def reference_is_policy(start: Start) -> PPOTrainer:
    """The reference is the policy itself, not a copy: it moves along, and their KL is always zero."""
    policy, study = start.policy(), start.study
    return PPOTrainer(policy, policy, start.reward, start.tokenizer, study.training_prompts, start.settings)


def rate_times_ten(start: Start) -> PPOTrainer:
    """The learning rate is ten times that of the run."""
    return start.trainer(learning_rate=FASTER * start.settings.learning_rate)


def reward_at_chance(start: Start) -> PPOTrainer:
    """The reward model's head was never trained; its scores have the same deviation over SFT's answers."""
    model, study = models.new_reward_model(start.study.profile, start.settings.seed).eval(), start.study
    texts, ended = [a.text for a in study.sft_answers], [a.ended for a in study.sft_answers]
    unit = start.score(model, study.prompts, texts, ended).std()

    def reward(prompts, responses, ended):
        return start.score(model, prompts, responses, ended) / unit

    return start.trainer(reward)


def no_whitening(start: Start) -> PPOTrainer:
    """Advantages are taken as they come: neither centred nor divided by their deviation over the batch."""
    return start.trainer(whiten_advantages=False)


FAULTS: dict[str, Callable[[Start], PPOTrainer]] = {
    fault.__name__: fault
    for fault in (
        *(pad_is_eos, template_mismatch, wrong_token, no_kl_penalty),
        *(reference_is_policy, rate_times_ten, reward_at_chance, no_whitening),
    )
}
