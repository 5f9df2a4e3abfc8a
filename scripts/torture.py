"""Kill `make run` and the recipe at random moments, run them again until they end, and compare all their tables.

They run at the smoke profile below outputs/torture/, which is emptied first. The kills go to results/torture.csv. Exit
status: 0 every table is that of a run without kills, 1 one is not, 2 a run failed or too few kills hit.
"""

import argparse
import random
import shutil
import sys

from rlhf import outputs, runtime
from rlhf.notebooks import torture

import pandas as pd


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=int, default=36, help="kills of make run, spread over its notebooks")
    parser.add_argument("--recipe", type=int, default=6, help="kills of the recipe")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the moments (default: any)")
    parser.add_argument("--least", type=int, default=20, help="kills that must hit")
    options = parser.parse_args(arguments)
    folder = outputs.root() / "torture"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {options.seed}", flush=True)
    draws = random.Random(options.seed)
    asked = {"run": options.run, "recipe": options.recipe}
    try:
        tables = [torture.torture(name, count, folder, draws) for name, count in asked.items() if count]
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = pd.concat(tables)
    if len(table) < options.least:
        print(f"error: {len(table)} kills hit, fewer than {options.least}; ask for more.", file=sys.stderr)
        return 2
    path = outputs.replace(outputs.REFERENCE / "torture.csv", lambda new: table.to_csv(new, index=False))
    print(f"{len(table)} kills, written to {outputs.show(path)}")
    return int(not table.equal.all())


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
