"""What the three stages share: settings, data, models, decoding, scoring, metrics, figures, outputs."""

import logging

# bitsandbytes asks at every import on a CPU for a package that it does without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
