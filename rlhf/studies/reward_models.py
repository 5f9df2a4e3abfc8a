"""Studies of reward models: how many pairs one needs, whether it must read the prompt, who may judge a policy, what it
brings to be right more often.

Each returns its table by the name of its CSV, where the column seed comes first; the last two functions read them.
"""

from rlhf import metrics, models
from rlhf.evaluation.answers import DRAWS, draw, per_prompt
from rlhf.generation import Answer
from rlhf.lab import gold_table
from rlhf.studies.common import SHARES, Proxy, Study, agreed

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

NAMES = {share: name for name, share in SHARES.items()} | {1.0: "seeing"}  # of the models of data_size.csv
SHOWN_BY_PROMPT = ("off_topic", "wrong_object", "wrong_action")  # kinds of error that only the prompt shows


def data_size(study: Study) -> dict[str, pd.DataFrame]:
    """Accuracy on the test pairs after training on parts of the training pairs.

    Inputs: the checkpoints sft_full_final and reward_model_final. Writes data_size.csv: pairs, share (of the
    training pairs), slice ("all" or a kind of error), accuracy, ci_low, ci_high, n.
    """
    for name, share in SHARES.items():
        study.train_reward_model(name, study.part_of_pairs(share))
    tables = []
    groups = pd.DataFrame({"error": study.error_kinds, "all": "all"})
    for name, share in (SHARES | {"final": 1.0}).items():
        rows = metrics.sliced(Proxy(study, name).correct(), groups).rename(columns={"mean": "accuracy"})
        tables.append(rows.assign(pairs=round(share * len(study.pairs["train"])), share=share))
    return {"data_size.csv": pd.concat(tables)[["pairs", "share", "slice", "accuracy", "ci_low", "ci_high", "n"]]}


def relevance(study: Study) -> dict[str, pd.DataFrame]:
    """Whether PPO makes answers more relevant if its reward model does not read the prompt.

    The run's reward model ("seeing") is compared with a blind one, which was trained without the pairs that only the
    prompt decides. Inputs: the checkpoints sft_full_final, reward_model_final and ppo_scratch_final. Writes
    relevance.csv: reward_model, metric, mean, ci_low, ci_high, n. Metrics: accuracy on all test pairs and on each
    kind of error in SHOWN_BY_PROMPT; of PPO minus SFT, paired by prompt, the reward (in standard deviations of SFT's
    answers), and in the lab the gold score and its relevance (the parts object and activity).
    """
    study.train_reward_model("blind", study.pairs["train"], mismatched_first=0.0)
    before = draw(study.profile, study.sft, study.tokenizer, study.prompts)
    parts, tables = parts_of(study, before), []
    for label, which in (("blind", "blind"), ("seeing", "final")):
        proxy = Proxy(study, which)
        policy = models.load_policy(study.profile, "ppo_scratch") if label == "seeing" else study.train_policy(proxy)
        tables.append(_rows(label, accuracies(study, proxy) | gained(study, proxy, policy, before, parts)))
    return {"relevance.csv": pd.concat(tables)}


def _rows(label: str, measured: dict[str, np.ndarray]) -> pd.DataFrame:
    """The means of those measures that have values."""
    rows = metrics.summary_rows(label, {name: values for name, values in measured.items() if len(values)})
    return rows.rename(columns={"model": "reward_model"})


def accuracies(study: Study, proxy: Proxy) -> dict[str, np.ndarray]:
    """Which test pairs a reward model gets right: all of them, and each kind of error that only the prompt shows."""
    correct = proxy.correct()
    kinds = {f"accuracy {kind}": correct[study.error_kinds == kind] for kind in SHOWN_BY_PROMPT}
    return {"accuracy": correct} | kinds


def parts_of(study: Study, answers: list[Answer]) -> pd.DataFrame:
    """The parts of the gold score of DRAWS answers to each prompt; empty for real data."""
    return gold_table(study.profile, study.prompts * DRAWS, [answer.text for answer in answers])


def gained(study: Study, proxy: Proxy, policy, before: list[Answer], parts: pd.DataFrame) -> dict[str, np.ndarray]:
    """What a policy's answers have above SFT's: reward, in the lab gold and relevance, (prompts,) each.

    before, parts: SFT's answers and `parts_of` them.
    """
    asked = study.prompts * DRAWS
    after = draw(study.profile, policy, study.tokenizer, study.prompts)
    found = {"reward": per_prompt(proxy(after, asked) - proxy(before, asked))}
    if not parts.empty:
        change = parts_of(study, after) - parts
        found |= {"gold": per_prompt(change.gold), "relevance": per_prompt(change.object + change.activity)}
    return found


def gains(study: Study) -> dict[str, pd.DataFrame]:
    """What PPO with the run's settings gains with the reward models of less data, and the accuracy on SFT's answers.

    Inputs: the checkpoints sft_full_final and reward_model_final; those of data_size and relevance, where they are
    there. Writes reward_model_gains.csv, which continues relevance.csv: reward_model is a name in SHARES, or blind or
    seeing, for which only what relevance.csv lacks is measured: accuracy sampled, that on two sampled answers of SFT
    to each test prompt of which the gold score prefers one.
    """
    study.train_reward_model("blind", study.pairs["train"], mismatched_first=0.0)
    before, asked = draw(study.profile, study.sft, study.tokenizer, study.prompts), study.prompts * DRAWS
    gold, parts, tables = study.gold(before, asked), parts_of(study, before), []
    for label, which in {"blind": "blind", "seeing": "final", **{name: name for name in SHARES}}.items():
        if label in SHARES:
            study.train_reward_model(label, study.part_of_pairs(SHARES[label]))
        proxy = Proxy(study, which)
        measured = {"accuracy sampled": agreed(proxy(before, asked), gold)}
        if label in SHARES:
            measured |= accuracies(study, proxy) | gained(study, proxy, study.train_policy(proxy), before, parts)
        tables.append(_rows(label, measured))
    return {"reward_model_gains.csv": pd.concat(tables)}


