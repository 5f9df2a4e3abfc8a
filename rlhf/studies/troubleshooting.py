"""What classic faults leave behind: the curves of runs that have one planted, beside those of healthy runs.

Inputs: the checkpoints sft_full_final and reward_model_final, reward_unit.json, and the settings of PPO in run.json.
Every run starts from these, and its batches have half the answers of the run's. Healthy runs differ in the seed of PPO
alone (prompts and sampling); those with a fault have the seed of the run. Writes, each with the columns fault
("healthy" or one of faults.FAULTS) and seed before these:
troubleshooting.csv, a row for each update: the trainer's curve, and gold, the mean gold score of the batch (lab only).
troubleshooting_end.csv: metric, mean, ci_low, ci_high, n. Metrics of the final policy's answers to the validation
prompts: reward (of a sound reward model, in deviations), gold (lab only), kl (nats from SFT), stop_rate; and of the
run's code before training: pair_accuracy, of its reward function on the validation pairs, and eos_trained, the share of
answers that ended whose EOS has a place in the loss. Rows of fault "start" are SFT's.
troubleshooting_alarms.csv: watch ("monitor": the limits of monitor.LIMITS; "band": the range of the healthy runs),
measure, first_update (empty: never), side. A healthy run is compared with the band of the others.
"""

import time
from collections.abc import Iterator

from rlhf import metrics, outputs
from rlhf.lab import gold_table
from rlhf.ppo import monitor
from rlhf.ppo.trainer import PPOTrainer
from rlhf.profiles import Profile
from rlhf.studies import TROUBLESHOOTING
from rlhf.studies.common import Study
from rlhf.studies.faults import FAULTS, Start

import numpy as np
import pandas as pd

CURVES, END, ALARMS = TROUBLESHOOTING
HEALTHY, SFT = "healthy", "start"
HEALTHY_RUNS = 5
# What is compared with the healthy runs: all that a trainer shows and that can be watched without knowing the truth.
COMPARED = (
    *("reward", "reward_std", "kl", "entropy", "response_length", "stop_rate", "distinct_2", "repetition"),
    *("clip_fraction", "explained_variance", "grad_norm"),
)
# The measurement that tells a fault from others: what it is, and its name in END or in CURVES (there its mean).
CHECKS = {
    "pad_is_eos": ("share of ended answers whose EOS is in the loss", "eos_trained"),
    "template_mismatch": ("share of validation pairs that the run's reward function gets right", "pair_accuracy"),
    "wrong_token": ("share of validation pairs that the run's reward function gets right", "pair_accuracy"),
    "no_kl_penalty": ("KL of the final policy from SFT's checkpoint, nats per answer", "kl"),
    "reference_is_policy": ("KL in the curve by k3, nats per answer, mean of the updates", "kl_k3"),
    "rate_times_ten": ("share of tokens whose ratio is clipped, mean of the updates", "clip_fraction"),
    "reward_at_chance": ("share of validation pairs that the run's reward function gets right", "pair_accuracy"),
    "no_whitening": ("norm of the gradient, mean of the updates", "grad_norm"),
}


def run(profile: Profile) -> None:
    """Every run that is not in the CSVs yet, healthy ones first, and the alarms of all."""
    seeds = [profile.seed + i for i in range(1, HEALTHY_RUNS + 1)]
    wanted = [*((HEALTHY, seed) for seed in seeds), *((fault, profile.seed) for fault in FAULTS)]
    done = set(_read(profile, END)[["fault", "seed"]].itertuples(index=False, name=None))
    missing = [pair for pair in wanted if pair not in done]
    start = Start(Study(profile, "validation")) if missing else None
    if missing and (SFT, profile.seed) not in done:
        _write(profile, END, sft_rows(start), SFT, profile.seed)
    for fault, seed in missing:
        began = time.perf_counter()
        trainer = start.trainer(seed=seed) if fault == HEALTHY else FAULTS[fault](start)
        curve, end = measured(start, trainer)
        _write(profile, CURVES, curve, fault, seed)
        _write(profile, END, end, fault, seed)
        print(f"{fault}, seed {seed}: {len(curve)} updates, {time.perf_counter() - began:.0f} s", flush=True)
    outputs.write_csv(profile, ALARMS, alarms(outputs.read_csv(profile, CURVES)))


