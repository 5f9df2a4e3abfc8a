"""Run the studies of over-optimisation, which 03_ppo_alignment/4_overoptimisation.ipynb draws, or those of ensembles.

python scripts/study.py             # every seed of `make seeds`, one after the other, then gather
python scripts/study.py 0           # these seeds alone; rows of the others are kept
python scripts/study.py --gather    # run nothing
python scripts/study.py --ensembles # ensembles of reward models, and what PPO gains with each reward model, instead

It takes up the runs of `make seeds` where they ended, and does what is not done yet of the studies in rlhf.studies;
FORCE=1 deletes their CSVs and reward models of the chosen seeds first. Exit status: 0 done, 2 it could not start, else
that of the seed that failed.
"""

import sys

from rlhf import outputs, runtime, studies
from rlhf.profiles import Profile, load_profile
from rlhf.studies.seeds import chosen


@runtime.reported
def main() -> int:
    parser = studies.seed_parser(__doc__)
    parser.add_argument("--gather", action="store_true", help="run nothing")
    parser.add_argument("--ensembles", action="store_true", help="those of `make ensembles` instead")
    options = parser.parse_args()
    profile = load_profile()
    seeds = chosen(profile, options.seeds)
    files, asked = (studies.ENSEMBLES, ["--ensembles"]) if options.ensembles else (studies.FILES, [])
    command = "make ensembles" if options.ensembles else "make study"

    def run(profile: Profile) -> None:
        if runtime.asked("FORCE"):
            studies.forget(profile, files)
        studies.run(profile, files)

    if options.here:
        return studies.run_here(run, profile)
    if options.gather:
        with outputs.run_lock():
            studies.gather(profile, seeds, files, command)
        return 0
    return studies.run_seeds(profile, seeds, ["study.py", "--here", *asked], files, command)


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
