"""Push the reward until it lies: what 03_ppo_alignment/4_overoptimisation.ipynb draws.

python scripts/study.py             # every seed of `make seeds`, one after the other, then gather
python scripts/study.py 0           # these seeds alone, then gather what they wrote
python scripts/study.py --gather    # run nothing

It takes up the runs of `make seeds` where they ended. Per seed it trains reward models on parts of the pairs, and one
without the pairs that only the prompt decides; it runs PPO against them, and draws many answers to choose the best of.
Each part writes its CSV when it is done, and a part whose CSV is there is not done again. Exit status: 0 done, 2 it
could not start, else that of the seed that failed.
"""

import argparse
import dataclasses
import sys
import time

from rlhf import data, evaluation, generation, metrics, models, outputs, rewards
from rlhf.generation import Answer
from rlhf.lab import gold_table
from rlhf.profiles import Profile, load_profile, set_up

import numpy as np
import pandas as pd
from datasets import Dataset
from seeds import folders, read_csv, run_script
from transformers import PrinterCallback, ProgressCallback

sys.path[:0] = [str(outputs.ROOT / folder) for folder in ("02_reward_modeling", "03_ppo_alignment")]
import ppo  # noqa: E402
from data_pipeline import prepare_reward_dataset, training_pairs  # noqa: E402
from ppo_config import MAX_PROMPT_TOKENS, get_settings  # noqa: E402
from prepare_data import training_prompts  # noqa: E402
from train_reward import make_trainer  # noqa: E402

SHARES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2}  # of the training pairs, each a part of the next
KL_PRICES = (3.0, 1.0, 0.0)  # times the kl_coef of the run
LONGER, FASTER = 2, 4  # times the updates and the learning rate of the run
POINTS = 6  # of each curve, beside its start
CANDIDATES, ASKED = 64, 100  # best of n: answers to each prompt, and prompts
CHOICES = (1, 2, 4, 8, 16, 32, 64)  # n
RELEVANCE = ("off_topic", "wrong_object", "wrong_action")  # kinds of error that only the prompt shows


class Study:
    """The models and prompts of one finished run, and what the parts of the study have in common."""

    def __init__(self, profile: Profile):
        self.profile, self.settings = profile, get_settings(profile)
        self.tokenizer = models.load_tokenizer(profile)
        self.sft = models.load_sft(profile)
        rows = evaluation.prompt_rows(profile, self.tokenizer, "test")
        self.prompts, self.references = list(rows["prompt"]), list(rows["chosen"])
        self.questions = training_prompts(profile, self.tokenizer, MAX_PROMPT_TOKENS)
        self.pairs = prepare_reward_dataset(profile, self.tokenizer)
        self.kinds = np.array(data.error_kinds(profile, self.pairs["test"]))
        self.sft_answers = self.answer(self.sft)
        self.gold_unit = self.gold(self.sft_answers).std()

    def answer(self, policy) -> list[Answer]:
        """Sampled answers to the test prompts."""
        return evaluation.answer(self.profile, policy, self.tokenizer, self.prompts, "sample")

    def draw(self, policy) -> list[Answer]:
        """DRAWS sampled answers to each test prompt, as in the last evaluation."""
        return evaluation.draw(self.profile, policy, self.tokenizer, self.prompts)

    def gold(self, answers: list[Answer], prompts: list[str] | None = None) -> np.ndarray:
        """Gold scores of answers to the test prompts, or to `prompts`: (answers,); NaN where nobody knows them."""
        table = gold_table(self.profile, prompts or self.prompts, [a.text for a in answers])
        return np.full(len(answers), np.nan) if table.empty else table.gold.to_numpy()

    def kl(self, policy, answers: list[Answer]) -> np.ndarray:
        """log p(answer) - log p_SFT(answer) of a policy's own answers to the test prompts, in nats: (prompts,)."""
        options = {"batch_size": self.profile.decoding.batch_size, "temperature": self.profile.decoding.temperature}
        own, sft = (
            generation.response_logprobs(model, self.tokenizer, self.prompts, answers, **options)
            for model in (policy, self.sft)
        )
        return own - sft

    def part_of_pairs(self, share: float, skip: float = 0.0) -> Dataset:
        """A share of the training pairs, smaller ones being the start of larger ones; `skip` leaves that start out."""
        order = np.random.default_rng(self.profile.seed).permutation(len(self.pairs["train"]))
        first = round(skip * len(order))
        return self.pairs["train"].select(order[first : first + max(1, round(share * len(order)))])

    def train_reward_model(self, name: str, pairs: Dataset, other_seed: int = 0, **changes) -> None:
        """A reward model trained as the run's, on `pairs` and with `changes` of its settings; kept, and made once."""
        if outputs.checkpoint_path(self.profile, f"reward_model_{name}").exists():
            return
        profile = dataclasses.replace(self.profile, reward=dataclasses.replace(self.profile.reward, **changes))
        model = models.new_reward_model(profile, profile.seed + other_seed)
        ordered = training_pairs(profile, self.tokenizer, pairs)
        trainer = make_trainer(profile, model, self.tokenizer, ordered, self.pairs["validation"])
        for callback in (ProgressCallback, PrinterCallback):  # its table of losses is for a notebook
            trainer.remove_callback(callback)
        trainer.train()
        outputs.save_checkpoint(profile, f"reward_model_{name}", trainer.model, self.tokenizer)

    def train_halves(self) -> None:
        """Two reward models on disjoint halves: `half`, and `judge`, whose head starts from another seed."""
        self.train_reward_model("half", self.part_of_pairs(1 / 2))
        self.train_reward_model("judge", self.part_of_pairs(1 / 2, skip=1 / 2), other_seed=1000)

    def train_policy(self, proxy: "Proxy", **changes):
        """PPO from SFT with the run's settings and `changes` of them."""
        trainer = self.ppo_trainer(proxy, **changes)
        trainer.train()
        return trainer.policy

    def ppo_trainer(self, proxy: "Proxy", **changes) -> ppo.PPOTrainer:
        settings = dataclasses.replace(self.settings, **changes)
        policy = models.load_sft(self.profile)
        return ppo.PPOTrainer(policy, self.sft, proxy.reward, self.tokenizer, self.questions, settings)


