"""The package of the case study. Floors, each importing from lower ones alone:

0  runtime, outputs, template, tokens, registry, download
1  profiles, files, forms, data, sst2, lab
2  models, adapters, generation, metrics, training
3  pretraining, sft, reward, ppo, dpo
4  evaluation, studies, plots, recipes
5  hub, chat, demo, notebooks, report
"""

import logging
import os

# transformers' Trainer puts a model on all visible GPUs at once, which multiplies the batch of every profile. Which GPU
# is seen can only be said before CUDA starts, so here: the first one of those that may be used.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
# bitsandbytes asks at every import on a CPU for a package that it does without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
