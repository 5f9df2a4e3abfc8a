"""Over-optimisation: proxy, judge and gold score over the KL from SFT, for PPO and for best of n.

Both methods optimise the run's own reward model and that on a quarter of the pairs. PPO is pushed on purpose: a higher
learning rate than the run's, with its KL coefficient and with none. Proxy and judge are in standard deviations
of SFT's answers, 0 being SFT's mean; the gold score is in points.

Inputs: the checkpoints sft_full_final and reward_model_final; reward.csv, kl.csv, gold.csv (lab only), rouge.csv and
behaviour.csv of the last evaluation. Writes, each with the column seed before these:
overoptimisation.csv, the curves: method, setting, x (updates or n), kl (nats), proxy, judge and gold with intervals,
gold_unit (the standard deviation of the gold score over SFT's answers), n.
turning_points.csv, one row for each curve and for each of gold score and judge (by): peak_x, end_x, and the changes of
the proxy and of `by` between them with intervals, found (metrics.over_optimisation), n.
frontier.csv, every model with every metric: model, metric, mean, ci_low, ci_high, n.
"""

from rlhf import metrics, outputs
from rlhf.evaluation.answers import decode
from rlhf.generation import Answer
from rlhf.studies.common import SHARES, Proxy, Study

import numpy as np
import pandas as pd

KL_COEF_FACTORS = (1.0, 0.0)  # times the kl_coef of the run
LEARNING_RATE_FACTOR = 4  # times that of the run
POINTS = 5  # of each curve of PPO, beside its start
CANDIDATES, ASKED = 64, 100  # best of n: answers to each prompt, and prompts
CHOICES = (1, 2, 4, 8, 16, 32, 64)  # n
FRONTIER_CHOICES = (4, 16, 64)
EVALUATED = {  # what the frontier takes from the last evaluation
    "reward.csv": ["reward"],
    "kl.csv": ["kl_from_sft"],
    "gold.csv": ["gold"],
    "rouge.csv": ["rouge1_sample"],
    "behaviour.csv": ["stop_rate_sample", "words_sample", "distinct_2_sample"],
}


def run(study: Study) -> dict[str, pd.DataFrame]:
    """The three tables, by their names.

    A curve is a table of points (method, setting, x, kl) and the scores there of proxy, judge and gold, (points,
    prompts) each.
    """
    study.train_halves()
    study.train_reward_model("quarter", study.part_of_pairs(SHARES["quarter"]))
    proxies = {"all pairs": Proxy(study, "final"), "1/4 of pairs": Proxy(study, "quarter")}
    others = {"judge": Proxy(study, "judge"), "gold": study.gold}
    curves = [
        policy_curve(
            study, {"proxy": proxy, **others}, factor, f"kl_coef {factor * study.settings.kl_coef:.2g}, {pairs}"
        )
        for pairs, proxy in proxies.items()
        for factor in KL_COEF_FACTORS
    ]
    prompts = [prompt for prompt in study.prompts[:ASKED] for _ in range(CANDIDATES)]
    candidates = decode(study.profile, study.sft, study.tokenizer, prompts, "sample")
    scores = {by: score(candidates, prompts).reshape(-1, CANDIDATES) for by, score in (proxies | others).items()}
    curves += [
        best_of_n_curve({"proxy": scores[pairs]} | {by: scores[by] for by in others}, pairs) for pairs in proxies
    ]
    gold_unit = study.gold(study.sft_answers).std()
    return {
        "overoptimisation.csv": pd.concat(curve_table(*curve, gold_unit) for curve in curves),
        "turning_points.csv": pd.concat(turning_points(*curve) for curve in curves),
        "frontier.csv": frontier(study, proxies["all pairs"], candidates, scores["all pairs"]),
    }