def accuracy_and_gain(sizes: pd.DataFrame, relevance: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row for each reward model, seed and way to optimise it: what accuracies it has, and the gold score gained.

    sizes, curves: data_size.csv and overoptimisation.csv. relevance: relevance.csv, and the rows of
    reward_model_gains.csv where there are any. Columns: optimised (the run's PPO; PPO pushed, at its end; the best of
    the largest n), seed, reward_model, gold (points above SFT), and the accuracies, NaN where they are not known.
    """
    by = ["seed", "reward_model"]
    sizes = sizes[sizes.slice.isin(["all", *SHOWN_BY_PROMPT])]
    sizes = sizes.assign(
        reward_model=sizes.share.map(NAMES), metric=("accuracy " + sizes.slice).str.removesuffix(" all")
    )
    known = sizes.pivot(index=by, columns="metric", values="accuracy")
    measured = relevance.pivot(index=by, columns="metric", values="mean")
    accurate = known.combine_first(measured.filter(like="accuracy"))
    ends = curves.sort_values("x", kind="stable").groupby(["seed", "method", "setting"], sort=False).gold
    ends = (ends.last() - ends.first()).reset_index()
    ends["reward_model"] = np.where(ends.setting.str.endswith("all pairs"), "seeing", "quarter")
    pushed = "PPO pushed, " + ends.setting.str.rpartition(", ")[0]
    largest = curves.x[curves.method == "best_of_n"].max()
    ends["optimised"] = pushed.where(ends.method == "ppo", f"best of {largest}")
    run = measured.reindex(columns=["gold"]).reset_index().assign(optimised="PPO as in the run")
    gained = pd.concat([run, ends])[["optimised", *by, "gold"]].dropna()
    return gained.merge(accurate.reset_index(), on=by)


def correlations(points: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each accuracy with the gold score gained, for each way to optimise.

    points: those of `accuracy_and_gain`. Columns: optimised, accuracy, correlation, ci_low, ci_high, n, reward_models,
    seeds. The 95 % interval is that of Bonett and Wright 2000, by Fisher's z with the variance (1 + r^2 / 2) / (n - 3):
    a bootstrap of so few points, many of them equal, would draw hardly any other order than the one that was found. It
    takes the n points as independent. They are not: those of a seed share SFT and the data, those of a reward model its
    number of pairs. So it is too narrow rather than too wide.
    """
    rows = []
    for optimised, found in points.groupby("optimised", sort=False):
        for accuracy in points.filter(like="accuracy"):
            known = found.dropna(subset=accuracy)
            if len(known) > 3:
                correlation = spearmanr(known[accuracy], known.gold).statistic
                z, error = (
                    np.arctanh(np.clip(correlation, -0.999, 0.999)),
                    np.sqrt((1 + correlation**2 / 2) / (len(known) - 3)),
                )
                interval = np.tanh([z - 1.96 * error, z + 1.96 * error])
                counts = len(known), known.reward_model.nunique(), known.seed.nunique()
                rows.append((optimised, accuracy, correlation, *interval, *counts))
    columns = ["optimised", "accuracy", "correlation", "ci_low", "ci_high", "n", "reward_models", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def judge(study: Study) -> dict[str, pd.DataFrame]:
    """Win rates against SFT by a judge: a second reward model, from another seed and pairs that the proxy has not seen.

    The policy ppo_half is trained against the reward model of the first half of the pairs, which is the proxy here; the
    others against the run's own, which has seen the judge's pairs too. Inputs: the checkpoints of all policies of the
    run. Writes judge.csv: model, metric, mean, ci_low, ci_high, n. Metrics: win_by_proxy, win_by_judge, and in the
    lab win_by_gold, proxy_agrees and judge_agrees: of the prompts where the gold score prefers one of the two answers,
    the share where the proxy or the judge prefers the same one.
    """
    study.train_halves()
    scorers = {"proxy": Proxy(study, "half"), "judge": Proxy(study, "judge"), "gold": study.gold}
    before = {by: score(study.sft_answers) for by, score in scorers.items()}
    tables = []
    for name in ("base", "sft_qlora", "ppo", "ppo_scratch", "ppo_half"):
        trained = name != "ppo_half"
        policy = models.load_policy(study.profile, name) if trained else study.train_policy(scorers["proxy"])
        answers = study.answer(policy)
        wins = {by: metrics.wins(score(answers), before[by]) for by, score in scorers.items()}
        measured = {f"win_by_{by}": values for by, values in wins.items() if not np.isnan(values).any()}
        if "win_by_gold" in measured and (differ := wins["gold"] != 0.5).any():
            for by in ("proxy", "judge"):
                measured[f"{by}_agrees"] = 1 - np.abs(wins[by] - wins["gold"])[differ]
        tables.append(metrics.summary_rows(name, measured))
    return {"judge.csv": pd.concat(tables)}
