"""Run the studies of over-optimisation, which 03_ppo_alignment/4_overoptimisation.ipynb draws, or those of ensembles.

python scripts/study.py             # every seed of `make seeds`, one after the other, then gather
python scripts/study.py 0           # these seeds alone; rows of the others are kept
python scripts/study.py --gather    # run nothing
python scripts/study.py --ensembles # ensembles of reward models, and what PPO gains with each reward model, instead

It takes up the runs of `make seeds` where they ended, and does what is not done yet of the studies in rlhf.studies;
FORCE=1 deletes their CSVs and reward models of the chosen seeds first. Exit status: 0 done, 2 it could not start, else
that of the seed that failed.
"""

import argparse
import sys

from rlhf import outputs, runtime, studies
from rlhf.profiles import load_profile, set_up
from rlhf.studies.seeds import chosen, run_script


@runtime.reported
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, help="default: those of `make seeds`")
    parser.add_argument("--gather", action="store_true", help="run nothing")
    parser.add_argument("--ensembles", action="store_true", help="those of `make ensembles` instead")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # a seed's own process
    options = parser.parse_args()
    profile = load_profile()
    seeds = chosen(profile, options.seeds)
    files, asked = (studies.ENSEMBLES, ["--ensembles"]) if options.ensembles else (studies.FILES, [])
    if options.here:
        set_up(profile)
        with outputs.run_lock():
            if runtime.asked("FORCE"):
                studies.forget(profile, files)
            studies.run(profile, files)
        return 0
    for seed in () if options.gather else seeds:
        if status := run_script(profile, seed, "study.py", "--here", *asked):
            return status
    with outputs.run_lock():
        studies.gather(profile, seeds, files, "make ensembles" if options.ensembles else "make study")
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
