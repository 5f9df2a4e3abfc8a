"""The whole run with other seeds, and what all of them found in two tables.

Reads reward.csv, gold.csv, gold_gap.csv, rouge.csv, kl.csv, behaviour.csv, reward_model.csv and paired.csv of every
seed's run. Writes seeds.csv (model, seed, metric, mean, ci_low, ci_high, n), and the rows of the other seeds in
paired.csv (model, against, seed, metric, difference, ci_low, ci_high, n) of the run with the profile's own seed.
"""

import os
import sys
from functools import partial
from pathlib import Path

from rlhf import metrics, outputs, runtime
from rlhf.profiles import Profile

import pandas as pd

OTHERS = 2  # runs beside that of the profile's own seed
# File, its metric, the name here.
SOURCES = (
    ("reward.csv", "reward", "reward"),
    ("gold.csv", "gold", "gold"),
    ("gold.csv", "win_rate_vs_sft", "gold_win_rate"),
    ("rouge.csv", "rouge1", "rouge1"),
    ("kl.csv", "kl_from_sft", "kl"),
    ("behaviour.csv", "stop_rate_sample", "stop_rate"),
)


def folders(profile: Profile) -> dict[int, Path]:
    """The outputs folder of each seed."""
    others = {profile.seed + i: outputs.root() / "seeds" / str(profile.seed + i) for i in range(1, OTHERS + 1)}
    return {profile.seed: outputs.root(), **others}


def chosen(profile: Profile, given: list[int]) -> list[int]:
    """`given`, or where it is empty every seed. Raises ValueError for one that is no seed of `make seeds`."""
    known = list(folders(profile))
    if unknown := set(given) - set(known):
        raise ValueError(f"seed {min(unknown)} is none of {', '.join(map(str, known))}.")
    return given or known


def run_script(profile: Profile, seed: int, script: str, *arguments: str) -> int:
    """Run one of the scripts with a seed and its folder of outputs; returns the exit status."""
    folder = folders(profile)[seed]
    environment = os.environ | {"RLHF_PROFILE": profile.name, "RLHF_SEED": str(seed), "RLHF_OUTPUTS": str(folder)}
    command = [sys.executable, str(outputs.ROOT / "scripts" / script), *arguments]
    return runtime.run_child(command, environment)


def read_csv(profile: Profile, seed: int, name: str, command: str) -> pd.DataFrame:
    """A table of a seed's run. Raises FileNotFoundError, naming the command that makes it, where there is none."""
    path = folders(profile)[seed] / "evaluation" / profile.name / name
    if not path.exists():
        raise FileNotFoundError(f"{outputs.show(path)} is missing; run `{command}`, which makes it.")
    return pd.read_csv(path)


def rows_of(profile: Profile, seed: int) -> dict[str, pd.DataFrame]:
    """What one seed's run adds to each of the two tables, by their names.

    The reward model's accuracy on the test pairs stands among the means, as that of model reward_model. Raises
    FileNotFoundError where the run has not finished.
    """
    read = partial(read_csv, profile, seed, command="make seeds")
    means = []
    for name, metric, ours in SOURCES:
        if profile.lab or name != "gold.csv":  # only the lab world has the truth
            rows = read(name)
            means.append(rows[rows.metric == metric].assign(metric=ours))
    if profile.lab:
        means.append(read("gold_gap.csv").rename(columns={"share": "mean"}).assign(metric="gap_closed"))
    means.append(metrics.accuracy_row(read("reward_model.csv")))
    columns = ["model", "seed", "metric", "mean", "ci_low", "ci_high", "n"]
    paired = read("paired.csv")
    return {"seeds.csv": pd.concat(means).assign(seed=seed)[columns], "paired.csv": paired[paired.seed == seed]}


def gather(profile: Profile) -> None:
    """Write both tables, in the order of the seeds. Raises FileNotFoundError where a run has not finished."""
    found = [rows_of(profile, seed) for seed in sorted(folders(profile))]
    for name in ("seeds.csv", "paired.csv"):
        outputs.write_csv(profile, name, pd.concat([rows[name] for rows in found]))
