"""How soon the demo page answers: seconds to the first text and to the end, for one visitor and for ten at once.

python benchmarks/demo.py [--repetitions 10]    # the checkpoints of this machine's run, of the profile RLHF_PROFILE
python benchmarks/demo.py --load 1000           # prompts in a row, then thrice 50 at once: failures and memory
"""

import argparse
import math
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from rlhf import demo

import pandas as pd
import psutil
from gradio_client import Client

VISITORS, CROWD, CROWDS = 10, 50, 3


def serve(told: multiprocessing.Queue) -> None:
    """Serve the page, and tell its address, its prompts and the profile."""
    demo.A_MINUTE = math.inf
    answerer, prompts = demo.load()
    page = demo.page(answerer, prompts)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.SERVER)
    told.put((url, prompts, answerer.profile))
    page.block_thread()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10, help="prompts of the lone visitor")
    parser.add_argument("--load", type=int, default=0, metavar="PROMPTS", help="measure the memory instead")
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    told = processes.Queue()
    server = processes.Process(target=serve, args=(told,), daemon=True)  # on its own, so that its memory is
    server.start()
    url, prompts, profile = told.get(timeout=300)
    decoding = profile.decoding
    client = Client(url, verbose=False, max_workers=CROWD, httpx_kwargs={"timeout": 60})
    longest = decoding.max_new_tokens
    print(f"profile {profile.name}, {profile.threads} CPU threads, at most {longest} tokens")

    def seconds(prompt: str) -> tuple[float, float]:
        """From sending a prompt to the first text of any model, and to the last reward."""
        started, first = time.perf_counter(), None
        job = client.submit(prompt, decoding.temperature, longest, api_name="/answer")
        for shown in job:
            if first is None and any(shown):
                first = time.perf_counter() - started
        assert all(job.result()[1::2]), f"not all were answered: {job.result()}"
        return first, time.perf_counter() - started

    def load(count: int) -> None:
        """Ask `count` prompts in a row and CROWD at once, and say what became of the server's memory."""
        memory, started, process = {}, time.perf_counter(), psutil.Process(server.pid)
        for number, prompt in enumerate(islice(cycle(prompts), count), start=1):
            seconds(prompt)
            if number in (max(1, count // 10), count):
                memory[f"{number} in a row"] = process.memory_info().rss / 2**20
        took = time.perf_counter() - started
        for crowd in range(1, CROWDS + 1):
            with ThreadPoolExecutor(CROWD) as pool:
                list(pool.map(seconds, islice(cycle(prompts), CROWD)))
            memory[f"{CROWD} at once, time {crowd}"] = process.memory_info().rss / 2**20
        print(f"{count} prompts in {took:.0f} s and {CROWDS} x {CROWD} at once, all answered; memory in MB after")
        print(pd.Series(memory).round().to_string())

    if options.load:
        load(options.load)
        return

    alone = [seconds(prompt) for prompt in islice(cycle(prompts), options.repetitions + 1)][1:]
    with ThreadPoolExecutor(VISITORS) as pool:
        crowd = list(pool.map(seconds, islice(cycle(prompts), VISITORS)))
    for who, measured in (("alone", alone), (f"{VISITORS} at once", crowd)):
        table = pd.DataFrame(measured, columns=["first text", "all three answers with rewards"])
        print(f"{who}, in seconds:\n{table.agg(['median', 'min', 'max']).round(2)}")


if __name__ == "__main__":
    main()
