"""The ways to align a policy with a reward that `beyond` compares, each trained from SFT at the same budget.

The budget is that of the run's PPO: as many sampled answers for a method that samples. One that learns from pairs is
given all those that trained the reward model, which the others ask.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

from rlhf import dpo, generation, models, sft
from rlhf.evaluation.answers import decode
from rlhf.reward import scoring
from rlhf.reward.pairs import training_order
from rlhf.studies.common import Proxy, Study
from rlhf.training import without_table

import numpy as np
import torch
from datasets import Dataset

ROUNDS = 4  # of sampling and training, for the methods that do not sample at every step
PASSES = 2  # over the answers or pairs of a round
SNAPSHOTS = (1 / 4, 1 / 2)  # of the sampled answers, where the weights are kept beside the last ones


class Trial:
    """One training of a policy against a proxy: the policy, what the training was given, and its snapshots.

    budget: the answers that PPO samples; labels: labelled pairs, the reward model's own for a method that asks it;
    answers: sampled ones; read: tokens of prompts and answers that the proxy has scored; tokens: those that went
    through a backward pass, once for each time; snapshots: the weights that learn, by the number of answers until then;
    costs: seconds and peak memory.
    """

    def __init__(self, study: Study, proxy: Proxy):
        self.study, self.proxy = study, proxy
        self.policy = models.load_policy(study.profile, "sft_full")
        self.labels = len(study.pairs["train"])
        self.budget = study.settings.updates * study.settings.batch_size
        self.answers = self.tokens = self.read = 0
        self.snapshots: dict[int, dict[str, torch.Tensor]] = {}
        self.costs: dict[str, float | None] = {}

    def reward(self, prompts: list[str], responses: list[str], ended: list[bool]) -> np.ndarray:
        """That of the proxy; the answers and the tokens that it reads are counted."""
        self.answers += len(prompts)
        self.read += sum(map(len, scoring.encode(self.study.tokenizer, prompts, responses, ended)))
        return self.proxy.reward(prompts, responses, ended)

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the weights that learn."""
        return {name: w.detach().clone() for name, w in self.policy.named_parameters() if w.requires_grad}

    @torch.no_grad()
    def put(self, weights: dict[str, torch.Tensor]) -> None:
        for name, weight in self.policy.named_parameters():
            if name in weights:
                weight.copy_(weights[name])

    def keep(self) -> None:
        """A snapshot, where a share of SNAPSHOTS of the answers has just been passed."""
        share = self.answers / self.budget
        if share < 1 and sum(share >= part for part in SNAPSHOTS) > len(self.snapshots):
            self.snapshots[self.answers] = self.weights()

    def fit(self, trainer, tokens: int) -> None:
        """Train the policy with a trainer of TRL; `tokens` go through a backward pass."""
        trainer.resumes = False  # its cost is measured
        without_table(trainer).train()
        self.policy = trainer.model.eval()
        self.tokens += tokens


def by_policy_gradient(trial: Trial, learning_rate: float, kl_coef: float, advantage: str) -> None:
    """The project's trainer: PPO with "gae", or RLOO or GRPO with one pass over each batch and no whitening."""
    changes = {} if advantage == "gae" else {"advantage": advantage, "whiten_advantages": False, "epochs": 1}
    trainer = trial.study.ppo_trainer(trial, learning_rate=learning_rate, kl_coef=kl_coef, **changes)
    trial.policy = trainer.policy
    for _ in range(trainer.settings.updates):
        trainer.step()
        trial.tokens = trainer.settings.epochs * trial.read
        trial.keep()


def by_labelled_pairs(trial: Trial, learning_rate: float, beta: float, loss: str) -> None:
    """One pass of DPO or IPO over the labelled pairs."""
    study = trial.study
    rows = labelled_rows(study)
    trainer = dpo.make_trainer(
        study.profile, f"beyond_{loss}", trial.policy, study.sft, study.tokenizer, rows,
        loss=loss, beta=beta, learning_rate=learning_rate,
    )  # fmt: skip
    trial.fit(trainer, tokens_of(rows))


@lru_cache(maxsize=1)
def labelled_rows(study: Study) -> Dataset:
    """The training pairs in batches of similar length, for dpo.make_trainer, with what the reference says of them."""
    pairs = study.part_of_pairs(1)
    starts = [len(ids) for ids in generation.encode_prompts(study.tokenizer, pairs["prompt"])]
    answers = [
        [ids[start:] for ids, start in zip(pairs[side], starts, strict=True)] for side in ("chosen_ids", "rejected_ids")
    ]
    rows = dpo.pair_rows(study.tokenizer, list(pairs["prompt"]), *answers)
    lengths = [start + max(map(len, two)) for start, *two in zip(starts, *answers, strict=True)]
    rows = rows.select(training_order(lengths, study.profile.reward.batch_size, study.profile.seed))
    return dpo.with_reference(study.sft, study.tokenizer, rows, study.profile.decoding.batch_size)


def tokens_of(rows: Dataset) -> int:
    """Tokens of a pass of DPO over the rows: the prompt is read with each of the two answers."""
    return sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)


