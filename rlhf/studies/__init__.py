"""Studies of a finished run, beyond what it evaluates: what 03_ppo_alignment/4_overoptimisation.ipynb draws.

Each is a module that names its inputs and the CSVs that it writes (FILES), with a function run(study), which returns
them as tables. A study whose last CSV has rows of the seed is done.
"""

import shutil
import time

from rlhf import outputs
from rlhf.profiles import Profile
from rlhf.studies import data_size, judge, overoptimisation, relevance
from rlhf.studies.common import REWARD_MODELS, Study
from rlhf.studies.seeds import read_csv

import pandas as pd

PARTS = (data_size, relevance, judge, overoptimisation)  # in the order in which they run
FILES = tuple(name for part in PARTS for name in part.FILES)


def run(profile: Profile) -> None:
    """The studies of the profile's seed that are not done, in the outputs folder that is set."""
    study = None
    for part in PARTS:
        last = part.FILES[-1]
        if (_read(profile, last).seed == profile.seed).any():
            print(f"seed {profile.seed}: {last} is there", flush=True)
            continue
        started = time.perf_counter()
        study = study or Study(profile)
        tables = part.run(study)
        for name in part.FILES:
            tables[name].insert(0, "seed", profile.seed)
            outputs.merge_csv(profile, name, tables[name], key="seed")
        print(f"seed {profile.seed}: {last} after {time.perf_counter() - started:.0f} s", flush=True)


def forget(profile: Profile) -> None:
    """Delete what the studies of the profile's seed left: its rows of their CSVs, and their reward models."""
    for name in FILES:
        table = _read(profile, name)
        others = table[table.seed != profile.seed]
        if len(others):
            outputs.write_csv(profile, name, others)
        else:
            (outputs.evaluation_dir(profile) / name).unlink(missing_ok=True)
    for name in REWARD_MODELS:
        shutil.rmtree(outputs.checkpoint_path(profile, f"reward_model_{name}"), ignore_errors=True)


def gather(profile: Profile, seeds: list[int]) -> None:
    """Put the rows of `seeds` into the CSVs of the profile's own seed, which keep the rows of other seeds.

    Raises FileNotFoundError where a study of one of `seeds` is not done.
    """
    for name in FILES:
        tables = []
        for seed in seeds:
            table = read_csv(profile, seed, name, "make study")
            tables.append(table[table.seed == seed])
            if tables[-1].empty:
                raise FileNotFoundError(f"{name} has no rows of seed {seed}; run `make study`, which makes them.")
        outputs.merge_csv(profile, name, pd.concat(tables), key="seed")
        outputs.write_csv(profile, name, outputs.read_csv(profile, name).sort_values("seed", kind="stable"))


def _read(profile: Profile, name: str) -> pd.DataFrame:
    """A CSV of the studies; no rows where there is none yet."""
    try:
        return outputs.read_csv(profile, name)
    except FileNotFoundError:
        return pd.DataFrame({"seed": []})
