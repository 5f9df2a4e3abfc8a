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
from pathlib import Path

from rlhf import outputs
from rlhf.metrics import SUMMARY_COLUMNS
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


def run(profile: Profile, seed: int, folder: Path) -> int:
    """Run, or resume, the notebooks with a seed; returns the exit status."""
    environment = os.environ | {"RLHF_PROFILE": profile.name, "RLHF_SEED": str(seed), "RLHF_OUTPUTS": str(folder)}
    return subprocess.run([sys.executable, str(outputs.ROOT / "scripts/run_notebooks.py")], env=environment).returncode


def gather(profile: Profile) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of all seeds: means with their intervals over prompts, and paired differences.

    The reward model's accuracy on the test pairs stands among the means, as that of model reward_model. Raises
    FileNotFoundError where a run has not finished.
    """
    means, paired = [], []
    for seed, folder in folders(profile).items():
        results = folder / "evaluation" / profile.name
        for name, metric, ours in SOURCES:
            if name == "gold.csv" and profile.lab is None:  # only the lab world has the truth
                continue
            rows = _read(results / name)
            means.append(rows[rows.metric == metric].assign(metric=ours, seed=seed))
        model = _read(results / "reward_model.csv").set_index("metric").value
        row = ("reward_model", "accuracy", model.accuracy, model.accuracy_ci_low, model.accuracy_ci_high)
        means.append(pd.DataFrame([(*row, int(model.test_pairs))], columns=SUMMARY_COLUMNS).assign(seed=seed))
        differences = _read(results / "paired.csv")
        paired.append(differences[differences.seed == seed])
    means, paired = pd.concat(means), pd.concat(paired)
    return means[["model", "seed", "metric", "mean", "ci_low", "ci_high", "n"]], paired


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"{outputs.show(path)} is missing; run `make seeds`, which finishes the runs first.")
    return pd.read_csv(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", action="store_true", help="run nothing")
    options = parser.parse_args()
    profile = load_profile()
    for seed, folder in folders(profile).items():
        if not options.gather and (status := run(profile, seed, folder)):
            return status
    means, paired = gather(profile)
    outputs.write_csv(profile, "seeds.csv", means)
    outputs.write_csv(profile, "paired.csv", paired)
    print(paired[paired.model.str.startswith("ppo")].round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