def sampled_round(trial: Trial, number: int, n: int) -> tuple[list[str], list[list], np.ndarray]:
    """The prompts of a round, `n` answers of the policy to each, and their rewards, (prompts, n), as PPO has them."""
    study, settings = trial.study, trial.study.settings
    count = max(1, trial.budget // ROUNDS // n)
    order = np.random.default_rng(study.profile.seed).permutation(len(study.training_prompts))
    places = np.take(order, range(number * count, (number + 1) * count), mode="wrap")
    prompts = [study.training_prompts[i] for i in places]
    asked = [prompt for prompt in prompts for _ in range(n)]
    other = dataclasses.replace(study.profile, seed=study.profile.seed + 1_000_000 * (number + 1))
    answers = decode(other, trial.policy, study.tokenizer, asked, "sample")
    ended = [answer.ended for answer in answers]
    rewards = trial.reward(asked, [answer.text for answer in answers], ended)
    rewards = rewards - settings.missing_eos_penalty * ~np.array(ended)
    groups = [answers[i : i + n] for i in range(0, len(answers), n)]
    return prompts, groups, rewards.reshape(-1, n)


def by_rejection(trial: Trial, learning_rate: float, n: float) -> None:
    """Rounds of fine-tuning on the best of `n` answers to each prompt."""
    study = trial.study
    for number in range(ROUNDS):
        prompts, groups, rewards = sampled_round(trial, number, int(n))
        best = [list(group[i].token_ids) for group, i in zip(groups, rewards.argmax(axis=1), strict=True)]
        starts = generation.encode_prompts(study.tokenizer, prompts)
        wholes = [start + answer for start, answer in zip(starts, best, strict=True)]
        labels = [[sft.IGNORED] * len(start) + answer for start, answer in zip(starts, best, strict=True)]
        rows = Dataset.from_dict({"input_ids": wholes, "labels": labels})
        trainer = sft.make_trainer(
            study.profile, "beyond_rejection", trial.policy, study.tokenizer, rows, None,
            learning_rate=learning_rate, epochs=PASSES,
        )  # fmt: skip
        trial.fit(trainer, PASSES * sum(map(len, wholes)))
        trial.keep()


def by_own_pairs(trial: Trial, learning_rate: float, beta: float) -> None:
    """Rounds of DPO on the best and the worst of the policy's own answers to each prompt; the reference stays SFT."""
    study = trial.study
    for number in range(ROUNDS):
        prompts, groups, rewards = sampled_round(trial, number, study.settings.answers_per_prompt)
        told = np.flatnonzero(rewards.max(axis=1) > rewards.min(axis=1))  # where all are equal there is no pair
        if not len(told):
            continue
        best, worst = (
            [groups[i][j].token_ids for i, j in zip(told, at[told], strict=True)]
            for at in (rewards.argmax(axis=1), rewards.argmin(axis=1))
        )
        rows = dpo.pair_rows(study.tokenizer, [prompts[i] for i in told], best, worst)
        trainer = dpo.make_trainer(
            study.profile, "beyond_online_dpo", trial.policy, study.sft, study.tokenizer, rows,
            loss="dpo", beta=beta, learning_rate=learning_rate, epochs=PASSES,
        )  # fmt: skip
        trial.fit(trainer, PASSES * tokens_of(rows))
        trial.keep()


class Method(NamedTuple):
    """How a method is trained, the dial that moves it along the frontier, and what is searched."""

    train: Callable[[Trial, float, float], None]  # of a trial, a learning rate and a value of the dial
    dial: str
    values: tuple[float, ...]  # of kl_coef: times that of the run
    start: float  # the value at which the rates are compared
    rates: tuple[float, ...]  # times the learning rate of the run's PPO; one where the run has chosen its settings
    prepare: Callable[[Study], object] = lambda study: None  # what all trainings share: in no training's seconds


KL_COEFS, BETAS = (0.0, 1.0, 3.0, 10.0), (0.03, 0.1, 0.3, 1.0)
METHODS = {
    "ppo_scratch": Method(partial(by_policy_gradient, advantage="gae"), "kl_coef", KL_COEFS, 1.0, (1.0,)),
    "dpo": Method(partial(by_labelled_pairs, loss="dpo"), "beta", BETAS, 0.3, (0.02, 0.04), labelled_rows),
    "rloo": Method(partial(by_policy_gradient, advantage="rloo"), "kl_coef", KL_COEFS, 1.0, (2.0, 4.0)),
    "grpo": Method(partial(by_policy_gradient, advantage="grpo"), "kl_coef", KL_COEFS, 1.0, (2.0, 4.0)),
    "rejection": Method(by_rejection, "n", (2, 4, 8, 16), 4, (2.0, 5.0)),
    "online_dpo": Method(by_own_pairs, "beta", BETAS, 0.1, (1.0, 2.0)),
    "ipo": Method(
        partial(by_labelled_pairs, loss="ipo"), "beta", (1.0, 3.0, 10.0, 30.0), 10.0, (0.02, 0.04), labelled_rows
    ),
}
