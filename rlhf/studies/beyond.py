"""Beyond PPO: RLOO, GRPO, rejection sampling, online DPO, DPO and IPO beside PPO and the best of n, at one budget.

Inputs: the checkpoints base, sft_full_final and reward_model_final, and the settings of PPO in run.json. Each method
(`methods.METHODS`) is searched with the first seed that runs, on validation prompts: two learning rates, then the
values of its dial at the better one. That seed's policies of all values answer the test prompts; the other seeds train
and judge the chosen value alone. Writes the checkpoints <method>_final (PPO's is the run's),
seconds and peak_memory_mb of the chosen trainings under "beyond" in run.json, and these tables, each with the columns
seed and method:
beyond_search.csv: dial, learning_rate, value (of the dial), reward with interval and kl on validation prompts, chosen.
beyond_metrics.csv: of SFT (sft_full) and of each chosen policy: metric, mean, ci_low, ci_high, n.
beyond_answers.csv: answers sampled until then; reward (SFT's deviations) and gold (points) above SFT's on the same
prompts, with intervals.
beyond_logprobs.csv: of the test pairs' answers: side, before (SFT), change, ci_low, ci_high (nats per answer), n.
beyond_given.csv: what the chosen policy was trained with: labels, answers, backward_tokens.
beyond_prompts.csv: of the chosen policy's answer to each test prompt: prompt (its number), reward and gold.
beyond_samples.csv: answers of the chosen policy and of SFT to the first SHOWN of the prompts: text (on one line),
prompt, ended.
beyond_frontier.csv: dial, value, chosen, kl (nats per answer), reward and gold as in beyond_answers.csv, stop_rate,
words, n. Of best_of_n, the KL is that of the formula.
"""

import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

from rlhf import generation, metrics, models, outputs, registry, runtime
from rlhf.evaluation.answers import decode, draw
from rlhf.generation import Answer
from rlhf.lab import gold_table
from rlhf.profiles import Profile
from rlhf.studies.common import Proxy, Study, agreed
from rlhf.studies.methods import METHODS, Trial
from rlhf.studies.ppo_grid import KL_BUDGET
from rlhf.studies.seeds import folders

import numpy as np
import pandas as pd
import torch

SEARCH = "beyond_search.csv"
# In the order in which they are written; the last one tells that a method is done.
FILES = tuple(
    f"beyond_{name}.csv" for name in ("metrics", "answers", "logprobs", "given", "prompts", "samples", "frontier")
)
RANKINGS = "beyond_rankings.csv"  # that the notebook writes
CHOICES, ASKED = (1, 2, 4, 8, 16), 150  # best of n: n, and prompts
SHOWN = 30  # prompts whose answers are kept
POINT = ["dial", "value", "chosen", "kl", "reward", "reward_ci_low", "reward_ci_high"]
POINT += ["gold", "gold_ci_low", "gold_ci_high", "stop_rate", "words", "n"]


def run(profile: Profile) -> None:
    """Every method of the profile's seed that is not done, in the outputs folder that is set."""
    comparison = None
    for name in ("best_of_n", *METHODS):
        saved = name not in registry.BY_COMMAND or name in outputs.made_by_command(profile)
        if saved and len(_rows(profile, FILES[-1], name, profile.seed)):
            print(f"seed {profile.seed}: {name} is there", flush=True)
            continue
        started = time.perf_counter()
        comparison = comparison or Comparison(profile)
        tables = comparison.references() if name == "best_of_n" else comparison.tables(name)
        for file, rows in tables.items():
            _write(profile, file, name, rows)
        print(f"seed {profile.seed}: {name} after {time.perf_counter() - started:.0f} s", flush=True)


def _rows(profile: Profile, file: str, name: str, seed: int | None = None) -> pd.DataFrame:
    """The rows of a method, and of a seed, in a table that need not be there."""
    if not (outputs.evaluation_dir(profile) / file).exists():
        return pd.DataFrame()
    table = outputs.read_csv(profile, file)
    return table[(table.method == name) & ((table.seed == seed) | (seed is None))]


def _write(profile: Profile, file: str, name: str, rows: pd.DataFrame) -> None:
    """Put a method's rows of the profile's seed into a table, in the place of those that it has."""
    rows = rows.reset_index(drop=True)
    rows.insert(0, "seed", profile.seed)
    rows.insert(1, "method", name)
    outputs.merge_csv(profile, file, rows, key=["seed", "method"])


