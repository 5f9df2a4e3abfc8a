"""Compare PPO with DPO, IPO, RLOO, GRPO, rejection sampling and online DPO (rlhf/studies/beyond.py).

python scripts/beyond.py             # every seed of `make seeds`, one after the other, then gather
python scripts/beyond.py 0           # these seeds alone; rows of the others are kept

It takes up the runs of `make seeds` where they ended, and does the methods that are not done yet; the search is that of
the first seed. Exit status: 0 done, 2 it could not start, else that of the seed that failed.
"""

import sys

from rlhf import runtime, studies
from rlhf.profiles import load_profile
from rlhf.studies import beyond
from rlhf.studies.seeds import chosen


@runtime.reported
def main() -> int:
    options = studies.seed_parser(__doc__).parse_args()
    profile = load_profile()
    seeds = chosen(profile, options.seeds)
    if options.here:
        return studies.run_here(beyond.run, profile)
    return studies.run_seeds(
        profile, seeds, ["beyond.py", "--here"], beyond.FILES, "make beyond", before=beyond.share_search
    )


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
