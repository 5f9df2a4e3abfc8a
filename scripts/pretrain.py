"""Pretrain the lab's base model and write it to rlhf/lab/base, where every run of the lab profile finds it.

One to two hours on two cores; a run that was stopped goes on where it was. Exit status: 0 done, 2 it could not start.
"""

import sys

from rlhf import outputs, pretraining, runtime
from rlhf.lab.base_model import SHIPPED
from rlhf.profiles import load_profile, set_up


@runtime.reported
def main() -> int:
    profile = load_profile("lab")
    set_up(profile)
    with outputs.run_lock():
        trained = pretraining.pretrain(profile, outputs.checkpoint_path(profile, "pretraining"))
        pretraining.ship(profile, *trained, SHIPPED)
    print(trained[-1].tail(3).to_string(index=False))
    print(f"written: {outputs.show(SHIPPED)}")
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
