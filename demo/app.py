"""Serve the demo page, here or as a Space.

python demo/app.py                        # the checkpoints of this machine's run, of the profile RLHF_PROFILE
RLHF_REPO=user/name python demo/app.py    # those of a repository (or local folder) that `make publish` made
"""

import sys

from rlhf import demo

if __name__ == "__main__":
    sys.exit(demo.main())