def chosen(table: pd.DataFrame) -> pd.Series:
    """The row of a method's search that the rule chooses: the highest reward of those within KL_BUDGET nats.

    That with the lowest KL where none is.
    """
    near = table[table.kl <= KL_BUDGET]
    return table.loc[near.reward.idxmax() if len(near) else table.kl.idxmin()]


def costs(train: Callable[[], None]) -> dict[str, float | None]:
    """Seconds and peak memory of a training: the GPU's or, on a CPU, the whole process's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux forgets the highest value so far; elsewhere it stays
        Path("/proc/self/clear_refs").write_text("5")
    started = runtime.clock()
    train()
    on_gpu = torch.cuda.max_memory_allocated() // 10**6 if torch.cuda.is_available() else None
    seconds = round(runtime.clock() - started, 1)
    return {"seconds": seconds, "peak_memory_mb": on_gpu or runtime.peak_memory_mb(os.getpid())}


class Comparison:
    """The methods of one seed: trained against the reward in the unit of validation prompts, judged on test prompts."""

    def __init__(self, profile: Profile):
        self.profile, self.study, self.validation = profile, Study(profile), Study(profile, "validation")
        self.proxy, self.trained_on = (Proxy(study, "final") for study in (self.study, self.validation))
        self.start = self.judged(self.study.sft_answers, np.zeros(len(self.study.prompts)))

    def judged(self, answers: list[Answer], kl: np.ndarray) -> pd.DataFrame:
        """What is measured of answers to the test prompts, a row for each prompt; without gold for real data."""
        study, texts = self.study, [answer.text for answer in answers]
        table = pd.DataFrame(
            {
                "kl": kl,
                "reward": self.proxy(answers),
                "rouge1": metrics.rouge_per_example(texts, study.references)["rouge1"],
                "stop_rate": [float(answer.ended) for answer in answers],
                "words": [len(text.split()) for text in texts],
                "text": texts,
            }
        )
        return table.join(gold_table(self.profile, study.prompts, texts))

    def judge(self, policy) -> pd.DataFrame:
        answers = self.study.answer(policy)
        return self.judged(answers, self.study.kl(policy, answers))

    def gains(self, table: pd.DataFrame) -> list[float]:
        """Reward and gold above SFT's on the same prompts, with intervals; NaN for a gold score that is not known."""
        known = [score for score in ("reward", "gold") if score in table]
        return _gains([table[score] for score in known], [self.start[score] for score in known])

    def summary(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of beyond_metrics.csv. Diversity is of all texts together: one number, so no interval."""
        rows = metrics.summary_rows("", {name: table[name] for name in table if name != "text"})
        rows.loc[len(rows)] = ("", "distinct_2", metrics.distinct_n(table.text, 2), math.nan, math.nan, len(table))
        return rows.drop(columns="model")

    def samples(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of beyond_samples.csv."""
        shown = table[["text", "stop_rate"]].iloc[:SHOWN].rename_axis("prompt").reset_index()
        on_a_line = [" ".join(text.split()) for text in shown.text]  # a CSV may not hold every line break
        return shown.assign(text=on_a_line, ended=shown.pop("stop_rate").astype(bool))

    def references(self) -> dict[str, pd.DataFrame]:
        """The best of n answers of SFT by the reward, which trains nothing; SFT's own metrics stand with it."""
        _write(self.profile, FILES[0], "sft_full", self.summary(self.start))
        _write(self.profile, FILES[5], "sft_full", self.samples(self.start))
        prompts, rows = self.study.prompts[:ASKED], []
        asked = [prompt for prompt in prompts for _ in range(max(CHOICES))]
        answers = decode(self.profile, self.study.sft, self.study.tokenizer, asked, "sample")
        values = [self.proxy(answers, asked), self.study.gold(answers, asked)]
        values += [[float(answer.ended) for answer in answers], [len(answer.text.split()) for answer in answers]]
        values = [np.reshape(of, (len(prompts), -1)) for of in values]
        known = [0, 1] if self.profile.lab else [0]
        for n in CHOICES:
            best = [metrics.best_of_n(values[0], of, n) for of in values]
            gains = _gains([best[i] for i in known], [values[i].mean(axis=1) for i in known])
            rest = best[2].mean(), best[3].mean(), len(prompts)
            rows.append(("n", n, False, metrics.best_of_n_kl(n), *gains, *rest))
        return {FILES[-1]: pd.DataFrame(rows, columns=POINT)}

    def tables(self, name: str) -> dict[str, pd.DataFrame]:
        """Search a method where it has not been searched, train it for each value of its dial, judge the policies."""
        self.name, self.method, self.trials = name, METHODS[name], {}
        dial, settings = self.method.dial, self.study.settings
        unit = settings.kl_coef if dial == "kl_coef" else 1.0
        values, (start,) = _written(unit, self.method.values), _written(unit, (self.method.start,))
        if not len(_rows(self.profile, SEARCH, name)):
            rates = _written(settings.learning_rate, self.method.rates)
            _write(self.profile, SEARCH, name, self.search(rates, start, values))
        row = chosen(_rows(self.profile, SEARCH, name))
        if row.seed != self.profile.seed:
            values = [row.value]
        self.trials = {at: trial for at, trial in self.trials.items() if at[0] == row.learning_rate}
        points = []
        for value in values:  # PPO's are trained here, those of a searched method are there
            trial, is_chosen = self.trial(row.learning_rate, value), value == row.value
            table = self.judge(trial.policy)
            gains, rest = self.gains(table), (table.stop_rate.mean(), table.words.mean(), len(table))
            points.append((dial, value, is_chosen, table.kl.mean(), *gains, *rest))
            if is_chosen:
                scores = table.reindex(columns=["reward", "gold"]).rename_axis("prompt").reset_index()
                tables = [self.summary(table), self.along(trial, gains), self.changes(trial), self.given(trial)]
                tables += [scores, self.samples(table)]
        return dict(zip(FILES, [*tables, pd.DataFrame(points, columns=POINT)], strict=True))

    def given(self, trial: Trial) -> pd.DataFrame:
        """The row of beyond_given.csv; the checkpoint and the costs of the chosen training are written beside it."""
        if self.name != "ppo_scratch":
            outputs.save_checkpoint(self.profile, f"{self.name}_final", trial.policy, self.study.tokenizer)
        outputs.update_run(self.profile, beyond={self.name: trial.costs})
        given = {"labels": trial.labels, "answers": trial.answers, "backward_tokens": trial.tokens}
        return pd.DataFrame([given])

    def trial(self, learning_rate: float, value: float) -> Trial:
        """The training with these settings; the same one is not done twice."""
        at = learning_rate, value
        if at not in self.trials:
            self.method.prepare(self.validation)
            self.trials[at] = trial = Trial(self.validation, self.trained_on)
            trial.costs = costs(partial(self.method.train, trial, learning_rate, value))
        return self.trials[at]

    def search(self, rates: list[float], start: float, values: list[float]) -> pd.DataFrame:
        """The rows of beyond_search.csv: the rates at `start`, then the other values at the better rate.

        One rate means that the run has chosen the settings already: `start` is the only row.
        """
        rows = [self.validated(rate, start) for rate in rates]
        if len(rates) > 1:
            rate = chosen(pd.DataFrame(rows)).learning_rate
            rows += [self.validated(rate, value) for value in values if value != start]
        table = pd.DataFrame(rows)
        return table.assign(chosen=table.index == chosen(table).name)

    def validated(self, learning_rate: float, value: float) -> dict:
        """What the validation prompts say of the training with these settings."""
        policy = self.trial(learning_rate, value).policy
        answers = self.validation.answer(policy)
        interval = metrics.bootstrap_interval(self.trained_on(answers))
        row = {"dial": self.method.dial, "learning_rate": learning_rate, "value": value}
        row |= dict(zip(("reward", "ci_low", "ci_high"), interval, strict=True))
        return row | {"kl": self.validation.kl(policy, answers).mean()}

    def along(self, trial: Trial, gains: list[float]) -> pd.DataFrame:
        """The rows of beyond_answers.csv: SFT, the snapshots of a training, its end. None without sampled answers."""
        final, points = trial.weights(), {0: [0.0] * 6}
        for answers, weights in trial.snapshots.items():
            trial.put(weights)
            points[answers] = self.gains(self.judge(trial.policy))
        trial.put(final)
        points[trial.answers] = gains
        rows = [(answers, *of) for answers, of in points.items()] if trial.answers else []
        return pd.DataFrame(rows, columns=["answers", *POINT[4:10]])

    @cached_property
    def before(self) -> dict[str, np.ndarray]:
        return self.logprobs(self.study.sft)

    def logprobs(self, policy) -> dict[str, np.ndarray]:
        """log p of the chosen and the rejected answers of the test pairs, in nats: (pairs,) each."""
        pairs, tokenizer, size = self.study.pairs["test"], self.study.tokenizer, self.profile.decoding.batch_size
        prompts, found = list(pairs["prompt"]), {}
        starts = [len(ids) for ids in generation.encode_prompts(tokenizer, prompts)]
        for side in ("chosen", "rejected"):
            columns = pairs[side], pairs[f"{side}_ids"], starts
            answers = [Answer(text, tuple(ids[at:]), True) for text, ids, at in zip(*columns, strict=True)]
            found[side] = generation.answer_logprobs(policy, tokenizer, prompts, answers, batch_size=size)
        return found

    def changes(self, trial: Trial) -> pd.DataFrame:
        """The rows of beyond_logprobs.csv."""
        rows = [
            (side, self.before[side].mean(), *metrics.paired_difference(values, self.before[side]), len(values))
            for side, values in self.logprobs(trial.policy).items()
        ]
        return pd.DataFrame(rows, columns=["side", "before", "change", "ci_low", "ci_high", "n"])


def rankings(comparison: Comparison) -> pd.DataFrame:
    """Of which share of two answers to a prompt the reward model, DPO and IPO prefer the better one.

    A policy prefers that of which log pi - log pi_SFT is higher, its implicit reward. Columns: score, pairs, mean,
    ci_low, ci_high, n. The pairs are the labelled ones of the test split and, where gold is known and tells them apart,
    two answers that SFT samples to each test prompt.
    """
    profile, study = comparison.profile, comparison.study
    asked = study.prompts * 2
    own = draw(profile, study.sft, study.tokenizer, study.prompts, times=2)
    logprobs = partial(
        generation.answer_logprobs,
        tokenizer=study.tokenizer, prompts=asked, answers=own, batch_size=profile.decoding.batch_size,
    )  # fmt: skip
    gold, before = study.gold(own, asked), logprobs(study.sft)
    found = {"reward_model": (comparison.proxy.correct(), comparison.proxy(own, asked))}
    for name in ("dpo", "ipo"):
        policy = models.load_policy(profile, name)
        after = comparison.logprobs(policy)
        gains = [after[side] - comparison.before[side] for side in ("chosen", "rejected")]
        found[name] = metrics.wins(*gains), logprobs(policy) - before
    rows = []
    for name, (labelled, scores) in found.items():
        right = {"labelled": labelled} | ({"SFT's own": agreed(scores, gold)} if profile.lab else {})
        rows += [(name, pairs, *metrics.bootstrap_interval(of), len(of)) for pairs, of in right.items() if len(of)]
    return pd.DataFrame(rows, columns=["score", "pairs", "mean", "ci_low", "ci_high", "n"])


def against_ppo(prompts: pd.DataFrame) -> pd.DataFrame:
    """The score of each method minus that of PPO on the same prompts, for each seed of beyond_prompts.csv.

    Columns: method, against, metric (gold, or reward where gold is not known), difference, ci_low, ci_high, n, seed.
    """
    metric, found = "gold" if prompts.gold.notna().all() else "reward", []
    for seed, rows in prompts.groupby("seed"):
        scores = {
            method: of[metric] for method, of in rows.sort_values("prompt", kind="stable").groupby("method", sort=False)
        }
        found.append(metrics.paired_rows({metric: scores}, against="ppo_scratch").assign(seed=seed))
    return pd.concat(found, ignore_index=True).rename(columns={"model": "method"})


def _gains(scores: list, start: list) -> list[float]:
    """The differences of reward and gold with their intervals, six numbers; NaN for a gold score that is not known."""
    found = [number for both in zip(scores, start, strict=True) for number in metrics.paired_difference(*both)]
    return found + [math.nan] * (6 - len(found))


def _written(unit: float, factors: tuple[float, ...]) -> list[float]:
    """unit times each factor, as a CSV keeps it."""
    return [float(f"{unit * factor:.6g}") for factor in factors]


def share_search(profile: Profile, seed: int) -> None:
    """Give another seed's run what the search with the profile's own seed has found, where there was one."""
    there = outputs.evaluation_dir(profile) / SEARCH
    other = outputs.evaluation_dir(profile, folders(profile)[seed]) / SEARCH
    if seed != profile.seed and there.exists():
        outputs.replace(other, lambda temporary: shutil.copy(there, temporary))
