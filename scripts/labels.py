"""Compare labels of the policy's own answers with those of the corpus, at equal numbers (rlhf/studies/labels.py).

python scripts/labels.py             # every seed of `make seeds`, one after the other, then gather
python scripts/labels.py 0           # these seeds alone; rows of the others are kept

It takes up the runs of `make seeds`, and does the parts, an arm at a number of labels, that are not done yet. To repeat
it, delete labels.csv and the checkpoints reward_model_<arm>_*. Exit status: 0 done, 2 it could not start, else that of
the seed that failed.
"""

import sys

from rlhf import runtime, studies
from rlhf.profiles import load_profile
from rlhf.studies import labels
from rlhf.studies.seeds import chosen


@runtime.reported
def main() -> int:
    options = studies.seed_parser(__doc__).parse_args()
    profile = load_profile()
    seeds = chosen(profile, options.seeds)
    if options.here:
        return studies.run_here(labels.run, profile)
    labels.check(profile, seeds)  # before a seed has taken its time
    return studies.run_seeds(profile, seeds, ["labels.py", "--here"], labels.FILES, "make labels")


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
