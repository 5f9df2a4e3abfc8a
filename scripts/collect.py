"""Collect preferences from people: sample answers of the fine-tuned policy, and serve the page that ranks them.

python scripts/collect.py                      # 100 prompts of the training split, 4 answers to each
python scripts/collect.py --prompts 20 --answers 6 --temperatures 0.7 1.3
python scripts/collect.py --export             # write what is ranked so far, show how far raters agree, serve nothing

All lies in outputs/collect/<profile>/: items.jsonl, which is sampled once and then kept, a journal for each rater,
and pairs.jsonl, which the page's Export or --export writes and RLHF_DATASET reads.
"""

import argparse
import random
import sys

from rlhf import data, models, outputs, rating, registry, runtime
from rlhf.collect import items
from rlhf.collect.agreement import compare
from rlhf.profiles import Profile, load_profile, set_up

from filelock import FileLock, Timeout


def sample(profile: Profile, options: argparse.Namespace) -> list[items.Item]:
    key, tokenizer = models.start_key(profile), models.load_tokenizer(profile)
    prompts = data.training_prompts(profile, tokenizer, profile.sft.max_length)
    chosen = random.Random(profile.seed).sample(prompts, min(options.prompts, len(prompts)))
    policy, source = models.load_policy(profile, key), outputs.checkpoint_path(profile, registry.MODELS[key].checkpoint)
    settings = options.temperatures, options.answers, items.revision(source)
    return items.sample_items(profile, policy, tokenizer, chosen, *settings)


@runtime.reported
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--answers", type=int, default=4, help=f"to each, {items.LEAST} to {items.MOST}")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0, 1.3])
    parser.add_argument("--export", action="store_true", help="write the pairs, show the agreement, serve nothing")
    options = parser.parse_args()
    profile = load_profile()
    set_up(profile)
    folder = outputs.collect_dir(profile)
    path = folder / "items.jsonl"
    if options.export:
        desk = rating.Desk(folder, items.load(path))
        pairs, ties = desk.export()
        print(f"{pairs} pairs and {ties} ties are in {outputs.show(folder)}")
        if desk.journals:
            print(compare(desk.items, list(desk.journals.values())).round(2).to_string(index=False))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            if not path.exists():
                items.save(path, sample(profile, options))
            desk = rating.Desk(folder, items.load(path))
            print(f"{len(desk.items)} items of {desk.items[0].revision} in {outputs.show(path)}; delete it for others.")
            rating.page(desk).launch(**rating.SERVER)
    except Timeout as error:
        raise BlockingIOError(f"{folder} is in use: the page is served already; stop that process first.") from error
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
