"""Print the results of this machine's run as tables, or check that README.md shows those of results/.

python scripts/results_table.py            # of the profile RLHF_PROFILE; README.md is not touched
python scripts/results_table.py --check    # exit with 1 if the results in README.md are not those in results/
"""

import argparse
import sys

from rlhf import outputs, report, runtime
from rlhf.profiles import load_profile


@runtime.reported
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare README.md with results/")
    options = parser.parse_args(arguments)
    if not options.check:
        print(report.results(load_profile()))
        return 0
    text = (outputs.ROOT / "README.md").read_text(encoding="utf-8")
    made = [report.replaced(text, load_profile(name)) for name in ("lab", "sentiment", "alpaca")]
    stale = any(other != text for other in (*made, report.with_benchmarks(text)))
    print(f"README.md: the results {'are not' if stale else 'are'} those in results/")
    return int(stale)


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
