"""Opens pages in a headless Chromium and writes pictures of them.

docs/images/page.png      the page of `stepladder demo` after a reconstruction
docs/images/report.png    the report of a small run on the photographs of that page

python docs/screenshot.py

It needs Chromium and its driver (Debian: chromium, chromium-driver), and says how long after the click each stage was
visible.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import stepladder
from stepladder.demo.photographs import photographs
from stepladder.files import write_atomically
from stepladder.images import save_png
from stepladder.presets import PRESETS
from stepladder.training.autoencoder import train
from stepladder.training.config import load_config

WIDTH, HEIGHT = 1280, 900
ROOT = Path(__file__).resolve().parent.parent
COLOURS = 192
"""Of a picture: a palette keeps its file small."""

RUN = """
preset = "tiny"
steps = 200
batch_size = 4
log_every = 4
grid_every = 50
[data]
train = [{photographs}]
validation = [{photographs}]
validation_images = 6
validation_size = 64
[data.crop]
size = 32
[loss]
perceptual_weight = 0.0
"""
"""Of the small run."""

WATCH = """
const begun = performance.now(), seen = window.seen = [];
const look = () => {
  const strip = document.querySelectorAll('.panel-strip img').length;
  const shown = [...document.querySelectorAll('.panel-slider img')].filter(image => image.complete).length;
  if (strip && shown > 1 && seen.at(-1)?.[0] !== strip) seen.push([strip, performance.now() - begun]);
};
const observer = new MutationObserver(() => requestAnimationFrame(look));
observer.observe(document.body, {subtree: true, childList: true, attributes: true});
document.addEventListener('load', look, true);
document.querySelector('#start').click();
"""
"""Presses the button and notes when each number of stages is there to see, in milliseconds after the press."""


def main() -> int:
    """Writes the pictures; returns the exit status."""
    with chromium() as browser:
        with serving("photo") as link:
            browser.get(f"{link}?models=photo&example=astronaut")
            wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#picture img"))
            browser.execute_script(WATCH)
            wait_for(browser, lambda: "Done" in status(browser))
            time.sleep(1)  # the last picture is fetched and drawn
            for stages, milliseconds in browser.execute_script("return window.seen"):
                print(f"{stages} stages visible {milliseconds:.0f} ms after the click")
            save(browser, "page.png")
        with tempfile.TemporaryDirectory() as folder:
            browser.get(small_run(Path(folder)).as_uri())
            save(browser, "report.png")
    return 0


def small_run(folder: Path) -> Path:
    """Trains the smallest preset for 200 steps; the path of the report."""
    for name, photo in photographs().items():
        save_png(photo, folder / "photographs" / f"{name}.png")
    config = folder / "config.toml"
    config.write_text(RUN.format(photographs=json.dumps(str(folder / "photographs"))), "utf-8")
    run = folder / "runs" / "tiny"
    train(load_config(config, presets=PRESETS), run)
    return run / "report.html"


def save(browser: webdriver.Chrome, name: str) -> None:
    """Writes what the browser shows to docs/images."""
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    small, path = picture.quantize(COLOURS), ROOT / "docs" / "images" / name
    write_atomically(path, lambda place: small.save(place, "PNG", optimize=True), force=True)
    print(f"{name}: {path.stat().st_size / 1024:.0f} KiB")


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[str]:
    """The link of a page that `stepladder demo` serves in another process, with these arguments and variables."""
    source = str(Path(stepladder.__file__).parents[1])
    command = [sys.executable, "-c", "from stepladder.cli import main; main()", "demo", *arguments]
    server = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": source} | environment, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        link = server.stdout.readline().strip()
        if not link:
            raise RuntimeError(f"stepladder demo ended with exit status {server.wait()}")
        yield link
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def missing() -> str:
    """Why no Chromium can be started here; empty where one can."""
    if not _program("chromium", "chromium-browser", "google-chrome"):
        return "there is no Chromium here (Debian: apt-get install chromium)"
    if not _program("chromedriver"):
        return "there is no chromedriver here (Debian: apt-get install chromium-driver)"
    return ""


@contextlib.contextmanager
def chromium(width: int = WIDTH, height: int = HEIGHT) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a fresh profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(_program("chromedriver")))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield browser
    finally:
        browser.quit()


def status(browser: webdriver.Chrome) -> str:
    """What the page says at the moment; empty before it is there."""
    said = browser.execute_script("return document.querySelector('#status')?.innerText")
    return said or ""


def wait_for(browser: webdriver.Chrome, condition: object, seconds: float = 120) -> None:
    """Waits until a function without arguments returns something true, also while parts of the page are drawn anew."""
    assert callable(condition)
    redrawn = [StaleElementReferenceException]
    WebDriverWait(browser, seconds, poll_frequency=0.1, ignored_exceptions=redrawn).until(lambda _: condition())


def _program(*names: str) -> str:
    """The path of the first of these that is installed; empty where none is."""
    return next((path for name in names if (path := shutil.which(name))), "")


if __name__ == "__main__":
    sys.exit(main())
