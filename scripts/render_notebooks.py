"""Put the outputs of the executed lab notebooks into the tracked ones, and its CSVs and plots into results/.

The part of README.md with the results is written anew from these. Exit status: 0 done, 1 nothing was rendered, 2 it
could not start.
"""

import argparse
import os
import sys
from pathlib import Path

from rlhf import outputs, report, runtime
from rlhf.notebooks import execution, rendering
from rlhf.profiles import load_profile


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=outputs.ROOT, help="the folder that holds 01_..., 02_...")
    options = parser.parse_args(arguments)
    for variable in ("MODEL", "DATASET", "PUBLISHED", "MAX_STEPS", "SEED"):  # the profile as it stands
        os.environ.pop(f"RLHF_{variable}", None)
    try:
        profile = load_profile("lab")
        with outputs.run_lock():
            problems = rendering.render_all(execution.find_notebooks(options.root.resolve()), profile)
            if problems:
                print("error: nothing was rendered.", *problems, sep="\n  ", file=sys.stderr)
                return 1
            rendering.copy_results(profile)
            report.write_readme(profile)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
