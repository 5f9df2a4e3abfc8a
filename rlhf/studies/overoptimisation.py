"""Over-optimisation: proxy, judge and gold score over the KL from SFT, for PPO and for best of n.

Both methods optimise the run's own reward model and that on a quarter of the pairs. PPO is pushed on purpose: more
updates at a higher learning rate than the run's, with three KL coefficients. Proxy and judge are in standard deviations
of SFT's answers, 0 being SFT's mean; the gold score is in points.

Inputs: the checkpoints sft_full_final and reward_model_final; reward.csv, kl.csv, gold.csv (lab only), rouge.csv and
behaviour.csv of the last evaluation.
Writes, each with the column seed before these:
overoptimisation.csv, the curves: method, setting, x (updates or n), kl (nats), proxy, judge and gold with intervals,
gold_unit (the standard deviation of the gold score over SFT's answers), n.
turning_points.csv, one row for each curve and for each of gold score and judge (by): peak_x, end_x, and the changes of
the proxy and of `by` between them with intervals, found (metrics.over_optimisation), n.
frontier.csv, every model with every metric: model, metric, mean, ci_low, ci_high, n.
"""

from typing import NamedTuple

from rlhf import metrics, outputs
from rlhf.evaluation.answers import decode
from rlhf.generation import Answer
from rlhf.studies.common import SHARES, Proxy, Study

import numpy as np
import pandas as pd

FILES = ("overoptimisation.csv", "turning_points.csv", "frontier.csv")
KL_COEF_FACTORS = (3.0, 1.0, 0.0)  # times the kl_coef of the run
UPDATES_FACTOR, LEARNING_RATE_FACTOR = 2, 4  # times those of the run
POINTS = 6  # of each curve of PPO, beside its start
CANDIDATES, ASKED = 64, 100  # best of n: answers to each prompt, and prompts
CHOICES = (1, 2, 4, 8, 16, 32, 64)  # n
FRONTIER_CHOICES = (4, 16, 64)
# What the frontier takes from the last evaluation: the file and its metric.
EVALUATED = (
    ("reward.csv", "reward"),
    ("kl.csv", "kl_from_sft"),
    ("gold.csv", "gold"),
    ("rouge.csv", "rouge1_sample"),
    ("behaviour.csv", "stop_rate_sample"),
    ("behaviour.csv", "words_sample"),
    ("behaviour.csv", "distinct_2_sample"),
)
TURN_COLUMNS = ["method", "setting", "by", "peak_x", "end_x", "proxy_change", "proxy_ci_low", "proxy_ci_high"]
TURN_COLUMNS += ["change", "ci_low", "ci_high", "found", "n"]


class Curve(NamedTuple):
    """Points of growing optimisation by one method ("ppo", "best_of_n") in one setting."""

    method: str
    setting: str
    x: list[int]  # updates or n
    kl: list[float]  # from SFT, in nats
    scores: dict[str, np.ndarray]  # of proxy, judge and gold: (points, prompts) each


def run(study: Study) -> dict[str, pd.DataFrame]:
    study.train_halves()
    study.train_reward_model("quarter", study.part_of_pairs(SHARES["quarter"]))
    judge = Proxy(study, "judge")
    proxies = {"all pairs": Proxy(study, "final"), "1/4 of pairs": Proxy(study, "quarter")}
    curves = [
        policy_curve(study, proxy, judge, factor, f"kl_coef {factor * study.settings.kl_coef:.2g}, {pairs}")
        for pairs, proxy in proxies.items()
        for factor in KL_COEF_FACTORS
    ]
    prompts = [prompt for prompt in study.prompts[:ASKED] for _ in range(CANDIDATES)]
    candidates = decode(study.profile, study.sft, study.tokenizer, prompts, "sample")
    scorers = proxies | {"judge": judge, "gold": study.gold}
    scores = {name: score(candidates, prompts).reshape(-1, CANDIDATES) for name, score in scorers.items()}
    curves += [best_of_n_curve(pairs, scores[pairs], scores["judge"], scores["gold"]) for pairs in proxies]
    gold_unit = study.gold(study.sft_answers).std()
    return {
        "overoptimisation.csv": pd.concat(curve_table(curve, gold_unit) for curve in curves),
        "turning_points.csv": pd.DataFrame([turn for c in curves for turn in turning_points(c)], columns=TURN_COLUMNS),
        "frontier.csv": frontier(study, proxies["all pairs"], candidates, scores["all pairs"]),
    }


