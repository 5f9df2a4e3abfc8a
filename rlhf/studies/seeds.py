"""Repeat the whole run with other seeds, and put what all of them found into two tables.

python scripts/seeds.py             # run every seed that has not finished, then gather
python scripts/seeds.py --gather    # gather alone

The run of the profile's own seed is that of `make run`; the others go to outputs/seeds/<seed>/. Nothing but the seed
differs. Written is evaluation/<profile>/seeds.csv (model, seed, metric, mean, ci_low, ci_high, n), and the rows of the
other seeds in paired.csv (model, against, seed, metric, difference, ci_low, ci_high, n). Exit status: that of the first
run that does not finish.
"""

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from rlhf import metrics, outputs
from rlhf.profiles import Profile, load_profile

import pandas as pd

OTHERS = 2  # runs beside that of the profile's own seed
# File, its metric, the name here.
SOURCES = (
    ("reward.csv", "reward", "reward"),
    ("gold.csv", "gold", "gold"),
    ("rouge.csv", "rouge1", "rouge1"),
    ("kl.csv", "kl_from_sft", "kl"),
    ("behaviour.csv", "stop_rate_sample", "stop_rate"),
)


def folders(profile: Profile) -> dict[int, Path]:
    """The outputs folder of each seed."""
    others = {profile.seed + i: outputs.root() / "seeds" / str(profile.seed + i) for i in range(1, OTHERS + 1)}
    return {profile.seed: outputs.root(), **others}


def run_script(profile: Profile, seed: int, script: str, *arguments: str) -> int:
    """Run one of the scripts with a seed and its folder of outputs; returns the exit status."""
    folder = folders(profile)[seed]
    environment = os.environ | {"RLHF_PROFILE": profile.name, "RLHF_SEED": str(seed), "RLHF_OUTPUTS": str(folder)}
    command = [sys.executable, str(outputs.ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, env=environment).returncode


def read_csv(profile: Profile, seed: int, name: str, command: str) -> pd.DataFrame:
    """A table of a seed's run. Raises FileNotFoundError, naming the command that makes it, where there is none."""
    path = folders(profile)[seed] / "evaluation" / profile.name / name
    if not path.exists():
        raise FileNotFoundError(f"{outputs.show(path)} is missing; run `{command}`, which makes it.")
    return pd.read_csv(path)


def gather(profile: Profile) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of all seeds: means with their intervals over prompts, and paired differences.

    The reward model's accuracy on the test pairs stands among the means, as that of model reward_model. Raises
    FileNotFoundError where a run has not finished.
    """
    means, paired = [], []
    for seed in folders(profile):
        read = partial(read_csv, profile, seed, command="make seeds")
        for name, metric, ours in SOURCES:
            if name == "gold.csv" and profile.lab is None:  # only the lab world has the truth
                continue
            rows = read(name)
            means.append(rows[rows.metric == metric].assign(metric=ours, seed=seed))
        means.append(metrics.accuracy_row(read("reward_model.csv")).assign(seed=seed))
        differences = read("paired.csv")
        paired.append(differences[differences.seed == seed])
    means, paired = pd.concat(means), pd.concat(paired)
    return means[["model", "seed", "metric", "mean", "ci_low", "ci_high", "n"]], paired


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", action="store_true", help="run nothing")
    options = parser.parse_args()
    profile = load_profile()
    for seed in [] if options.gather else folders(profile):
        if status := run_script(profile, seed, "run_notebooks.py"):
            return status
    means, paired = gather(profile)
    outputs.write_csv(profile, "seeds.csv", means)
    outputs.write_csv(profile, "paired.csv", paired)
    print(paired[paired.model.str.startswith("ppo")].round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
