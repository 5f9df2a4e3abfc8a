"""The settings of PPO, chosen on validation prompts by a rule: the same grid and rule for the project's and TRL's.

Inputs: the checkpoints sft_full_final and reward_model_final, and the settings of PPO in run.json. Writes ppo_grid.csv,
one row for each run: trainer (scratch or trl), the searched settings, and of the policy that came out, on the prompts
of the validation split: reward with interval (standard deviations of SFT's answers, 0 being SFT's mean), kl (nats per
answer), stop_rate; clip_fraction and explained_variance (scratch only) of training, means over the last quarter of the
updates; seconds; chosen.
"""

import dataclasses
import itertools
import time

from rlhf import data, generation, metrics, models, outputs
from rlhf.evaluation.answers import decode, prompt_rows
from rlhf.ppo import trl
from rlhf.ppo.settings import Settings
from rlhf.ppo.trainer import PPOTrainer
from rlhf.profiles import Profile
from rlhf.reward import scoring

import numpy as np
import pandas as pd
from datasets import Dataset

GRID = {"learning_rate": (1e-4, 2e-4, 4e-4), "epochs": (2, 4), "kl_coef": (0.05, 0.1)}
KL_BUDGET = 4.0  # nats per answer
TRAINERS = ("scratch", "trl")
FILE = "ppo_grid.csv"


def chosen(table: pd.DataFrame, trainer: str) -> pd.Series:
    """The row of a trainer that the rule chooses: the highest reward of those that stay within KL_BUDGET.

    Raises ValueError where no run does.
    """
    rows = table[(table.trainer == trainer) & (table.kl <= KL_BUDGET)]
    if rows.empty:
        raise ValueError(f"no run of {trainer} in {FILE} stays within {KL_BUDGET:g} nats; search lower learning rates.")
    return rows.loc[rows.reward.idxmax()]


def run(profile: Profile) -> pd.DataFrame:
    """Every run of the grid that is not in ppo_grid.csv yet. Returns the table, with the chosen rows marked."""
    search = _Search(profile)
    for trainer, values in itertools.product(TRAINERS, itertools.product(*GRID.values())):
        changes = dict(zip(GRID, values, strict=True))
        table = _read(profile)
        if len(table) and (table[["trainer", *GRID]] == [trainer, *values]).all(axis=1).any():
            continue
        started = time.perf_counter()
        row = {"trainer": trainer} | changes | search.measure(trainer, changes)
        row["seconds"] = round(time.perf_counter() - started, 1)
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        outputs.write_csv(profile, FILE, table)
        print(pd.DataFrame([row]).to_string(index=False), flush=True)
    table["chosen"] = False
    for trainer in TRAINERS:
        table.loc[chosen(table, trainer).name, "chosen"] = True
    outputs.write_csv(profile, FILE, table)
    return table


def _read(profile: Profile) -> pd.DataFrame:
    there = (outputs.evaluation_dir(profile) / FILE).exists()
    return outputs.read_csv(profile, FILE) if there else pd.DataFrame()


class _Search:
    """What all runs of the grid share."""

    def __init__(self, profile: Profile):
        self.profile, self.settings = profile, Settings(**outputs.read_json(profile, "run.json")["ppo"])
        self.tokenizer = models.load_tokenizer(profile)
        self.sft = models.load_policy(profile, "sft_full")
        self.training_prompts = data.training_prompts(profile, self.tokenizer, self.settings.max_prompt_tokens)
        self.prompts = list(prompt_rows(profile, self.tokenizer, "validation")["prompt"])
        self.reward_model = models.load_reward_model(profile)
        self.unit = outputs.read_json(profile, "reward_unit.json")["logits"]
        scoring.rescale(self.reward_model, 1 / self.unit)
        self.level = self._rewards(self.sft)[0].mean()

    def reward(self, prompts: list[str], responses: list[str], ended: list[bool]) -> np.ndarray:
        size = self.profile.decoding.batch_size
        return scoring.score(self.reward_model, self.tokenizer, prompts, responses, ended, batch_size=size)

    def _rewards(self, policy) -> tuple[np.ndarray, list]:
        answers = decode(self.profile, policy, self.tokenizer, self.prompts, "sample")
        return self.reward(self.prompts, [a.text for a in answers], [a.ended for a in answers]), answers

    def measure(self, trainer: str, changes: dict) -> dict[str, float]:
        """Train with `changes` of the settings, and measure the policy."""
        settings = dataclasses.replace(self.settings, **changes)
        policy = models.load_policy(self.profile, "sft_full")
        train = self._train_scratch if trainer == "scratch" else self._train_trl
        curve = train(policy, settings).tail(max(1, settings.updates // 4))
        rewards, answers = self._rewards(policy)
        options = {"batch_size": self.profile.decoding.batch_size, "temperature": settings.temperature}
        arguments = self.tokenizer, self.prompts, answers
        own, sft = (generation.answer_logprobs(m, *arguments, **options) for m in (policy, self.sft))
        mean, low, high = metrics.bootstrap_interval(rewards - self.level)
        return {
            **{"reward": mean, "ci_low": low, "ci_high": high, "kl": float((own - sft).mean())},
            "stop_rate": np.mean([answer.ended for answer in answers]),
            "clip_fraction": curve.clip_fraction.mean(),
            "explained_variance": curve.explained_variance.mean() if trainer == "scratch" else np.nan,
        }

    def _train_scratch(self, policy, settings: Settings) -> pd.DataFrame:
        arguments = self.reward, self.tokenizer, self.training_prompts, settings
        return PPOTrainer(policy, self.sft, *arguments, value_model=models.new_value_model(self.profile)).train()

    def _train_trl(self, policy, settings: Settings) -> pd.DataFrame:
        prompts = Dataset.from_dict({"input_ids": generation.encode_prompts(self.tokenizer, self.training_prompts)})
        reward_model = models.load_reward_model(self.profile)
        scoring.rescale(reward_model, 1 / self.unit)
        trainer = trl.make_trainer(
            *(self.profile, settings, policy, models.load_policy(self.profile, "sft_full"), reward_model),
            *(models.new_value_model(self.profile), self.tokenizer, prompts),
        )
        trainer.train()
        return trl.training_curve(trainer)
