"""The rating page in a real browser: an automated rater goes by the pixels it is shown, and by keys and clicks."""

import shutil
import time

import pytest
from rating_runs import PROMPTS, ServerProcess, make_run

from pipelines.evaluation.rating.answers import controls_passed, read_answers

pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver on the PATH"),
]

OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
SCREENS = len(PROMPTS) + 2


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS.split():
        options.add_argument(option)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1300, 900)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Flat images: red says which run, green which prompt."""
    folder = tmp_path_factory.mktemp("study")
    make_run(folder / "a", seed=10, images=8)
    make_run(folder / "b", seed=20, images=8)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    process = ServerProcess(folder, "--controls", "0.4")
    yield process
    process.kill()


class Rater:
    """Drives the page as a person does, and waits as one."""

    def __init__(self, browser, url):
        browser.delete_all_cookies()
        self.browser = browser
        browser.get_log("browser")
        browser.get("about:blank")
        browser.get(url)
        self.wait("return ['welcome', 'compare', 'done'].some((id) => !document.getElementById(id).hidden)")

    def js(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def wait(self, code):
        deadline = time.monotonic() + 60
        while not self.js(code):
            assert time.monotonic() < deadline, f"never came true: {code}\n{self.text('body')}"
            time.sleep(0.02)

    def element(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, selector):
        return self.element(selector).text

    def key(self, name):
        from selenium.webdriver.common.keys import Keys

        self.browser.switch_to.active_element.send_keys(getattr(Keys, name, name))

    def click(self, selector):
        self.element(selector).click()

    def shown(self, section):
        return self.js("return !document.getElementById(arguments[0]).hidden", section)

    def ready(self):
        """A screen is there and takes answers, or the end is."""
        self.wait(
            "return !document.getElementById('done').hidden || !document.getElementById('compare').hidden "
            "&& !document.querySelector('.loading, .choices [aria-disabled=true]')"
        )

    def enter(self, name):
        self.element("#name").send_keys(name)
        self.click("#enter button")
        self.ready()

    def pixels(self):
        """The first image's colour of each side."""
        return {side: self.js(PIXEL, side) for side in "ab"}

    def cursor(self):
        return self.text("#position"), self.js("return document.querySelector('.active').id")

    def pressed(self, question):
        return self.js(
            "const pressed = document.querySelectorAll(`#${arguments[0]} [aria-pressed=true]`);"
            "return [...pressed].map((button) => button.dataset.choice)",
            question,
        )


PIXEL = """
const image = document.querySelector(`#images-${arguments[0]} img`);
const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
context.drawImage(image, 0, 0);
return [...context.getImageData(0, 0, 1, 1).data];
"""
KEYS = {"a": ("1", "ARROW_LEFT"), "neither": ("2", "ARROW_DOWN"), "b": ("3", "ARROW_RIGHT")}


def test_an_automated_rater(browser, server, folder):
    """It prefers the second model in quality, and the set that is of the caption in alignment."""
    rater = Rater(browser, f"http://127.0.0.1:{server.port}")
    assert rater.shown("welcome")
    rater.enter("Robot")
    captions = [record.prompt for record in PROMPTS]
    for number in range(SCREENS):
        rater.ready()
        assert rater.cursor() == (f"{number + 1} of {SCREENS}", "quality")
        shown = rater.pixels()
        own = captions.index(rater.text("#caption").strip("“”"))
        quality = max("ab", key=lambda side: shown[side][0])
        of_it = [side for side in "ab" if shown[side][1] == own]
        alignment = of_it[0] if len(of_it) == 1 else "neither"
        assert captions[own] in rater.text("#alignment-text")
        if number % 3 == 0:
            rater.click(f"#quality [data-choice={quality}]")
            rater.ready()
            rater.click(f"#alignment [data-choice={alignment}]")
        else:
            rater.key(KEYS[quality][number % 3 - 1])
            rater.ready()
            assert rater.pressed("quality") == [quality]
            rater.key(KEYS[alignment][number % 3 - 1])
        rater.wait(f"return document.getElementById('progress').value === {2 * number + 2}")
    rater.ready()
    assert rater.shown("done")
    assert f"All {SCREENS} comparisons" in rater.text("#total")
    found = [answer for answer in read_answers(folder / "answers.sqlite") if answer.rater == "Robot"]
    assert sorted((a.prompt, a.question, a.preference) for a in found if not a.control) == sorted(
        (i, question, preference)
        for i in range(len(PROMPTS))
        for question, preference in (("quality", "second"), ("alignment", "neither"))
    )
    assert controls_passed(found) == {"Robot": (2, 2)}
    assert all(0 < answer.seconds < 60 for answer in found)
    assert browser.get_log("browser") == []
    # Everything came from the server.
    loaded = rater.js("return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)")
    assert set(loaded) == {f"127.0.0.1:{server.port}"}


