"""What labels of the policy's own answers buy: reward model and PPO on them or on the corpus, at as many labels.

Inputs: the checkpoints base, sft_full_final, reward_model_final and ppo_scratch_final, and the settings of PPO in
run.json. Every arm has the settings of the run's reward model and PPO, and the same numbers of labels; a label is one
answer of the noisy rater to which of two answers is better. The pairs that only the prompt decides, with which a reward
model's training begins, are made of the arm's own pairs and cost no label. Arms:
corpus: pairs of the corpus; at all of its labels, the run's own reward model and PPO.
on_policy: two answers of SFT, sampled as in PPO, to the prompts of the same pairs.
both: every second pair from each of the two.
active: the first pairs of on_policy, then, out of answers to POOL of the prompts, those on which an ensemble that is
trained on the first pairs disagrees most (`disagreement`).
Writes, each with the columns seed, arm and share (of the training pairs) before these:
labels_gains.csv: for each test prompt, by its number, the gold score of PPO's answers above that of SFT's.
labels.csv: labels, metric, mean, ci_low, ci_high, n. Metrics: gold and reward (SFT's deviations), of PPO minus SFT,
paired by prompt; kl (nats per answer), stop_rate; accuracy_corpus and accuracy_on_policy of the reward model, on the
test pairs and on pairs of SFT's answers to test prompts, both by gold; labels_right, the share of the labels that gold
agrees with.
"""

import time
from functools import cached_property

from rlhf import metrics, models, outputs
from rlhf.collect.items import revision, sample_items
from rlhf.collect.raters import LabRater
from rlhf.evaluation.answers import DRAWS, draw, per_prompt
from rlhf.lab import gold_agreement
from rlhf.profiles import Profile
from rlhf.reward import scoring
from rlhf.studies.common import Proxy, Study, agreed
from rlhf.studies.seeds import read_csv

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from scipy.special import expit

FILES = ("labels_gains.csv", "labels.csv")  # the last one tells that a part is done
KEY = ["seed", "arm", "share"]
ARMS = ("corpus", "on_policy", "both", "active")
# Shares of the training pairs, by the names of the corpus's reward models: the study of data size has trained some.
SIZES = {"sixteenth": 1 / 16, "eighth": 1 / 8, "quarter": 1 / 4}
FIRST, RUNS_OWN = "sixteenth", "final"
SHARE_OF = SIZES | {RUNS_OWN: 1.0}
# At the smallest size nothing is chosen yet: active is on_policy there.
PARTS = [("corpus", RUNS_OWN), *((arm, size) for size in SIZES for arm in ARMS if (arm, size) != ("active", FIRST))]
POOL = 1 / 2  # of the prompts of the training pairs: those that SFT answers
MEMBERS = 3  # of the ensemble


def check(profile: Profile, seeds: list[int]) -> None:
    """Raise ValueError for real data, which have no gold score, and FileNotFoundError where a seed has no run."""
    if not profile.lab:
        raise ValueError(f"profile {profile.name!r} has no gold score to judge by; set RLHF_PROFILE=lab.")
    for seed in seeds:
        read_csv(profile, seed, "gold.csv", "make seeds")


def run(profile: Profile) -> None:
    """Every part of the profile's seed that is not done, in the outputs folder that is set."""
    budget = None
    for arm, size in PARTS:
        if _done(profile, arm, SHARE_OF[size]):
            print(f"seed {profile.seed}: {arm}, {size} is there", flush=True)
            continue
        started = time.perf_counter()
        budget = budget or Budget(profile)
        for name, rows in budget.part(arm, size).items():
            keys = pd.DataFrame([(profile.seed, arm, SHARE_OF[size])] * len(rows), columns=KEY)
            outputs.merge_csv(profile, name, keys.join(rows.reset_index(drop=True)), key=KEY)
        print(f"seed {profile.seed}: {arm}, {size} after {time.perf_counter() - started:.0f} s", flush=True)


def _done(profile: Profile, arm: str, share: float) -> bool:
    if not (outputs.evaluation_dir(profile) / FILES[-1]).exists():
        return False
    table = outputs.read_csv(profile, FILES[-1])
    return bool(((table.seed == profile.seed) & (table.arm == arm) & (table.share == share)).any())


def own_pairs(study: Study, prompts: list[str]) -> Dataset:
    """Two answers of SFT to each prompt, labelled by the noisy rater, with the columns of reward.pairs.load_pairs.

    The rater must choose: of two answers of the same gold score it names the first, which as a draw of the same policy
    is a coin. An answer that did not end has no EOS among its tokens.
    """
    profile, rater, rows = study.profile, LabRater(study.profile.seed), []
    source = revision(outputs.checkpoint_path(profile, "sft_full_final"))
    decoding = (profile.decoding.temperature,), 2, source
    for item in sample_items(profile, study.sft, study.tokenizer, prompts, *decoding):
        rows.append((item.prompt, *(item.answers[i] for i in np.argsort(rater.rank(item), kind="stable"))))
    prompts, *sides = (list(column) for column in zip(*rows, strict=True))
    texts, ids = {}, {}
    for side, answers in zip(("chosen", "rejected"), sides, strict=True):
        texts[side] = [answer.text for answer in answers]
        ended = [answer.ended for answer in answers]
        ids[f"{side}_ids"] = scoring.encode(study.tokenizer, prompts, texts[side], ended)
    return Dataset.from_dict({"prompt": prompts} | texts | ids)


