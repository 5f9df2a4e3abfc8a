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

from rlhf import generation, metrics, models, outputs
from rlhf.ppo import trl
from rlhf.profiles import Profile
from rlhf.reward import scoring
from rlhf.studies.common import Proxy, Study

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import PreTrainedModel

GRID = {"learning_rate": (5e-5, 1e-4, 2e-4), "epochs": (2, 4)}
KL_BUDGET = metrics.best_of_n_kl(32)  # nats per answer, 2.5: choosing among so many answers of SFT goes as far
TRAINERS = ("scratch", "trl")
FILE = "ppo_grid.csv"


def chosen(table: pd.DataFrame, trainer: str) -> pd.Series:
    """The row of a trainer that the rule chooses: the highest reward of those that stay within KL_BUDGET.

    Raises ValueError where no run does.
    """
    rows = table[(table.trainer == trainer) & (table.kl <= KL_BUDGET)]
    if rows.empty:
        raise ValueError(
            f"no run of {trainer} in {FILE} stays within {KL_BUDGET:.1f} nats; search lower learning rates."
        )
    return rows.loc[rows.reward.idxmax()]


def run(profile: Profile) -> pd.DataFrame:
    """Every run of the grid that is not in ppo_grid.csv yet. Returns the table, with the chosen rows marked."""
    study = Study(profile, "validation")
    proxy = Proxy(study, "final")
    for trainer, values in itertools.product(TRAINERS, itertools.product(*GRID.values())):
        changes = dict(zip(GRID, values, strict=True))
        table = _read(profile)
        if len(table) and (table[["trainer", *GRID]] == [trainer, *values]).all(axis=1).any():
            continue
        started = time.perf_counter()
        row = {"trainer": trainer} | changes | measure(study, proxy, trainer, changes)
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


def measure(study: Study, proxy: Proxy, trainer: str, changes: dict) -> dict[str, float]:
    """Train with `changes` of the run's settings, and measure the policy on the study's prompts."""
    train = _train_scratch if trainer == "scratch" else _train_trl
    policy, curve = train(study, proxy, changes)
    curve = curve.tail(max(1, study.settings.updates // 4))
    answers = study.answer(policy)
    mean, low, high = metrics.bootstrap_interval(proxy(answers))
    return {
        **{"reward": mean, "ci_low": low, "ci_high": high, "kl": study.kl(policy, answers).mean()},
        "stop_rate": np.mean([answer.ended for answer in answers]),
        "clip_fraction": curve.clip_fraction.mean(),
        "explained_variance": curve.explained_variance.mean(),
    }


def _train_scratch(study: Study, proxy: Proxy, changes: dict) -> tuple[PreTrainedModel, pd.DataFrame]:
    trainer = study.ppo_trainer(proxy, **changes)
    return trainer.policy, trainer.train()


def _train_trl(study: Study, proxy: Proxy, changes: dict) -> tuple[PreTrainedModel, pd.DataFrame]:
    profile, settings = study.profile, dataclasses.replace(study.settings, **changes)
    reward_model = models.load_reward_model(profile)
    scoring.rescale(reward_model, 1 / proxy.deviation)
    policy, reference = (models.load_policy(profile, "sft_full") for _ in range(2))
    prompts = Dataset.from_dict({"input_ids": generation.encode_prompts(study.tokenizer, study.training_prompts)})
    value_model = models.new_value_model(profile)
    trainer = trl.make_trainer(
        profile, settings, policy, reference, reward_model, value_model, study.tokenizer, prompts
    )
    trainer.train()
    return policy, trl.training_curve(trainer)
