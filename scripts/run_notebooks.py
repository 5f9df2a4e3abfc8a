"""Execute the notebooks of the numbered folders in order, for the chosen profile.

A run resumes at the first notebook that has not finished for the code, settings and data that there are now; FORCE=1
starts over. Notebooks can be named by a part of their path: these are executed, finished or not, and all after them
count as unfinished. The last three draw what `make study`, `make troubleshooting` and `make beyond` measure, and are
executed only when they are named. FROM=hub:user/name[@revision] takes the checkpoints from there and executes the
evaluation alone.
Exit status: 0 done, 1 a notebook failed, 2 the run could not start, 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

from rlhf import outputs, runtime
from rlhf.hub.pull import pull
from rlhf.notebooks import execution
from rlhf.profiles import load_profile, set_up


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="part of the path of a notebook to execute (default: resume the run)")
    parser.add_argument("--root", type=Path, default=outputs.ROOT, help="the folder that holds 01_..., 02_..., 03_...")
    options = parser.parse_args(arguments)
    force, source, names = runtime.asked("FORCE"), os.environ.get("FROM", "").strip(), options.names
    if source and (force or names):
        raise ValueError(
            "FROM pulls checkpoints and executes the evaluation alone: name no notebook with it and leave FORCE "
            "out; RLHF_OUTPUTS=<folder> keeps what is pulled apart from a run of your own."
        )
    if force and names:
        raise ValueError("FORCE=1 deletes every output, so it starts at the first notebook; name none with it.")
    profile = load_profile()
    if profile.recipe:
        recipe = profile.name.removesuffix("_smoke")
        raise ValueError(f"profile {profile.name!r} is that of one notebook; run it by make recipe NAME={recipe}.")
    set_up(profile)
    notebooks = execution.find_notebooks(options.root.resolve())
    with outputs.run_lock():
        if force:
            execution.start_over(profile)
        execution.check_settings(profile)
        if source:
            kind, _, name = source.partition(":")
            name, _, revision = name.partition("@")
            if kind != "hub" or not name:
                raise ValueError(f"FROM={source!r} is not of the form hub:user/name or hub:user/name@revision.")
            print(f"Pulled from {outputs.show_name(name)}: {', '.join(pull(profile, name, revision or None))}.")
            names = [execution.EVALUATION]
        chosen = execution.choose(notebooks, profile, names)
        return execution.run(chosen, notebooks, profile, options.root.resolve())


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
