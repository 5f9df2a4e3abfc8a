"""python -m rlhf.hub publish|pull user/name: what `make publish` and `make run FROM=hub:...` do."""

import argparse
import sys

from rlhf import outputs, runtime
from rlhf.hub.publish import publish
from rlhf.hub.pull import pull
from rlhf.profiles import load_profile


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    """Exit status 2 where it can't be done."""
    parser = argparse.ArgumentParser(prog="python -m rlhf.hub", description="Publish or pull the checkpoints of a run.")
    parser.add_argument("command", choices=("publish", "pull"))
    parser.add_argument("repository", help="user/name")
    parser.add_argument("--upload", action="store_true", help="publish: really upload; without it, show what would be")
    parser.add_argument("--public", action="store_true", help="publish: for everyone to see")
    parser.add_argument("--revision", help="pull: a branch, tag or commit")
    options = parser.parse_args(arguments)
    profile = load_profile()
    if options.command == "pull":
        with outputs.run_lock():
            print(f"pulled {', '.join(pull(profile, options.repository, options.revision))}")
        return 0
    files = publish(profile, options.repository, private=not options.public, dry_run=not options.upload)
    for name, size in files.items():
        print(f"{size / 1e6:10.3f} MB  {name}")
    where = f"{'are now in' if options.upload else 'would go to'} {options.repository}"
    who = "everyone" if options.public else "you alone"
    print(f"{len(files)} files, {sum(files.values()) / 1e6:.1f} MB {where}, visible to {who}.")
    if not options.upload:
        print("Nothing was uploaded; add UPLOAD=1 to do it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
