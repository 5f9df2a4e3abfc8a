"""What the studies share: a finished run's models and prompts, further reward models, and rewards in one unit."""

import dataclasses
from functools import cached_property

from rlhf import data, generation, metrics, models, outputs
from rlhf.evaluation import answers as evaluation
from rlhf.generation import Answer
from rlhf.lab import gold_table
from rlhf.ppo.settings import Settings
from rlhf.ppo.trainer import PPOTrainer
from rlhf.profiles import Profile
from rlhf.reward import scoring
from rlhf.reward.pairs import load_pairs, training_pairs
from rlhf.reward.training import make_trainer
from rlhf.training import without_table

import numpy as np
from datasets import Dataset

SHARES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2}  # of the training pairs, each a part of the next
MEMBERS = ("quarter", "quarter_1", "quarter_2")  # of the ensembles: the same pairs, other seeds
REWARD_MODELS = (*SHARES, "judge", "blind")  # that `make study` trains: checkpoints reward_model_<name>


class Study:
    """The models and prompts of one finished run, which all studies of that run start from.

    Inputs: the checkpoints base, sft_full_final and reward_model_final, and the settings of PPO in run.json. Raises
    FileNotFoundError where one is missing. Policies answer the prompts of `split`: "validation" where something is
    chosen by the answers.
    """

    def __init__(self, profile: Profile, split: str = "test"):
        run = outputs.read_json(profile, "run.json")
        if "ppo" not in run:
            raise FileNotFoundError("run.json lacks PPO's settings; run 03_ppo_alignment/2_ppo_from_scratch.ipynb.")
        self.profile, self.settings = profile, Settings(**run["ppo"])
        self.tokenizer = models.load_tokenizer(profile)
        self.sft = models.load_policy(profile, "sft_full")
        rows = evaluation.prompt_rows(profile, self.tokenizer, split)
        self.prompts, self.references = list(rows["prompt"]), list(rows["chosen"])
        self.training_prompts = data.training_prompts(profile, self.tokenizer, self.settings.max_prompt_tokens)
        self.sft_answers = self.answer(self.sft)

    @cached_property
    def pairs(self) -> dict[str, Dataset]:
        """Those of the run's reward model, by split."""
        return load_pairs(self.profile, self.tokenizer)

    @cached_property
    def error_kinds(self) -> np.ndarray:
        """What is wrong with the rejected answer of each test pair: (pairs,)."""
        return np.array(data.error_kinds(self.profile, self.pairs["test"]))

    def answer(self, policy) -> list[Answer]:
        """A sampled answer to each prompt of the study."""
        return evaluation.decode(self.profile, policy, self.tokenizer, self.prompts, "sample")

    def gold(self, answers: list[Answer], prompts: list[str] | None = None) -> np.ndarray:
        """Gold scores of answers to the study's prompts, or to `prompts`: (answers,); NaN for real data."""
        table = gold_table(self.profile, prompts or self.prompts, [a.text for a in answers])
        return np.full(len(answers), np.nan) if table.empty else table.gold.to_numpy()

    def kl(self, policy, answers: list[Answer]) -> np.ndarray:
        """log p(answer) - log p_SFT(answer) of a policy's own answers to the study's prompts, in nats: (prompts,)."""
        options = {"batch_size": self.profile.decoding.batch_size, "temperature": self.profile.decoding.temperature}
        arguments = self.tokenizer, self.prompts, answers
        own, sft = (generation.answer_logprobs(model, *arguments, **options) for model in (policy, self.sft))
        return own - sft

    def part_of_pairs(self, share: float, skip: float = 0.0) -> Dataset:
        """A share of the training pairs, smaller ones being the start of larger ones; `skip` leaves that start out."""
        order = np.random.default_rng(self.profile.seed).permutation(len(self.pairs["train"]))
        first = round(skip * len(order))
        return self.pairs["train"].select(order[first : first + max(1, round(share * len(order)))])

    def train_reward_model(self, name: str, pairs: Dataset, other_seed: int = 0, member: int = 0, **changes) -> None:
        """Train reward_model_<name> as the run's, on `pairs` with `changes` of its settings, unless it is there.

        other_seed: of the head alone. member: of an ensemble; from 1 on, other seeds draw the head, the adapter, the
        mismatched pairs and the order of all pairs.
        """
        if outputs.checkpoint_path(self.profile, f"reward_model_{name}").exists():
            return
        changed = dataclasses.replace(self.profile.reward, **changes)
        profile = dataclasses.replace(self.profile, reward=changed, seed=self.profile.seed + 1000 * member)
        model = models.new_reward_model(profile, profile.seed + other_seed)
        ordered = training_pairs(profile, self.tokenizer, pairs)
        trainer = make_trainer(profile, model, self.tokenizer, ordered, self.pairs["validation"])
        without_table(trainer).train()
        outputs.save_checkpoint(profile, f"reward_model_{name}", trainer.model, self.tokenizer)
        outputs.forget_training(profile)

    def train_halves(self) -> None:
        """Reward models on disjoint halves of the pairs: `half`, and `judge`, whose head starts from another seed."""
        self.train_reward_model("half", self.part_of_pairs(1 / 2))
        self.train_reward_model("judge", self.part_of_pairs(1 / 2, skip=1 / 2), other_seed=1000)

    def ppo_trainer(self, proxy: "Proxy", **changes) -> PPOTrainer:
        """A trainer of PPO from SFT against `proxy`, with the run's settings and `changes` of them."""
        settings = dataclasses.replace(self.settings, **changes)
        policy = models.load_policy(self.profile, "sft_full")
        return PPOTrainer(policy, self.sft, proxy.reward, self.tokenizer, self.training_prompts, settings)

    def train_policy(self, proxy: "Proxy"):
        """The policy after PPO against `proxy` with the run's settings."""
        trainer = self.ppo_trainer(proxy)
        trainer.train()
        return trainer.policy