class Proxy:
    """A reward model, whose scores are given in deviations of SFT's answers to the test prompts, above their mean.

    `which` is the run's own ("final") or one that Study.train_reward_model made.
    """

    def __init__(self, study: Study, which: str):
        self.study, self.model = study, models.load_reward_model(study.profile, which)
        self.mean, self.unit = 0.0, 1.0
        scores = self(study.sft_answers)
        self.mean, self.unit = scores.mean(), scores.std() or 1.0

    def __call__(self, answers: list[Answer], prompts: list[str] | None = None) -> np.ndarray:
        """(answers,), of answers to the test prompts or to `prompts`."""
        texts, ended = [a.text for a in answers], [a.ended for a in answers]
        return (self._logits(prompts or self.study.prompts, texts, ended=ended) - self.mean) / self.unit

    def reward(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        """The reward function of PPO: the same unit, the level as the reward model has it."""
        return self._logits(prompts, responses) / self.unit

    def correct(self) -> np.ndarray:
        """1 for each test pair of which it prefers the chosen answer, 0.5 for a tie, 0 elsewhere."""
        test = self.study.pairs["test"]
        return metrics.wins(*(self._logits(test["prompt"], test[side]) for side in ("chosen", "rejected")))

    def _logits(self, prompts, responses, **options) -> np.ndarray:
        size = self.study.profile.decoding.batch_size
        return rewards.score(self.model, self.study.tokenizer, prompts, responses, batch_size=size, **options)


def data_size(study: Study) -> dict[str, pd.DataFrame]:
    """Accuracy on the test pairs, over all and by kind of error, of reward models on parts of the training pairs."""
    for name, share in SHARES.items():
        study.train_reward_model(name, study.part_of_pairs(share))
    tables = []
    for name, share in (SHARES | {"final": 1.0}).items():
        groups = pd.DataFrame({"error": study.kinds, "all": "all"})
        rows = metrics.sliced(Proxy(study, name).correct(), groups).rename(columns={"mean": "accuracy"})
        tables.append(rows.assign(pairs=round(share * len(study.pairs["train"])), share=share))
    return {"data_size.csv": pd.concat(tables)[["pairs", "share", "slice", "accuracy", "ci_low", "ci_high", "n"]]}


def relevance(study: Study) -> dict[str, pd.DataFrame]:
    """The run's reward model beside a blind one, and PPO on each: which kinds of error they see, and what PPO does.

    The blind one has not had the pairs that only the prompt decides. Columns: reward_model, metric, mean, ci_low,
    ci_high, n. Metrics: accuracy on all test pairs and on each kind of error that only the prompt shows; of PPO minus
    SFT, paired by prompt, the reward (in SFT's deviations), gold, and its relevance (the parts object and activity).
    """
    study.train_reward_model("blind", study.pairs["train"], mismatched_first=0.0)
    asked, before = study.prompts * evaluation.DRAWS, study.draw(study.sft)
    parts = gold_table(study.profile, asked, [a.text for a in before])
    tables = []
    for label in ("blind", "seeing"):
        proxy = Proxy(study, "final" if label == "seeing" else "blind")
        correct = proxy.correct()
        measured = {"accuracy": correct} | {f"accuracy {kind}": correct[study.kinds == kind] for kind in RELEVANCE}
        policy = models.load_ppo(study.profile, "scratch") if label == "seeing" else study.train_policy(proxy)
        after = study.draw(policy)
        measured["reward"] = evaluation.per_prompt(proxy(after, asked) - proxy(before, asked))
        if not parts.empty:
            change = gold_table(study.profile, asked, [a.text for a in after]) - parts
            measured["gold"] = evaluation.per_prompt(change.gold)
            measured["relevance"] = evaluation.per_prompt(change.object + change.activity)
        tables.append(metrics.summary_rows(label, {k: v for k, v in measured.items() if len(v)}))
    return {"relevance.csv": pd.concat(tables).rename(columns={"model": "reward_model"})}


def judge(study: Study) -> dict[str, pd.DataFrame]:
    """Win rates against SFT by a judge that was not trained on: other seed, the half of the pairs that the proxy lacks.

    The policy ppo_half was trained against the reward model of the first half, which is the proxy here; the others
    against the run's own, which has seen the judge's pairs too. Columns: model, metric, mean, ci_low, ci_high, n.
    Metrics: win_by_proxy, win_by_judge, win_by_gold, and, of the prompts where gold prefers one of the two answers,
    the share where the proxy or the judge prefers the same one: proxy_agrees, judge_agrees.
    """
    study.train_halves()
    proxy = Proxy(study, "half")
    policies = {
        "base": models.load_base(study.profile).eval(),
        "sft_qlora": models.load_sft(study.profile, "qlora"),
        "ppo": models.load_ppo(study.profile, "trl"),
        "ppo_scratch": models.load_ppo(study.profile, "scratch"),
        "ppo_half": study.train_policy(proxy),
    }
    scorers = {"proxy": proxy, "judge": Proxy(study, "judge"), "gold": study.gold}
    before = {name: score(study.sft_answers) for name, score in scorers.items()}
    tables = []
    for model, policy in policies.items():
        answers = study.answer(policy)
        wins = {name: metrics.wins(score(answers), before[name]) for name, score in scorers.items()}
        measured = {f"win_by_{name}": values for name, values in wins.items() if not np.isnan(values).any()}
        if "win_by_gold" in measured and (differ := wins["gold"] != 0.5).any():
            for name in ("proxy", "judge"):
                measured[f"{name}_agrees"] = 1 - np.abs(wins[name] - wins["gold"])[differ]
        tables.append(metrics.summary_rows(model, measured))
    return {"judge.csv": pd.concat(tables)}


class Curve:
    """What answers are worth, point by point along growing optimisation, by the proxy, by the judge, and by gold."""

    def __init__(self, method: str, setting: str, gold_unit: float):
        self.method, self.setting, self.gold_unit = method, setting, gold_unit
        self.xs, self.rows, self.scores = [], [], {"proxy": [], "judge": [], "gold": []}

    def add(self, x: int, kl: float, **scores: np.ndarray) -> None:
        """A point: its update or n, its KL in nats, and the proxy, judge and gold of each prompt, (prompts,) each."""
        self.xs.append(x)
        for name, values in scores.items():
            self.scores[name].append(values)
        proxy, gold = (metrics.bootstrap_interval(scores[name]) for name in ("proxy", "gold"))
        judged = float(scores["judge"].mean())
        row = (self.method, self.setting, x, kl, *proxy, judged, *gold, self.gold_unit, len(scores["gold"]))
        self.rows.append(row)

    def turns(self) -> list[tuple]:
        """Where the truth turns down while the proxy rises (metrics.over_optimisation), by gold and by the judge."""
        found = []
        for by in ("gold", "judge"):
            truth = np.array(self.scores[by])
            if np.isnan(truth).any():
                continue
            turn = metrics.over_optimisation(np.array(self.scores["proxy"]), truth)
            xs = (self.xs[turn.peak], self.xs[turn.end])
            found.append(
                (self.method, self.setting, by, *xs, *turn.proxy, *turn.truth, turn.found, truth.shape[1] // 2)
            )
            verdict = "over-optimised" if turn.found else "no over-optimisation found"
            changes = f"the proxy changes by {turn.proxy[0]:+.2f} and {by} by {turn.truth[0]:+.2f}"
            say(f"{self.method}, {self.setting}: {by} peaks at {xs[0]}; from there to {xs[1]} {changes}: {verdict}")
        return found


def optimisation(study: Study) -> dict[str, pd.DataFrame]:
    """Proxy, judge and gold over the KL from SFT: PPO along training at three prices of KL, and best of n.

    Both against the run's own reward model and against that on a quarter of the pairs. Proxy and judge are in
    deviations of SFT's answers, 0 being SFT's mean; gold is in points, gold_unit its deviation over SFT's answers.
    """
    study.train_halves()
    study.train_reward_model("quarter", study.part_of_pairs(SHARES["quarter"]))
    second = Proxy(study, "judge")
    proxies = {"all pairs": Proxy(study, "final"), "1/4 of pairs": Proxy(study, "quarter")}
    curves = [
        policy_curve(study, proxy, second, price, f"kl_coef {price * study.settings.kl_coef:.2g}, {pairs}")
        for pairs, proxy in proxies.items()
        for price in KL_PRICES
    ]
    prompts = [prompt for prompt in study.prompts[:ASKED] for _ in range(CANDIDATES)]
    candidates = evaluation.answer(study.profile, study.sft, study.tokenizer, prompts, "sample")
    scorers = proxies | {"judge": second, "gold": study.gold}
    scores = {name: score(candidates, prompts).reshape(-1, CANDIDATES) for name, score in scorers.items()}
    for pairs in proxies:
        by = {"proxy": scores[pairs], "judge": scores["judge"], "gold": scores["gold"]}
        curve = Curve("best_of_n", pairs, study.gold_unit)
        for n in CHOICES:
            best = {name: metrics.best_of_n(by["proxy"], values, n) for name, values in by.items()}
            curve.add(n, metrics.best_of_n_kl(n), **best)
        curves.append(curve)
    turns = [row for curve in curves for row in curve.turns()]
    return {
        "overoptimisation.csv": pd.DataFrame([row for curve in curves for row in curve.rows], columns=CURVE_COLUMNS),
        "turning_points.csv": pd.DataFrame(turns, columns=TURN_COLUMNS),
        "frontier.csv": frontier(study, proxies["all pairs"], candidates, scores["all pairs"]),
    }


def policy_curve(study: Study, proxy: Proxy, second: Proxy, price: float, setting: str) -> Curve:
    """The curve of a policy along PPO, pushed LONGER and FASTER: POINTS points beside its start, which is SFT."""
    curve = Curve("ppo", setting, study.gold_unit)
    settings = study.settings
    updates = settings.updates * (1 if study.profile.max_steps else LONGER)
    changes = {"kl_coef": price * settings.kl_coef, "learning_rate": FASTER * settings.learning_rate}
    trainer = study.ppo_trainer(proxy, updates=updates, **changes)
    for update in range(updates + 1):
        if update:
            trainer.step()
        if update % max(1, updates // POINTS) == 0:
            answers = study.answer(trainer.policy) if update else study.sft_answers
            kl = study.kl(trainer.policy, answers).mean()
            curve.add(update, kl, proxy=proxy(answers), judge=second(answers), gold=study.gold(answers))
    return curve


def frontier(study: Study, proxy: Proxy, candidates: list[Answer], scores: np.ndarray) -> pd.DataFrame:
    """Every model with every metric: reward (SFT's deviations), gold, KL, ROUGE, stopping, length, diversity.

    proxy: of the run's own reward model; scores: what it gives the candidates, (prompts, CANDIDATES).
    Best of n takes the first n of the CANDIDATES of each prompt, and its KL from the formula. It has no diversity: that
    of fewer texts is no measure beside that of more. Columns: model, metric, mean, ci_low, ci_high, n.
    """
    profile = study.profile
    sources = [
        ("reward.csv", "reward"),
        ("kl.csv", "kl_from_sft"),
        ("gold.csv", "gold"),
        ("rouge.csv", "rouge1_sample"),
    ]
    sources += [("behaviour.csv", metric) for metric in ("stop_rate_sample", "words_sample", "distinct_2_sample")]
    tables = []
    for name, metric in sources:
        if profile.lab or name != "gold.csv":
            table = outputs.read_csv(profile, name)
            tables.append(table[table.metric == metric])
    tables[0] = tables[0].assign(**{c: (tables[0][c] - proxy.mean) / proxy.unit for c in ("mean", "ci_low", "ci_high")})
    asked = study.prompts[:ASKED]
    for n in (4, 16, 64):
        places = scores[:, :n].argmax(axis=1)
        best = [candidates[row * CANDIDATES + column] for row, column in enumerate(places)]
        texts = [a.text for a in best]
        measured = {
            "reward": scores[:, :n].max(axis=1),
            "kl_from_sft": np.full(len(best), metrics.best_of_n_kl(n)),
            "gold": study.gold(best, asked),
            "rouge1_sample": metrics.rouge_per_example(texts, study.references[:ASKED])["rouge1"],
            "stop_rate_sample": [a.ended for a in best],
            "words_sample": [len(text.split()) for text in texts],
        }
        tables.append(
            metrics.summary_rows(f"best of {n}", {k: v for k, v in measured.items() if not np.isnan(v).any()})
        )
    return pd.concat(tables)


CURVE_COLUMNS = ["method", "setting", "x", "kl", "proxy", "proxy_ci_low", "proxy_ci_high", "judge"]
CURVE_COLUMNS += ["gold", "gold_ci_low", "gold_ci_high", "gold_unit", "n"]
TURN_COLUMNS = ["method", "setting", "by", "peak_x", "end_x", "proxy_change", "proxy_ci_low", "proxy_ci_high"]
TURN_COLUMNS += ["change", "ci_low", "ci_high", "found", "n"]
# The last file that each part writes says whether it is done.
PARTS = {"data_size.csv": data_size, "relevance.csv": relevance, "judge.csv": judge, "frontier.csv": optimisation}
FILES = ("data_size.csv", "relevance.csv", "judge.csv", "overoptimisation.csv", "turning_points.csv", "frontier.csv")


def say(text: str) -> None:
    print(text, flush=True)


def run_seed(profile: Profile) -> None:
    """All parts for the seed of the profile, in the outputs folder that is set. Its files have a column seed."""
    study = None
    for last, part in PARTS.items():
        path = outputs.evaluation_dir(profile) / last
        if path.exists() and (pd.read_csv(path).seed == profile.seed).any():
            say(f"seed {profile.seed}: {last} is there")
            continue
        started = time.perf_counter()
        study = study or Study(profile)
        for name, table in part(study).items():
            table.insert(0, "seed", profile.seed)
            outputs.write_csv(profile, name, table)
        say(f"seed {profile.seed}: {last} after {time.perf_counter() - started:.0f} s")


def gather(profile: Profile, seeds: list[int]) -> None:
    """Put the rows of all seeds into the files of the profile's own."""
    for name in FILES:
        tables = []
        for seed in seeds:
            table = read_csv(profile, seed, name, "make study")
            tables.append(table[table.seed == seed])
        outputs.write_csv(profile, name, pd.concat(tables))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, help="default: those of `make seeds`")
    parser.add_argument("--gather", action="store_true", help="run nothing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # a seed's own process
    options = parser.parse_args()
    profile = load_profile()
    if options.here:
        set_up(profile)
        run_seed(profile)
        return 0
    seeds = options.seeds or list(folders(profile))
    unknown = set(seeds) - set(folders(profile))
    if unknown:
        print(f"error: seed {unknown.pop()} is none of {', '.join(map(str, folders(profile)))}.", file=sys.stderr)
        return 2
    for seed in [] if options.gather else seeds:
        if status := run_script(profile, seed, "study.py", "--here"):
            return status
    try:
        gather(profile, seeds)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
