"""Repeat the whole run with other seeds, and put what all of them found into two tables.

python scripts/seeds.py             # run every seed that has not finished, then gather
python scripts/seeds.py --gather    # gather alone

The run of the profile's own seed is that of `make run`; the others go to outputs/seeds/<seed>/. Nothing but the seed
differs. FORCE=1 starts every seed over. Exit status: 0 done, 2 it could not start, else that of the run that stopped.
"""

import argparse
import sys

from rlhf import outputs, runtime
from rlhf.profiles import load_profile
from rlhf.studies import seeds


@runtime.reported
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", action="store_true", help="run nothing")
    options = parser.parse_args()
    profile = load_profile()
    for seed in [] if options.gather else seeds.folders(profile):
        if status := seeds.run_script(profile, seed, "run_notebooks.py"):
            return status
    with outputs.run_lock():
        seeds.gather(profile)
    paired = outputs.read_csv(profile, "paired.csv")
    print(paired[paired.model.str.startswith("ppo")].round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
