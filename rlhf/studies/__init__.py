"""Studies of a finished run, beyond what it evaluates: what the notebooks 4 and 5 of 03_ppo_alignment draw.

`run` makes those of over-optimisation and of ensembles; that of 5_troubleshooting.ipynb is in troubleshooting.py.
"""

import argparse
import shutil
import time
from collections.abc import Callable

from rlhf import outputs
from rlhf.profiles import Profile, set_up
from rlhf.studies import seeds

import pandas as pd

# All that the studies write: those of over-optimisation, of ensembles, and of troubleshooting. They are imported where
# they run: those who want the names alone need no models.
FILES = ("data_size.csv", "relevance.csv", "judge.csv", "overoptimisation.csv", "turning_points.csv", "frontier.csv")
ENSEMBLES = ("reward_model_gains.csv", "ensemble_turns.csv", "ensembles.csv")
TROUBLESHOOTING = ("troubleshooting.csv", "troubleshooting_end.csv", "troubleshooting_alarms.csv")


def run(profile: Profile, files: tuple[str, ...] = FILES) -> None:
    """The studies of the profile's seed that are not done, in the outputs folder that is set.

    files: FILES or ENSEMBLES. A study is done whose last CSV has rows of the seed. Raises ValueError for ENSEMBLES of
    real data.
    """
    from rlhf.studies import common, ensembles, overoptimisation, reward_models

    if files == ENSEMBLES and not profile.lab:
        raise ValueError(
            f"dataset {profile.dataset!r} has no gold score to judge ensembles by; run them on the lab profile."
        )
    parts = {
        "data_size.csv": reward_models.data_size,
        "relevance.csv": reward_models.relevance,
        "judge.csv": reward_models.judge,
        "frontier.csv": overoptimisation.run,
        "reward_model_gains.csv": reward_models.gains,
        "ensembles.csv": ensembles.run,
    }
    study = None
    for last, part in parts.items():
        if last not in files:
            continue
        if (_read(profile, last).seed == profile.seed).any():
            print(f"seed {profile.seed}: {last} is there", flush=True)
            continue
        started = time.perf_counter()
        study = study or common.Study(profile)
        for name, table in part(study).items():
            table.insert(0, "seed", profile.seed)
            outputs.merge_csv(profile, name, table, key="seed")
        print(f"seed {profile.seed}: {last} after {time.perf_counter() - started:.0f} s", flush=True)


def forget(profile: Profile, files: tuple[str, ...] = FILES) -> None:
    """Delete what the studies of the profile's seed left: its rows of `files`, and their reward models."""
    from rlhf.studies.common import MEMBERS, REWARD_MODELS

    for name in files:
        table = _read(profile, name)
        others = table[table.seed != profile.seed]
        if len(others):
            outputs.write_csv(profile, name, others)
        else:
            (outputs.evaluation_dir(profile) / name).unlink(missing_ok=True)
    for name in REWARD_MODELS if files == FILES else MEMBERS[1:]:
        shutil.rmtree(outputs.checkpoint_path(profile, f"reward_model_{name}"), ignore_errors=True)


def gather(profile: Profile, chosen: list[int], files: tuple[str, ...] = FILES, command: str = "make study") -> None:
    """Put the rows of `chosen` seeds into the CSVs of the profile's own seed, which keep the rows of other seeds.

    Raises FileNotFoundError where a study of one of `chosen` is not done.
    """
    for name in files:
        tables = []
        for seed in chosen:
            table = seeds.read_csv(profile, seed, name, command)
            tables.append(table[table.seed == seed])
            if tables[-1].empty:
                raise FileNotFoundError(f"{name} has no rows of seed {seed}; run `{command}`, which makes them.")
        outputs.merge_csv(profile, name, pd.concat(tables), key="seed")
        outputs.write_csv(profile, name, outputs.read_csv(profile, name).sort_values("seed", kind="stable"))


def seed_parser(description: str) -> argparse.ArgumentParser:
    """The command line of a script that studies seeds: which ones, and whether this is a seed's own process."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, help="default: those of `make seeds`")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser


def run_seeds(
    profile: Profile, chosen: list[int], call: list[str], files: tuple[str, ...], command: str,
    before: Callable[[Profile, int], None] = lambda *_: None,
) -> int:  # fmt: skip
    """Call a script for each of `chosen`, in a process of its own and after `before`, then gather `files`.

    Returns 0, or the exit status of the seed that failed.
    """
    for seed in chosen:
        before(profile, seed)
        if status := seeds.run_script(profile, seed, *call):
            return status
    with outputs.run_lock():
        gather(profile, chosen, files, command)
    return 0


def run_here(run: Callable[[Profile], None], profile: Profile) -> int:
    """Run a study in this process, for the profile's seed; returns 0."""
    set_up(profile)
    with outputs.run_lock():
        run(profile)
    return 0


def _read(profile: Profile, name: str) -> pd.DataFrame:
    """A CSV of the studies; no rows where there is none yet."""
    there = (outputs.evaluation_dir(profile) / name).exists()
    return outputs.read_csv(profile, name) if there else pd.DataFrame({"seed": []})
