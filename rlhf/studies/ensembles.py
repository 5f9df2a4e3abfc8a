"""Ensembles of reward models (Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization").

Three reward models are trained on the same quarter of the pairs, each with other seeds, and combined. Best of n and PPO
optimise each combination and, beside them, a single model: for best of n the mean over the three of what each alone
gives, for PPO the first. PPO is pushed as in rlhf.studies.overoptimisation, without a KL coefficient.

Each model's scores are first put on one scale, 0 and 1 being mean and standard deviation of its scores of SFT's answers
to the study's prompts (Proxy): the Bradley-Terry loss fixes neither the level nor, but for the noise of the labels, the
spread of the logits, so without it the model with the widest spread would decide the mean, that with the lowest level
the worst case, and the variance would measure both.
"""

from collections.abc import Callable

from rlhf import metrics
from rlhf.evaluation.answers import decode
from rlhf.studies import overoptimisation
from rlhf.studies.common import MEMBERS, SHARES, Proxy, Study

import numpy as np
import pandas as pd

UNCERTAINTY_WEIGHT = 0.5  # lambda; that of the paper's code for best of n
KL_COEF_FACTOR = 0.0  # times the kl_coef of the run
POINTS = 10  # of each curve of PPO, beside its start
ASKED = 150  # prompts of best of n, with overoptimisation.CANDIDATES answers each
ABOVE = ["above_single", "above_single_ci_low", "above_single_ci_high"]


def mean(scores: np.ndarray) -> np.ndarray:
    """(1 / k) sum_i r_i: (models, answers) to (answers,). Wrong where most models are wrong in the same way."""
    return scores.mean(axis=0)


def worst_case(scores: np.ndarray) -> np.ndarray:
    """min_i r_i: (models, answers) to (answers,). An answer is as good as the model that likes it least says."""
    return scores.min(axis=0)


def uncertainty_weighted(scores: np.ndarray, weight: float = UNCERTAINTY_WEIGHT) -> np.ndarray:
    """(1 / k) sum_i r_i - weight (1 / k) sum_i (r_i - mean)^2: (models, answers) to (answers,).

    The variance over the models is large where they were not told by the pairs what to think. Coste et al. 2023, UWO.
    """
    return scores.mean(axis=0) - weight * scores.var(axis=0)


COMBINATIONS = {"mean": mean, "worst_case": worst_case, "uncertainty_weighted": uncertainty_weighted}


class Ensemble:
    """Several proxies as one, with the two calls of Proxy. SFT's answers need not have the mean 0 and deviation 1."""

    def __init__(self, proxies: list[Proxy], combine: Callable[[np.ndarray], np.ndarray]):
        self.proxies, self.combine = proxies, combine

    def __call__(self, answers, prompts: list[str] | None = None) -> np.ndarray:
        return self.combine(np.stack([proxy(answers, prompts) for proxy in self.proxies]))

    def reward(self, prompts: list[str], responses: list[str], ended: list[bool]) -> np.ndarray:
        """The reward function of PPO: what a call gives, so not at the level that each model has of its own."""
        return self.combine(np.stack([proxy.reward(prompts, responses, ended) - proxy.level for proxy in self.proxies]))


def run(study: Study) -> dict[str, pd.DataFrame]:
    """Train the reward models, and optimise each combination.

    Inputs: the checkpoints sft_full_final and, where they are there, reward_model_<MEMBERS>. Writes ensembles.csv, the
    curves: as overoptimisation.csv without judge, setting being "single" or one of COMBINATIONS, and above_single, the
    gold score (points) minus that of the single model at the same KL, paired by prompt, with its interval; empty where
    the single model's curve does not reach. And ensemble_turns.csv: as turning_points.csv.
    """
    for number, name in enumerate(MEMBERS):
        study.train_reward_model(name, study.part_of_pairs(SHARES["quarter"]), member=number)
    proxies = [Proxy(study, name) for name in MEMBERS]
    gold_unit, tables, turns = study.gold(study.sft_answers).std(), [], []
    for curves in (best_of_n_curves(study, proxies), policy_curves(study, proxies)):
        for curve in curves:
            table = overoptimisation.curve_table(*curve, gold_unit)
            table[ABOVE] = above_single(curve, curves[0])
            tables.append(table)
            turns.append(overoptimisation.turning_points(*curve))
    return {"ensemble_turns.csv": pd.concat(turns), "ensembles.csv": pd.concat(tables)}


def best_of_n_curves(study: Study, proxies: list[Proxy]) -> list:
    """The curves of the best of n by a single model and by each combination, all of the same answers."""
    prompts = [prompt for prompt in study.prompts[:ASKED] for _ in range(overoptimisation.CANDIDATES)]
    candidates = decode(study.profile, study.sft, study.tokenizer, prompts, "sample")
    shape = (-1, overoptimisation.CANDIDATES)
    scores = np.stack([proxy(candidates, prompts).reshape(shape) for proxy in proxies])
    gold = study.gold(candidates, prompts).reshape(shape)
    alone = [overoptimisation.best_of_n_curve({"proxy": of, "gold": gold}, "single") for of in scores]
    single = {by: np.mean([values[by] for _, values in alone], axis=0) for by in ("proxy", "gold")}
    return [(alone[0][0], single)] + [
        overoptimisation.best_of_n_curve({"proxy": combine(scores), "gold": gold}, name)
        for name, combine in COMBINATIONS.items()
    ]


def policy_curves(study: Study, proxies: list[Proxy]) -> list:
    """The curves of PPO against the first model and against each combination; they start from the same seed."""
    ensembles = {"single": Ensemble(proxies[:1], mean)}
    ensembles |= {name: Ensemble(proxies, combine) for name, combine in COMBINATIONS.items()}
    return [
        overoptimisation.policy_curve(study, {"proxy": ensemble, "gold": study.gold}, KL_COEF_FACTOR, name, POINTS)
        for name, ensemble in ensembles.items()
    ]


def above_single(curve, single) -> list[tuple[float, float, float]]:
    """Of each point of a curve, gold minus that of the single model's curve at the same distance, with its interval.

    The distance is the square root of the KL. Between two points of the single model's curve each prompt's gold score
    is taken from the straight line; beyond its last point all three numbers are NaN.
    """
    (points, scores), (others, other_scores) = curve, single
    order = np.argsort(others.kl.to_numpy(), kind="stable")
    reached = np.sqrt(others.kl.clip(lower=0).to_numpy()[order])
    rows = []
    for distance, gold in zip(np.sqrt(points.kl.clip(lower=0)), scores["gold"], strict=True):
        if distance > reached[-1]:
            rows.append((np.nan,) * 3)
        else:
            there = [np.interp(distance, reached, of) for of in other_scores["gold"][order].T]
            rows.append(metrics.paired_difference(gold, there))
    return rows
