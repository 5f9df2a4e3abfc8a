"""Run the study of planted faults, which 03_ppo_alignment/5_troubleshooting.ipynb draws.

It takes up a finished `make run` and makes those of its short runs that are not there yet; FORCE=1 makes all anew. Exit
status: 0 done, 2 it could not start.
"""

import sys

from rlhf import outputs, runtime
from rlhf.profiles import load_profile, set_up
from rlhf.studies import troubleshooting


@runtime.reported
def main() -> int:
    profile = load_profile()
    set_up(profile)
    with outputs.run_lock():
        if runtime.asked("FORCE"):
            troubleshooting.forget(profile)
        troubleshooting.run(profile)
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