def forget(profile: Profile) -> None:
    """Delete what the study left."""
    for name in TROUBLESHOOTING:
        (outputs.evaluation_dir(profile) / name).unlink(missing_ok=True)


def _read(profile: Profile, name: str) -> pd.DataFrame:
    there = (outputs.evaluation_dir(profile) / name).exists()
    return outputs.read_csv(profile, name) if there else pd.DataFrame({"fault": [], "seed": []})


def _write(profile: Profile, name: str, rows: pd.DataFrame, fault: str, seed: int) -> None:
    """Put a run's rows into a CSV, in place of those that it has there from before it was stopped."""
    rows.insert(0, "fault", fault)
    rows.insert(1, "seed", seed)
    outputs.merge_csv(profile, name, rows, key=["fault", "seed"])


def measured(start: Start, trainer: PPOTrainer) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train, and measure: the run's rows of CURVES and of END.

    A run whose loss stops being finite ends there, and its policy is that of the step before; one whose first update
    does so raises FloatingPointError.
    """
    before = checks(start, trainer)
    reward, gold = trainer.reward_fn, []

    def recorded(prompts, responses, ended):
        table = gold_table(start.study.profile, prompts, responses)
        gold.append(np.nan if table.empty else table.gold.mean())
        return reward(prompts, responses, ended)

    trainer.reward_fn = recorded
    try:
        trainer.train()
    except FloatingPointError as error:
        if not trainer.rows:
            raise
        print(error)
    curve = trainer.curve
    values = before | policy_values(start, trainer.policy, start.study.answer(trainer.policy))
    return curve.assign(gold=gold[: len(curve)]), _rows(values)


def sft_rows(start: Start) -> pd.DataFrame:
    """SFT's rows of END."""
    return _rows(policy_values(start, start.study.sft, start.study.sft_answers))


def _rows(values: dict) -> pd.DataFrame:
    return metrics.summary_rows("", values).drop(columns="model")


def policy_values(start: Start, policy, answers) -> dict[str, np.ndarray]:
    """reward, gold, kl and stop_rate of a policy's answers to the study's prompts: (prompts,) each."""
    study = start.study
    texts, ended = [answer.text for answer in answers], [answer.ended for answer in answers]
    values = {"reward": start.reward(study.prompts, texts, ended), "gold": study.gold(answers)}
    values |= {"kl": study.kl(policy, answers), "stop_rate": np.array(ended, dtype=float)}
    return {name: of for name, of in values.items() if not np.isnan(of).any()}


def checks(start: Start, trainer: PPOTrainer) -> dict[str, np.ndarray]:
    """What can be measured before a step is taken: pair_accuracy, (pairs,), and eos_trained, (ended answers,).

    eos_trained is left out where no answer of a first rollout ended.
    """
    pairs = start.study.pairs["validation"]
    ended = [True] * len(pairs)
    scores = [trainer.reward_fn(list(pairs["prompt"]), list(pairs[side]), ended) for side in ("chosen", "rejected")]
    rollout = trainer.generate(range(min(trainer.settings.batch_size, len(trainer.prompts))), draws="checks")
    is_eos = rollout.responses == trainer.tokenizer.eos_token_id
    trained = (is_eos * rollout.mask).any(dim=1)[rollout.ended].float().cpu().numpy()
    return {"pair_accuracy": metrics.wins(*scores)} | ({"eos_trained": trained} if len(trained) else {})