def test_back_and_forth_and_a_reload(browser, server, folder):
    rater = Rater(browser, f"http://127.0.0.1:{server.port}")
    rater.enter("Undecided")
    for key in "1312":
        rater.key(key)
        rater.ready()
    assert rater.cursor() == (f"3 of {SCREENS}", "quality")
    rater.key("BACKSPACE")
    rater.ready()
    assert rater.cursor() == (f"2 of {SCREENS}", "alignment")
    assert rater.pressed("alignment") == ["neither"]
    rater.key("BACKSPACE")
    assert rater.cursor() == (f"2 of {SCREENS}", "quality")
    rater.key("3")  # a correction, and on to the next question, that keeps its answer
    rater.ready()
    assert rater.cursor() == (f"2 of {SCREENS}", "alignment")
    assert (rater.pressed("quality"), rater.pressed("alignment")) == (["b"], ["neither"])
    rater.key("ENTER")
    rater.ready()
    assert rater.cursor() == (f"3 of {SCREENS}", "quality")
    rater.key("1")
    rater.ready()
    browser.refresh()
    rater.ready()
    assert rater.cursor() == (f"3 of {SCREENS}", "alignment")
    assert rater.pressed("quality") == ["a"]
    assert rater.js("return document.getElementById('progress').value") == 5
    rater.click("#back")
    rater.click("#back")
    rater.ready()
    assert rater.cursor() == (f"2 of {SCREENS}", "alignment")
    assert rater.pressed("quality") == ["b"]
    rater.click("#leave")
    rater.wait("return !document.getElementById('welcome').hidden")


def test_the_last_screen_can_be_changed_after_the_end(browser, server, folder):
    rater = Rater(browser, f"http://127.0.0.1:{server.port}")
    rater.enter("Second thoughts")
    for _ in range(2 * SCREENS):
        rater.key("1")
        rater.ready()
    rater.click("#review")
    rater.ready()
    assert rater.cursor() == (f"{SCREENS} of {SCREENS}", "alignment")
    rater.key("2")
    rater.wait("return !document.getElementById('done').hidden")
    found = [answer for answer in read_answers(folder / "answers.sqlite") if answer.rater == "Second thoughts"]
    assert [answer.preference for answer in found].count("neither") == 1


def test_an_image_enlarged(browser, server):
    rater = Rater(browser, f"http://127.0.0.1:{server.port}")
    rater.enter("Close looker")
    rater.click("#images-b button:nth-child(8)")
    assert rater.text("#zoom-title") == "Set B, image 8 of 8"
    rater.key("ARROW_RIGHT")
    assert rater.text("#zoom-title") == "Set B, image 1 of 8"
    rater.key("1")  # is no answer here
    rater.key("ESCAPE")
    assert not rater.js("return document.getElementById('zoom').open")
    assert rater.pressed("quality") == []
    rater.click("#images-a button")
    rater.click("#close")
    assert not rater.js("return document.getElementById('zoom').open")


def test_a_server_that_goes_away_and_comes_back(browser, server, folder):
    rater = Rater(browser, f"http://127.0.0.1:{server.port}")
    rater.enter("Patient")
    rater.key("1")
    rater.ready()
    server.kill()
    rater.key("3")
    rater.wait("return document.getElementById('notice').textContent.includes('Trying again')")
    rater.key("2")  # too late: the first is being sent
    server.start()
    rater.wait("return document.getElementById('notice').textContent === ''")
    rater.ready()
    assert rater.cursor() == (f"2 of {SCREENS}", "quality")
    found = [answer for answer in read_answers(folder / "answers.sqlite") if answer.rater == "Patient"]
    assert [answer.question for answer in found if not answer.control] in (["quality", "alignment"], [])
    rater.click("#back")
    rater.ready()
    assert (rater.pressed("quality"), rater.pressed("alignment")) == (["a"], ["b"])


def test_a_link(browser, folder, tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    process = ServerProcess(tmp_path, "--raters", "1")
    try:
        link = process.printed[1].split()[1]
        rater = Rater(browser, link.split("#")[0])
        assert "open the link" in rater.text("#refusal")
        assert not rater.element("#enter").is_displayed()
        rater = Rater(browser, f"{link}x")
        rater.click("#enter button")
        rater.wait("return document.getElementById('refusal').textContent.includes('not valid')")
        rater = Rater(browser, link)
        assert not rater.element("#name").is_displayed()
        rater.click("#enter button")
        rater.ready()
        assert rater.text("#rater") == "rater-1"
        assert "#" not in browser.current_url, "the credential does not stay in the address"
    finally:
        process.kill()


def test_it_can_be_used_by_everyone(browser, server):
    rater = Rater(browser, f"http://127.0.0.1:{server.port}")
    rater.enter("Everyone")
    assert rater.js("return document.activeElement.id") == "caption"
    names = rater.js(
        "return [...document.querySelectorAll('#compare button')].map((b) => b.ariaLabel ?? b.textContent.trim())"
    )
    assert len(names) == 16 + 6 + 2
    assert all(names)
    assert rater.js("return document.documentElement.lang") == "en"
    grounds = set()
    for scheme in ("light", "dark"):
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        grounds.add(rater.js("return getComputedStyle(document.body).backgroundColor"))
        assert rater.js("return getComputedStyle(document.querySelector('.images img')).transitionProperty") == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(grounds) == 2
    for width in (390, 720, 1000, 1920):  # nothing sticks out
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert rater.js("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("images", [1, 3, 4, 8])
def test_both_sets_and_the_questions_are_seen_at_once(browser, tmp_path, images):
    for seed, name in enumerate("ab"):
        make_run(tmp_path / name, seed=seed, images=images)
    process = ServerProcess(tmp_path)
    try:
        rater = Rater(browser, f"http://127.0.0.1:{process.port}")
        rater.enter("Everyone")
        for width, height in ((1200, 800), (1600, 900), (1920, 1080)):
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            assert rater.js("return document.documentElement.scrollHeight") <= height, (width, height)
            assert rater.js("return document.querySelector('.images img').width") > 90
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        process.kill()
