"""Automated raters: they answer the page of `cascade drawbench rate` in a headless Chromium, by what it shows.

    python benchmarks/raters.py RUN_A RUN_B -o answers.sqlite [--raters 4] [--names A B]

Each sees the caption and the pixels, and nothing else, and presses keys. In quality a rater prefers the sharper set
(mean absolute difference of neighbouring pixels), in alignment the one to which the caption fits better
(denoising_judge.py), where the difference stands out from the images' own spread: Welch's t, to which every rater adds
noise of its own, beyond 1. The last rater does not look, and presses keys at random: the control items should tell.

It needs selenium, chromium and chromedriver; what was answered before is kept.
"""

import base64
import hashlib
import io
import random
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from denoising_judge import DenoisingJudge
from environment import ROOT
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipelines.evaluation.rating.command import summary

OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,900")
QUESTIONS = ("quality", "alignment")
KEYS = {"a": "1", "neither": "2", "b": "3"}
READY = """return !document.getElementById("done").hidden || !document.getElementById("compare").hidden
    && !document.querySelector(".loading, .choices [aria-disabled=true]")"""
CURSOR = """return [document.getElementById("position").textContent, document.querySelector(".active")?.id,
    document.getElementById("caption").textContent.slice(1, -1)]"""
PIXELS = """const images = [...document.querySelectorAll(`#images-${arguments[0]} img`)], side = images[0].naturalWidth;
    const canvas = Object.assign(document.createElement("canvas"), { width: side * images.length, height: side });
    images.forEach((image, k) => canvas.getContext("2d").drawImage(image, k * side, 0));
    return canvas.toDataURL("image/png").split(",")[1];"""


class Eyes:
    """What raters measure in the images of a set: a value for each. Nobody looks twice at the same pixels."""

    def __init__(self) -> None:
        self.judge = DenoisingJudge()
        self._seen: dict[tuple[str, str], np.ndarray] = {}

    def __call__(self, question: str, caption: str, png: bytes) -> np.ndarray:
        key = (hashlib.sha256(png).hexdigest(), caption if question == "alignment" else "")
        if key not in self._seen:
            self._seen[key] = self._sharpness(png) if question == "quality" else self._fit(png, caption)
        return self._seen[key]

    def _sharpness(self, png: bytes) -> np.ndarray:
        return images_of(png).diff(dim=-1).abs().mean(dim=(1, 2, 3)).numpy()

    def _fit(self, png: bytes, caption: str) -> np.ndarray:
        images = images_of(png)
        return self.judge(images, [caption] * len(images)).numpy()


def images_of(png: bytes) -> Tensor:
    """A strip of images: B 3 H H in [-1, 1]."""
    strip = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1)
    return torch.stack(strip.split(strip.shape[1], dim=2)).float() / 127.5 - 1


def welch(a: np.ndarray, b: np.ndarray) -> float:
    return float((b.mean() - a.mean()) / np.sqrt((a.var() + b.var()) / (len(a) - 1) + 1e-12))


class Rater:
    """One person at a browser."""

    def __init__(self, browser: Any, url: str, name: str, eyes: Eyes | None) -> None:
        self.browser, self.eyes, self.random = browser, eyes, random.Random(name)
        self.screen, self.sets = "", []
        browser.delete_all_cookies()
        browser.get("about:blank")
        browser.get(url)
        self._wait("return !document.getElementById('welcome').hidden")
        browser.find_element("css selector", "#name").send_keys(name)
        browser.find_element("css selector", "#enter button").click()
        self._wait(READY)

    def _wait(self, code: str) -> None:
        deadline = time.monotonic() + 120
        while not self.browser.execute_script(code):
            if time.monotonic() > deadline:
                sys.exit(f"the page does not go on: {self.browser.find_element('css selector', 'body').text}")
            time.sleep(0.01)

    def answer(self) -> bool:
        """The question that is asked; whether there was one left."""
        position, question, caption = self.browser.execute_script(CURSOR)
        if not position:
            return False
        if self.eyes is not None and position != self.screen:
            self.sets = [base64.b64decode(self.browser.execute_script(PIXELS, side)) for side in "ab"]
            self.screen = position
        pressed = KEYS[self._choice(question, caption)]
        self.browser.switch_to.active_element.send_keys(pressed)
        self._wait(READY)
        return True

    def _choice(self, question: str, caption: str) -> str:
        if self.eyes is None:
            return self.random.choice([*KEYS])
        found = welch(*(self.eyes(question, caption, png) for png in self.sets)) + self.random.gauss(0, 1)
        return "b" if found > 1 else "a" if found < -1 else "neither"


def main(
    run_a: tyro.conf.Positional[Path],
    run_b: tyro.conf.Positional[Path],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    names: tuple[str, str] | None = None,
    raters: int = 4,
    port: int = 8123,
) -> None:
    """Have automated raters answer the whole study, one after the other.

    Args:
        run_a: As of `cascade drawbench rate`.
        run_b: As of `cascade drawbench rate`.
        output: The file of answers.
        names: As of `cascade drawbench rate`.
        raters: How many, the one who does not look among them.
        port: That the page is served on.
    """
    from selenium import webdriver

    warnings.simplefilter("ignore", UserWarning)  # of words that the judge was not taught
    command = [sys.executable, "-m", "pipelines.cli", "drawbench", "rate", str(run_a.absolute()), str(run_b.absolute())]
    command += ["-o", str(output.absolute()), "--port", str(port), *(["--names", *names] if names else [])]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    while (line := server.stdout.readline()) and not line.startswith("Ctrl-C"):
        print(line, end="")
    if server.poll() is not None:
        sys.exit("the server did not start")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in OPTIONS:
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    eyes = Eyes()
    try:
        for number in range(1, raters + 1):
            looks = number < raters
            rater = Rater(
                browser,
                f"http://127.0.0.1:{port}",
                f"{'looks' if looks else 'guesses'}-{number}",
                eyes if looks else None,
            )
            bar = tqdm(desc=f"rater {number} of {raters}", unit="answer")
            while rater.answer():
                bar.update()
            bar.close()
    finally:
        browser.quit()
        server.terminate()
        server.wait()
        print(summary(output))


if __name__ == "__main__":
    tyro.cli(main)