def runs(curves: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Fault, seed and rows of each run, in the order of the CSV; the rows have the update as their index."""
    for (fault, seed), rows in curves.groupby(["fault", "seed"], sort=False):
        yield fault, seed, rows.set_index("update", drop=False)


def alarms(curves: pd.DataFrame) -> pd.DataFrame:
    """The rows of ALARMS."""
    rows = []
    for fault, seed, curve in runs(curves):
        others = curves[(curves.fault == HEALTHY) & ((fault != HEALTHY) | (curves.seed != seed))]
        limits = {("monitor", name): monitor.limits(name, curve[name].iloc[0]) for name in monitor.LIMITS}
        for name in COMPARED:
            limits["band", name] = tuple(end.reindex(curve.index) for end in monitor.band(others, name))
        for (watch, name), (low, high) in limits.items():
            at = monitor.first_outside(curve[name], low, high)
            side = None if at is None else "below" if (curve[name] < low).iloc[at - 1] else "above"
            rows.append((fault, seed, watch, name, at, side))
    columns = ["fault", "seed", "watch", "measure", "first_update", "side"]
    return pd.DataFrame(rows, columns=columns).astype({"first_update": "Int64"})


def false_alarms(table: pd.DataFrame) -> pd.DataFrame:
    """Of the healthy runs, how many each watch of each measure warned of: watch, measure, warned, runs."""
    healthy = table[table.fault == HEALTHY].groupby(["watch", "measure"], sort=False).first_update
    return healthy.agg(warned="count", runs="size").reset_index()


def symptoms(table: pd.DataFrame, fault: str, watch: str) -> list[str]:
    """What a watch saw of a fault, the earliest first, such as "kl above by update 3"."""
    rows = table[(table.fault == fault) & (table.watch == watch)].dropna(subset="first_update")
    rows = rows.sort_values("first_update", kind="stable")
    return [f"{row.measure} {row.side} by update {int(row.first_update)}" for row in rows.itertuples()]


def check(curves: pd.DataFrame, end: pd.DataFrame, fault: str, name: str) -> list[float]:
    """The measurement `name` of each run of a fault: from END, or the mean of the run's rows of CURVES."""
    found = end[(end.fault == fault) & (end.metric == name)]["mean"]
    if found.empty and name in curves:
        found = curves[curves.fault == fault].groupby("seed")[name].mean()
    return found.dropna().tolist()


def reading(curves: pd.DataFrame, end: pd.DataFrame, table: pd.DataFrame, fault: str) -> str:
    """What the CSVs say of a fault, beside the healthy runs: alarms, the measurement of CHECKS, the final policy."""
    lines = [f"monitor: {'; '.join(symptoms(table, fault, 'monitor')) or 'no warning'}"]
    lines.append(f"outside the band: {'; '.join(symptoms(table, fault, 'band')) or 'nothing'}")
    for text, name in (CHECKS[fault], ("final policy, reward", "reward"), ("final policy, gold score", "gold")):
        with_fault, healthy = check(curves, end, fault, name), check(curves, end, HEALTHY, name)
        if with_fault:
            lines.append(f"{text}: {with_fault[0]:.3g}; healthy runs {min(healthy):.3g} to {max(healthy):.3g}")
    return "\n".join(lines)


def causes(curves: pd.DataFrame, end: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The table from symptom to cause: for each fault the first three symptoms, its measurement and what it is."""
    rows = []
    for fault, function in FAULTS.items():
        text, name = CHECKS[fault]
        values, healthy = check(curves, end, fault, name), check(curves, end, HEALTHY, name)
        found = f"{text}: {values[0]:.3g} (healthy {min(healthy):.3g} to {max(healthy):.3g})" if values else text
        seen = symptoms(table, fault, "band")[:3]
        rows.append(("; ".join(seen) or "no measure leaves the band", found, function.__doc__.splitlines()[0]))
    return pd.DataFrame(rows, columns=["symptom", "measurement", "likely cause"])
