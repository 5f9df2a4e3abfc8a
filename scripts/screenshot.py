"""Take the picture of the demo page that the README shows, by the Chromium of this machine, of its run's checkpoints.

The prompt is the first of the evaluation's examples, answered greedily, so that equal checkpoints give equal pictures.
"""

import shutil
import sys

from rlhf import demo, outputs

from playwright.sync_api import sync_playwright

PICTURE = outputs.ROOT / "demo" / "screenshot.png"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def set_temperature(page, value: str) -> None:
    """Open the decoding and fill in the temperature until it stays: a page just opened may put its default back."""
    page.get_by_role("button", name="Decoding").click()
    field = page.get_by_label("number input for Temperature")
    for _ in range(20):
        field.fill(value)
        field.blur()
        page.wait_for_timeout(500)
        if field.input_value() == value:
            return
    raise TimeoutError(f"the temperature did not stay at {value}")


def main() -> int:
    if CHROMIUM is None:
        print("error: no Chromium found; install it, for example by apt install chromium.", file=sys.stderr)
        return 2
    answerer, prompts = demo.load()
    server = demo.page(answerer, prompts)
    _, url, _ = server.launch(prevent_thread_lock=True, quiet=True, **demo.SERVER)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(url)
        set_temperature(page, "0")
        page.get_by_label("Prompt", exact=True).fill(prompts[0])
        page.get_by_role("button", name="Answer", exact=True).click()
        for name in demo.NAMES:
            page.wait_for_function(f"document.querySelector('#reward-{name} textarea, #reward-{name} input').value")
        page.screenshot(path=PICTURE, full_page=True)
        browser.close()
    server.close()
    print(outputs.show(PICTURE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
