"""Write policy, reward model and prompts as another engine reads them, and print its command.

`make export FOR=openrlhf`, after notebook 2.2 and the first cells of 3.1, or the scripts of these stages.
Exit status: 0 done, 2 it could not start.
"""

import argparse
import sys

from rlhf import export, outputs, runtime
from rlhf.profiles import load_profile, set_up


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="openrlhf")
    options = parser.parse_args(arguments)
    if options.engine != "openrlhf":
        raise ValueError(f"FOR={options.engine!r} is no engine that is known; set it to openrlhf.")
    profile = load_profile()
    set_up(profile)
    with outputs.run_lock():
        folder = export.for_openrlhf(profile)
    print((folder / export.COMMAND).read_text(encoding="utf-8"))
    print(f"Written: {folder}. Copy it to the machine with the GPUs, and start it there: GPUS=8 sh {export.COMMAND}")
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
