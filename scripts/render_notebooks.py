"""Put the outputs of executed notebooks into the tracked ones, and their CSVs and plots into results/.

python scripts/render_notebooks.py                       # those of the numbered folders, run at the lab profile
python scripts/render_notebooks.py --recipe sentiment    # that of a recipe, with the model and data that are set

The part of README.md with the results is written anew from these. Exit status: 0 done, 1 nothing was rendered, 2 it
could not start.
"""

import argparse
import os
import sys
from pathlib import Path

from rlhf import outputs, report, runtime
from rlhf.notebooks import execution, rendering
from rlhf.profiles import load_profile, recipe_profile


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=outputs.ROOT, help="the folder that holds 01_..., 02_...")
    parser.add_argument("--recipe", help="the name of a recipe, such as sentiment")
    options = parser.parse_args(arguments)
    root, changed = options.root.resolve(), ("MAX_STEPS", "SEED")
    for variable in changed if options.recipe else (*changed, "MODEL", "DATASET", "PUBLISHED"):  # as the profile has it
        os.environ.pop(f"RLHF_{variable}", None)
    profile = load_profile(recipe_profile(options.recipe) if options.recipe else "lab")
    recipe = root / "recipes" / f"{options.recipe}.ipynb"
    with outputs.run_lock():
        notebooks = [recipe] if options.recipe else execution.find_notebooks(root)
        problems = rendering.render_all(notebooks, profile)
        if problems:
            print("error: nothing was rendered.", *problems, sep="\n  ", file=sys.stderr)
            return 1
        rendering.copy_results(profile)
        report.write_readme(profile)
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