def policy_curve(study: Study, proxy: Proxy, judge: Proxy, kl_coef_factor: float, setting: str) -> Curve:
    """The curve of a policy along PPO: POINTS points beside its start, which is SFT."""
    settings = study.settings
    updates = settings.updates * (1 if study.profile.max_steps else UPDATES_FACTOR)
    trainer = study.ppo_trainer(
        proxy,
        updates=updates,
        kl_coef=kl_coef_factor * settings.kl_coef,
        learning_rate=LEARNING_RATE_FACTOR * settings.learning_rate,
    )
    x, kl, scores = [], [], {"proxy": [], "judge": [], "gold": []}
    for update in range(updates + 1):
        if update:
            trainer.step()
        if update % max(1, updates // POINTS) == 0:
            answers = study.answer(trainer.policy) if update else study.sft_answers
            x.append(update)
            kl.append(study.kl(trainer.policy, answers).mean())
            for name, score in (("proxy", proxy), ("judge", judge), ("gold", study.gold)):
                scores[name].append(score(answers))
    return Curve("ppo", setting, x, kl, {name: np.array(values) for name, values in scores.items()})


def best_of_n_curve(setting: str, proxy: np.ndarray, judge: np.ndarray, gold: np.ndarray) -> Curve:
    """The curve of the best of n by `proxy`; all three are scores of the same answers, (prompts, CANDIDATES)."""
    by = {"proxy": proxy, "judge": judge, "gold": gold}
    scores = {name: np.array([metrics.best_of_n(proxy, values, n) for n in CHOICES]) for name, values in by.items()}
    return Curve("best_of_n", setting, list(CHOICES), [metrics.best_of_n_kl(n) for n in CHOICES], scores)


def curve_table(curve: Curve, gold_unit: float) -> pd.DataFrame:
    """The rows of a curve in overoptimisation.csv."""
    table = pd.DataFrame({"method": curve.method, "setting": curve.setting, "x": curve.x, "kl": curve.kl})
    intervals = {name: [metrics.bootstrap_interval(v) for v in curve.scores[name]] for name in ("proxy", "gold")}
    table[["proxy", "proxy_ci_low", "proxy_ci_high"]] = intervals["proxy"]
    table["judge"] = curve.scores["judge"].mean(axis=1)
    table[["gold", "gold_ci_low", "gold_ci_high"]] = intervals["gold"]
    return table.assign(gold_unit=gold_unit, n=curve.scores["gold"].shape[1])


def turning_points(curve: Curve) -> list[tuple]:
    """Where gold score and judge turn down while the proxy rises: the curve's rows in turning_points.csv."""
    found = []
    for by in ("gold", "judge"):
        truth = curve.scores[by]
        if np.isnan(truth).any():
            continue
        turn = metrics.over_optimisation(curve.scores["proxy"], truth)
        peak, end = curve.x[turn.peak], curve.x[turn.end]
        changes = (*turn.proxy, *turn.truth, turn.found)
        found.append((curve.method, curve.setting, by, peak, end, *changes, truth.shape[1] // 2))
    return found


def frontier(study: Study, proxy: Proxy, candidates: list[Answer], scores: np.ndarray) -> pd.DataFrame:
    """Every model with every metric: reward (SFT's deviations), gold score, KL, ROUGE, stopping, length, diversity.

    proxy: of the run's own reward model; scores: what it gives the candidates, (prompts, CANDIDATES). Best of n takes
    the first n of the CANDIDATES of each prompt, and its KL is that of the formula. It has no diversity: that of fewer
    texts is no measure beside that of more. Columns: model, metric, mean, ci_low, ci_high, n.
    """
    tables = []
    for name, metric in EVALUATED:
        if study.profile.lab or name != "gold.csv":
            table = outputs.read_csv(study.profile, name)
            tables.append(table[table.metric == metric])
    columns = ["mean", "ci_low", "ci_high"]
    tables[0] = tables[0].assign(**{c: tables[0][c] / proxy.deviation - proxy.level for c in columns})
    for n in FRONTIER_CHOICES:
        places = scores[:, :n].argmax(axis=1)
        best = [candidates[row * CANDIDATES + column] for row, column in enumerate(places)]
        texts = [a.text for a in best]
        measured = {
            "reward": scores[:, :n].max(axis=1),
            "kl_from_sft": np.full(len(best), metrics.best_of_n_kl(n)),
            "gold": study.gold(best, study.prompts[:ASKED]),
            "rouge1_sample": metrics.rouge_per_example(texts, study.references[:ASKED])["rouge1"],
            "stop_rate_sample": [a.ended for a in best],
            "words_sample": [len(text.split()) for text in texts],
        }
        known = {metric: values for metric, values in measured.items() if not np.isnan(values).any()}
        tables.append(metrics.summary_rows(f"best of {n}", known))
    return pd.concat(tables)