def disagreement(margins: np.ndarray) -> np.ndarray:
    """How far the members of an ensemble differ about pairs: (pairs,).

    margins: (members, pairs), the score of the first answer minus that of the second. It is the variance over the
    members of sigmoid(margin), the probability that the first is better; which of the two stands first changes nothing.
    Source: Christiano et al. 2017, "Deep Reinforcement Learning from Human Preferences", section 2.2.4.
    """
    return expit(margins).var(axis=0)


class Budget:
    """The labels of one seed that the arms are given, and what each comes to."""

    def __init__(self, profile: Profile):
        self.profile, self.study = profile, Study(profile)
        self.corpus = self.study.part_of_pairs(1.0)
        self.asked = self.study.prompts * DRAWS
        self.before = draw(profile, self.study.sft, self.study.tokenizer, self.study.prompts)
        self.gold_before = self.study.gold(self.before, self.asked)

    @cached_property
    def own(self) -> Dataset:
        """The pairs of SFT's answers, to the prompts of the corpus's pairs in their order."""
        return own_pairs(self.study, list(self.study.part_of_pairs(POOL)["prompt"]))

    def count(self, size: str) -> int:
        return max(1, round(SHARE_OF[size] * len(self.corpus)))

    @cached_property
    def order(self) -> np.ndarray:
        """The places of the own pairs in the order in which the active arm has them labelled.

        Each member is trained on as many draws of the first pairs with replacement (Christiano et al. 2017, section
        2.2.3), from a head of its own. Labels of the other pairs are not looked at: a pair that is turned round has the
        same disagreement.
        """
        study, first = self.study, self.count(FIRST)
        rest, margins = self.own.select(range(first, len(self.own))), []
        for member in range(MEMBERS):
            draws = np.random.default_rng([self.profile.seed, member]).integers(first, size=first)
            name = f"active_member_{member}"
            study.train_reward_model(name, self.own.select(draws), other_seed=member, evaluations=0)
            model, pad = models.load_reward_model(self.profile, name), study.tokenizer.pad_token_id
            batch = self.profile.decoding.batch_size
            sides = (scoring.score_tokens(model, list(rest[f"{s}_ids"]), pad, batch) for s in ("chosen", "rejected"))
            margins.append(np.subtract(*sides))
        most_first = np.argsort(-disagreement(np.array(margins)), kind="stable")
        return np.concatenate([np.arange(first), first + most_first])

    def pairs(self, arm: str, size: str) -> Dataset:
        """The labelled pairs of an arm; those of a smaller size are among those of a larger one."""
        count = self.count(size)
        if arm == "both":
            parts = self.corpus.select(range(0, count, 2)), self.own.select(range(1, count, 2))
            return concatenate_datasets(parts)
        if arm == "active":
            return self.own.select(self.order[:count])
        return (self.corpus if arm == "corpus" else self.own).select(range(count))

    def part(self, arm: str, size: str) -> dict[str, pd.DataFrame]:
        """The rows of an arm at a size in both tables, without KEY: its reward model and its policy, measured."""
        study, pairs = self.study, self.pairs(arm, size)
        name = size if arm == "corpus" else f"{arm}_{size}"
        if size != RUNS_OWN:
            study.train_reward_model(name, pairs, evaluations=0)
        proxy = Proxy(study, name)
        policy = study.train_policy(proxy) if size != RUNS_OWN else models.load_policy(self.profile, "ppo_scratch")
        after = draw(self.profile, policy, study.tokenizer, study.prompts)
        first = after[: len(study.prompts)]
        scores = proxy(self.before, self.asked)
        gains = per_prompt(study.gold(after, self.asked) - self.gold_before)
        measured = {
            "gold": gains,
            "reward": per_prompt(proxy(after, self.asked) - scores),
            "kl": study.kl(policy, first),
            "stop_rate": [answer.ended for answer in first],
            "accuracy_corpus": 1 - np.abs(proxy.correct() - gold_agreement(self.profile, study.pairs["test"])),
            "accuracy_on_policy": agreed(scores, self.gold_before),
            "labels_right": gold_agreement(self.profile, pairs),
        }
        rows = metrics.summary_rows(arm, {metric: values for metric, values in measured.items() if len(values)})
        rows = rows.drop(columns="model")
        rows.insert(0, "labels", len(pairs))
        return {FILES[0]: pd.DataFrame([gains]).rename(columns=str), FILES[1]: rows}


def against(gains: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The gold of the other arms minus that of `arm` at as many labels, paired by prompt, for each seed.

    gains: labels_gains.csv. Columns: arm, against, metric (gold), difference, ci_low, ci_high, n, seed, share.
    """
    found = []
    for (seed, share), rows in gains[gains.share < 1].groupby(["seed", "share"]):
        scores = dict(zip(rows.arm, rows.drop(columns=KEY).to_numpy(), strict=True))
        found.append(metrics.paired_rows({"gold": scores}, against=arm).assign(seed=seed, share=share))
    return pd.concat(found, ignore_index=True).rename(columns={"model": "arm"})
