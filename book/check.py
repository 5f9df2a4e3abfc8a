"""Open every page of the built book in Chromium: all files load, every formula renders, every picture has a text.

python book/check.py outputs/book    # exit status: 0 all right, 1 a page is not, 2 there is no book or no Chromium
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FAULTS = """() => [
    ...[...document.querySelectorAll("mjx-merror")].map((e) => "formula: " + e.textContent),
    ...[...document.querySelectorAll(".math")].filter((e) => !e.querySelector("mjx-container"))
        .map((e) => "formula left as it is: " + e.textContent),
    ...[...document.images].filter((e) => !e.naturalWidth).map((e) => "picture: " + e.src),
    ...[...document.querySelectorAll("main img")].filter((e) => !e.alt).map((e) => "picture without text: " + e.src),
    ...[...document.querySelectorAll("main a[href^='#']")].filter((e) => e.hash.length > 1)
        .filter((e) => !document.getElementById(decodeURIComponent(e.hash.slice(1)))).map((e) => "link: " + e.href),
]"""


def main(folder: Path) -> int:
    made = (path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts)
    pages = sorted(path for path in made if path.name not in ("genindex.html", "search.html"))
    if not pages or CHROMIUM is None:
        print(f"error: no book in {folder}: run make book." if not pages else "error: no Chromium found; install it.")
        return 2
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("requestfailed", lambda request: found.append(f"not loaded: {request.url}"))
        for path in pages:
            page.goto(path.resolve().as_uri())
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(500)  # formulas are set after the page has loaded
            found += [f"{path.relative_to(folder)}: {fault}" for fault in page.evaluate(FAULTS)]
            links = page.evaluate("() => [...document.querySelectorAll('main a')].map((e) => e.href)")
            local = {link.split("#")[0] for link in links if link.startswith("file:")}
            missing = [link for link in local if not Path(link.removeprefix("file://")).exists()]
            found += [f"{path.relative_to(folder)}: link to {link}" for link in missing]
        browser.close()
    print(*found or [f"{len(pages)} pages: every file, formula, picture and link is there."], sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