class Proxy:
    """A reward model, "final" or one of REWARD_MODELS or MEMBERS, in standard deviations of its scores of SFT.

    Scores are given above the mean of SFT's; both are over SFT's sampled answers to the study's prompts.
    """

    def __init__(self, study: Study, which: str):
        self.study, self.model = study, models.load_reward_model(study.profile, which)
        self.level, self.deviation = 0.0, 1.0  # the level in deviations
        scores = self(study.sft_answers)
        self.deviation = scores.std() or 1.0
        self.level = scores.mean() / self.deviation

    def __call__(self, answers: list[Answer], prompts: list[str] | None = None) -> np.ndarray:
        """(answers,), of answers to the study's prompts or to `prompts`."""
        texts, ended = [a.text for a in answers], [a.ended for a in answers]
        return self.reward(prompts or self.study.prompts, texts, ended) - self.level

    def reward(self, prompts: list[str], responses: list[str], ended: list[bool]) -> np.ndarray:
        """The reward function of PPO: in the same unit, but at the level that the reward model has."""
        study = self.study
        size = study.profile.decoding.batch_size
        return scoring.score(self.model, study.tokenizer, prompts, responses, ended, batch_size=size) / self.deviation

    def correct(self) -> np.ndarray:
        """1 for each test pair of which it prefers the chosen answer, 0.5 for a tie, 0 elsewhere: (pairs,)."""
        test, size = self.study.pairs["test"], self.study.profile.decoding.batch_size
        return metrics.wins(*scoring.score_pairs(self.model, self.study.tokenizer, test, batch_size=size))


def agreed(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """1 where scores and gold prefer the same of the first two answers to a prompt, 0 where not, 0.5 for equal scores.

    scores, gold: (DRAWS * prompts,), round after round. Prompts whose answers gold does not tell apart are left out.
    """
    by_score, by_gold = (metrics.wins(*values.reshape(evaluation.DRAWS, -1)[:2]) for values in (scores, gold))
    return (1 - np.abs(by_score - by_gold))[(by_gold == 0) | (by_gold == 1)]
