"""Compare labels of the policy's own answers with those of the corpus, at equal numbers (rlhf/studies/labels.py).

python scripts/labels.py             # every seed of `make seeds`, one after the other, then gather
python scripts/labels.py 0           # these seeds alone; rows of the others are kept

It takes up the runs of `make seeds`, and does the parts, an arm at a number of labels, that are not done yet. To repeat
it, delete labels.csv and the checkpoints reward_model_<arm>_*. Exit status: 0 done, 2 it could not start, else that of
the seed that failed.
"""

import argparse
import sys

from rlhf import outputs, runtime, studies
from rlhf.profiles import load_profile, set_up
from rlhf.studies import labels
from rlhf.studies.seeds import chosen, run_script


@runtime.reported
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, help="default: those of `make seeds`")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # a seed's own process
    options = parser.parse_args()
    profile = load_profile()
    seeds = chosen(profile, options.seeds)
    if options.here:
        set_up(profile)
        with outputs.run_lock():
            labels.run(profile)
        return 0
    labels.check(profile, seeds)  # before a seed has taken its time
    for seed in seeds:
        if status := run_script(profile, seed, "labels.py", "--here"):
            return status
    with outputs.run_lock():
        studies.gather(profile, seeds, labels.FILES, "make labels")
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