def policy_curve(study: Study, scorers: dict, kl_coef_factor: float, setting: str, wanted: int = POINTS):
    """The curve of a policy along PPO against scorers["proxy"]: `wanted` points beside its start, which is SFT."""
    kl_coef, learning_rate = (
        kl_coef_factor * study.settings.kl_coef,
        LEARNING_RATE_FACTOR * study.settings.learning_rate,
    )
    updates = study.settings.updates
    trainer = study.ppo_trainer(scorers["proxy"], kl_coef=kl_coef, learning_rate=learning_rate)
    points, scores = [], {by: [] for by in scorers}
    for update in range(updates + 1):
        if update:
            trainer.step()
        if update % max(1, updates // wanted) == 0:
            answers = study.answer(trainer.policy) if update else study.sft_answers
            points.append(("ppo", setting, update, study.kl(trainer.policy, answers).mean()))
            for by, score in scorers.items():
                scores[by].append(score(answers))
    table = pd.DataFrame(points, columns=["method", "setting", "x", "kl"])
    return table, {by: np.array(values) for by, values in scores.items()}


def best_of_n_curve(scores: dict[str, np.ndarray], setting: str):
    """The curve of the best of n by scores["proxy"]; scores, by who gives them: (prompts, CANDIDATES) each."""
    kl = [metrics.best_of_n_kl(n) for n in CHOICES]
    table = pd.DataFrame({"method": "best_of_n", "setting": setting, "x": CHOICES, "kl": kl})
    best = {by: [metrics.best_of_n(scores["proxy"], values, n) for n in CHOICES] for by, values in scores.items()}
    return table, {by: np.array(values) for by, values in best.items()}


def curve_table(points: pd.DataFrame, scores: dict[str, np.ndarray], gold_unit: float) -> pd.DataFrame:
    """The rows of a curve in overoptimisation.csv; without the column judge where there is none."""
    table = points.copy()
    table[["proxy", "proxy_ci_low", "proxy_ci_high"]] = [metrics.bootstrap_interval(v) for v in scores["proxy"]]
    if "judge" in scores:
        table["judge"] = scores["judge"].mean(axis=1)
    known = not np.isnan(scores["gold"]).any()  # real data have no gold score
    gold = [metrics.bootstrap_interval(v) if known else (np.nan,) * 3 for v in scores["gold"]]
    table[["gold", "gold_ci_low", "gold_ci_high"]] = gold
    return table.assign(gold_unit=gold_unit, n=scores["gold"].shape[1])


def turning_points(points: pd.DataFrame, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """The rows of a curve in turning_points.csv: where gold score and judge turn down while the proxy rises."""
    rows = []
    for by in ("gold", "judge"):
        if by in scores and not np.isnan(scores[by]).any():
            turn = metrics.over_optimisation(scores["proxy"], scores[by])
            curve = points.method[0], points.setting[0], by, points.x[turn.peak], points.x[turn.end]
            rows.append((*curve, *turn.proxy, *turn.truth, turn.found, scores[by].shape[1] // 2))
    columns = ["method", "setting", "by", "peak_x", "end_x", "proxy_change", "proxy_ci_low", "proxy_ci_high"]
    return pd.DataFrame(rows, columns=[*columns, "change", "ci_low", "ci_high", "found", "n"])


def frontier(study: Study, proxy: Proxy, candidates: list[Answer], scores: np.ndarray) -> pd.DataFrame:
    """Every model with every metric: reward (SFT's deviations), gold score, KL, ROUGE, stopping, length, diversity.

    proxy: of the run's own reward model; scores: what it gives the candidates, (prompts, CANDIDATES). Best of n takes
    the first n of the CANDIDATES of each prompt, and its KL is that of the formula. It has no diversity: that of fewer
    texts is no measure beside that of more.
    """
    tables = []
    for name, measured in EVALUATED.items():
        if study.profile.lab or name != "gold.csv":
            table = outputs.read_csv(study.profile, name)
            tables += [table[table.metric == metric] for metric in measured]
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
