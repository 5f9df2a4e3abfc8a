"""The package of the case study. Floors, each importing from lower ones alone:

0  runtime, finite, outputs, template, tokens, registry, download
1  profiles, files, forms, data, sst2, lab
2  models, adapters, generation, metrics, laws, resume, training
3  pretraining, sft, reward, ppo, dpo
4  evaluation, collect, studies, plots, recipes, alpaca
5  hub, chat, demo, rating, notebooks, report, launch, export
"""

import logging
import os

if "RLHF_LAUNCHED" not in os.environ:  # which the scripts of `make script` set: they are for several GPUs
    # transformers' Trainer puts a model on all visible GPUs at once, which multiplies the batch of every profile. Which
    # GPU is seen can only be said before CUDA starts, so here: the first one of those that may be used.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # A launcher that this process was started under must not make its trainers wait for others.
    for name in [n for n in os.environ if n in ("RANK", "LOCAL_RANK", "WORLD_SIZE") or n.startswith("ACCELERATE_")]:
        del os.environ[name]
# What serves a page asks itself whether it is there, which must not go through a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(
    dict.fromkeys(f"{os.environ.get('no_proxy') or os.environ.get('NO_PROXY', '')},localhost,127.0.0.1,::1".split(","))
).strip(",")
# What Apple's GPU has no kernel for is computed on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
# bitsandbytes asks at every import on a CPU for a package that it does without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
