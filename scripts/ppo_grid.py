"""Search the settings of PPO on validation prompts, by the rule of rlhf/studies/ppo_grid.py.

It needs a finished `make run`, takes up a search that was stopped, and prints what the rule chooses, which then belongs
into 03_ppo_alignment/ppo_config.py. Exit status: 0 done, 2 it could not start.
"""

import sys

from rlhf import outputs, runtime
from rlhf.profiles import load_profile, set_up
from rlhf.studies import ppo_grid


@runtime.reported
def main() -> int:
    profile = load_profile()
    set_up(profile)
    with outputs.run_lock():
        table = ppo_grid.run(profile)
    print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
