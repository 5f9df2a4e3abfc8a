"""Write the training of one stage as a script for one or several GPUs: `make script STAGE=sft|sft_qlora|reward|ppo`.

It goes to outputs/scripts/<profile>/<stage>/train.py, to be read, changed and started by `accelerate launch`; see
docs/scaling.md. Exit status: 0 done, 2 it could not start.
"""

import argparse
import sys

from rlhf import launch, runtime
from rlhf.profiles import load_profile


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", help=", ".join(launch.STAGES))
    options = parser.parse_args(arguments)
    path = launch.write_script(load_profile(), options.stage)
    print("Written. To start it on every GPU of this machine:")
    print(f"  .venv/bin/accelerate launch --config_file accelerate_configs/ddp.yaml {path}")
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
