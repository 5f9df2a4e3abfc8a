"""Execute a notebook of recipes/, named by NAME: `make recipe NAME=sentiment`.

Its trained parts are kept, so a run that was stopped goes on with the part that it was in; FORCE=1 starts over.
RLHF_PROFILE=smoke runs it small, to try it. Exit status: 0 done, 1 the notebook failed, 2 it could not start, 130
interrupted.
"""

import argparse
import sys

from rlhf import outputs, runtime
from rlhf.notebooks import execution
from rlhf.notebooks.staleness import is_finished
from rlhf.profiles import load_profile, recipe_profile, set_up


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the recipe, such as sentiment")
    options = parser.parse_args(arguments)
    profile = load_profile(recipe_profile(options.name))
    set_up(profile)
    notebook = outputs.ROOT / "recipes" / f"{options.name}.ipynb"
    with outputs.run_lock():
        if runtime.asked("FORCE"):
            execution.start_over(profile)
        execution.check_settings(profile)
        chosen = [] if is_finished(notebook, profile) else [notebook]
        return execution.run(chosen, [notebook], profile, outputs.ROOT)


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
