"""The page in a headless Chromium: what visitors see, and that they do not disturb each other."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO

import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("selenium")

from selenium.webdriver.common.by import By

from docs.screenshot import WATCH, chromium, missing, serving, status, wait_for
from stepladder import Tokenizer
from stepladder.demo.photographs import photographs
from stepladder.images import centre_crop_resize, to_pil, to_tensor

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing()), reason=missing() or "it is there")]

FETCH = """
const [address, done] = arguments;
fetch(address).then(found => found.blob()).then(blob => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.readAsDataURL(blob);
});
"""


@pytest.fixture(scope="module")
def link(tmp_path_factory) -> Iterator[str]:
    """A page with two models, which are one with other steps; its server leaves no file behind."""
    place = tmp_path_factory.mktemp("served")
    with serving("photo", "photo@2", "--max-megapixels", "0.5", TMPDIR=str(place)) as link:
        yield link
        assert list(place.glob("stepladder-page-*/**/image.png"))
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module")
def browsers() -> Iterator[list]:
    """Two, with nothing in common."""
    with chromium() as first, chromium() as second:
        yield [first, second]


@pytest.fixture
def opened(link, browsers) -> Callable:
    """Opens the page with settings in the link, in the first browser or the second."""

    def opened(query="", browser=0):
        browsers[browser].get(f"{link}{query}")
        wait_for(browsers[browser], lambda: browsers[browser].find_elements(By.CSS_SELECTOR, "#picture img"))
        return browsers[browser]

    return opened


def press(browser, name="start"):
    browser.find_element(By.ID, name).click()


def finished(browser):
    wait_for(browser, lambda: "Done" in status(browser))


def remove(browser):
    """Takes the image away; there is a place to drop one then."""
    clear = "document.querySelectorAll('#picture button[aria-label=\"Remove Image\"]').forEach(each => each.click())"
    browser.execute_script(clear)
    wait_for(browser, lambda: not browser.find_elements(By.CSS_SELECTOR, "#picture img"), 20)
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#picture input[type=file]"), 20)
    wait_for(browser, lambda: status(browser) == "Choose an image and press Reconstruct.", 20)


def upload(browser, path):
    def sent():
        browser.find_element(By.CSS_SELECTOR, "#picture input[type=file]").send_keys(str(path))
        return True

    wait_for(browser, sent, 20)


def shown(browser, index=-1, panel=0):
    """A picture of a comparison: the original, 0, or the reconstruction, -1."""
    panels = [each for each in browser.find_elements(By.CSS_SELECTOR, ".panel-slider") if each.is_displayed()]
    source = panels[panel].find_elements(By.TAG_NAME, "img")[index].get_attribute("src")
    data = browser.execute_async_script(FETCH, source)
    return Image.open(BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB")


def decoded(example, *, seed=0, steps=1, size=None):
    """What the library gives."""
    image = photographs()[example]
    image = centre_crop_resize(image, size) if size else image
    tokenizer = Tokenizer.from_pretrained("photo")
    return to_pil(tokenizer.decode(tokenizer.encode(to_tensor(image)[None]), seeds=[seed], steps=steps)[0])


def test_the_stages_appear_one_after_the_other_and_the_last_is_what_the_library_decodes(opened):
    browser = opened("?example=astronaut&size=256&seed=4")
    browser.execute_script(WATCH)
    finished(browser)
    wait_for(browser, lambda: browser.execute_script("return window.seen.at(-1)?.[0]") == 3, 20)
    seen = [stages for stages, _ in browser.execute_script("return window.seen")]
    assert seen == sorted(set(seen))
    captions = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".panel-strip figcaption") if each.text]
    assert [caption.splitlines()[0] for caption in captions] == ["64 x 64", "128 x 128", "256 x 256"]
    assert all(re.fullmatch(r"\d+ ms", caption.splitlines()[1]) for caption in captions)
    wait_for(browser, lambda: shown(browser).tobytes() == decoded("astronaut", seed=4, size=256).tobytes(), 20)
    assert shown(browser, 0).tobytes() == centre_crop_resize(photographs()["astronaut"], 256).tobytes()
    table = browser.find_element(By.ID, "facts").text
    assert all(word in table for word in ("PSNR, dB", "SSIM", "16 x 32 x 32, 64.0 KiB", "8.00"))
    assert any(each.is_displayed() for each in browser.find_elements(By.CSS_SELECTOR, ".panel-errors img"))


def test_models_stand_side_by_side_and_each_takes_its_own_steps(opened):
    browser = opened("?models=photo,photo@2&example=cat&size=128")
    press(browser)
    finished(browser)
    panels = [each for each in browser.find_elements(By.CSS_SELECTOR, ".panel-slider") if each.is_displayed()]
    left, right = (panel.rect for panel in panels)
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    table = browser.find_element(By.CSS_SELECTOR, "#facts .sl-scroll")
    assert browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", table) == 0
    for panel, steps in enumerate((1, 2)):
        wanted = decoded("cat", steps=steps, size=128).tobytes()
        wait_for(browser, lambda panel=panel, wanted=wanted: shown(browser, panel=panel).tobytes() == wanted, 20)


def test_two_browsers_at_once_do_not_disturb_each_other(opened):
    first, second = opened("?example=coffee&seed=1&size=256"), opened("?example=china&seed=2&size=128", browser=1)
    press(first)
    press(second)
    for browser, example, seed, size in ((first, "coffee", 1, 256), (second, "china", 2, 128)):
        finished(browser)
        wanted = decoded(example, seed=seed, size=size).tobytes()
        wait_for(browser, lambda browser=browser, wanted=wanted: shown(browser).tobytes() == wanted, 20)


def test_who_presses_while_others_are_served_waits_and_is_served_then(browsers):
    first, second = browsers
    with serving("photo", "--at-once", "1") as link:
        for browser, query in ((first, "?example=astronaut&steps=32"), (second, "?example=cat&size=128&seed=7")):
            browser.get(f"{link}{query}")
            wait_for(browser, lambda browser=browser: browser.find_elements(By.CSS_SELECTOR, "#picture img"))
        press(first)
        wait_for(first, lambda: "of 3 stages" in status(first))
        press(second)
        wait_for(second, lambda: "Waiting for a free place ..." in status(second), 20)
        assert not second.find_elements(By.CSS_SELECTOR, ".panel-strip img")
        press(first, "stop")
        finished(second)
        wanted = decoded("cat", seed=7, size=128).tobytes()
        wait_for(second, lambda: shown(second).tobytes() == wanted, 20)


def test_a_file_above_the_limit_is_a_sentence(opened, tmp_path):
    (tmp_path / "huge.png").write_bytes(bytes(32_100_000))
    browser = opened()
    remove(browser)
    upload(browser, tmp_path / "huge.png")
    said = (
        "Cannot read image huge.png: the file has 32.1 MB; at most 32 MB are read. Save it as JPEG or WebP, "
        "or make it smaller."
    )
    wait_for(browser, lambda: said in status(browser), 30)
    assert not browser.find_elements(By.CSS_SELECTOR, "#picture img")
    (tmp_path / "never.png").write_bytes(bytes(129 * 2**20))
    upload(browser, tmp_path / "never.png")  # so much is not even sent: the browser says so
    page = browser.find_element(By.TAG_NAME, "body")
    wait_for(browser, lambda: '"never.png"' in page.text, 30)


def test_stop_ends_a_decode_that_takes_long_and_the_next_one_works(opened):
    browser = opened("?example=astronaut&steps=32")
    press(browser)
    wait_for(browser, lambda: "1 of 3 stages" in status(browser))
    press(browser, "stop")
    wait_for(browser, lambda: "Stopped." in status(browser), 20)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".panel-strip img")) < 3
    assert not any(each.is_displayed() for each in browser.find_elements(By.CSS_SELECTOR, ".panel-errors"))
    browser = opened("?example=cat&size=64")
    press(browser)
    finished(browser)


def test_settings_go_into_the_link_and_come_back_from_it(opened):
    browser = opened("?example=rocket&seed=5&steps=2&size=64")
    assert browser.find_element(By.CSS_SELECTOR, "#seed input").get_attribute("value") == "5"
    assert browser.find_element(By.CSS_SELECTOR, "#steps input").get_attribute("value") == "2"
    assert browser.find_element(By.CSS_SELECTOR, "#size input").get_attribute("value") == "64"
    browser.find_elements(By.CSS_SELECTOR, "#models input")[1].click()
    browser.find_elements(By.CSS_SELECTOR, "#examples button.thumbnail-lg")[1].click()
    for part in ("models=photo,photo@2", "example=cat", "seed=5", "steps=2", "size=64"):
        wait_for(browser, lambda part=part: part in browser.current_url, 20)


def test_a_link_that_asks_for_what_is_not_there_gets_a_sentence_and_the_defaults(opened):
    browser = opened("?models=secret&steps=7&size=64")
    wait_for(browser, lambda: "The link asks for model 'secret'" in status(browser), 20)
    assert "The link asks for steps '7', which is not on this page." in status(browser)
    press(browser)
    finished(browser)


def test_an_upload_that_cannot_be_used_is_a_sentence(opened, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    (tmp_path / "<b>note.jpg").write_bytes(b"no image")
    Image.new("RGB", (1000, 501)).save(tmp_path / "large.png")
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "good.tiff")
    for name, said in {
        "torn.png": "Cannot read image torn.png:",
        "<b>note.jpg": "it is no image of a format that is read",
        "large.png": "too many pixels (1000 x 501); at most 500000 are read. Make it smaller.",
        "good.tiff": "Press Reconstruct, or choose another image.",
    }.items():
        browser = opened()
        remove(browser)
        upload(browser, tmp_path / name)
        wait_for(browser, lambda browser=browser, said=said: said in status(browser), 20)
    press(browser)
    finished(browser)
    wait_for(browser, lambda: shown(browser).size == (30, 20), 20)


def test_what_was_wrong_is_not_said_any_more_once_there_is_another_image(opened):
    browser = opened("?steps=7")
    wait_for(browser, lambda: "The link asks for steps '7'" in status(browser), 20)
    browser.find_elements(By.CSS_SELECTOR, "#examples button.thumbnail-lg")[1].click()
    wait_for(browser, lambda: status(browser) == "Press Reconstruct, or choose another image.", 20)


def test_nothing_to_work_on_is_a_sentence(opened):
    browser = opened()
    assert status(browser) == "Press Reconstruct, or choose another image."
    remove(browser)
    press(browser)
    wait_for(browser, lambda: "There is no image yet." in status(browser), 20)
    browser.find_elements(By.CSS_SELECTOR, "#models input")[0].click()
    press(browser)
    wait_for(browser, lambda: "No model is chosen. Offered: photo, photo@2." in status(browser), 20)


def test_all_examples_become_a_sheet_with_means(opened):
    browser = opened("?size=64")
    press(browser, "all")
    finished(browser)
    sheet = browser.find_element(By.ID, "sheet")
    wait_for(browser, lambda: len(sheet.find_elements(By.CSS_SELECTOR, "button.thumbnail-lg")) == 6, 20)
    assert all(name in sheet.text for name in photographs())
    assert "mean PSNR" in browser.find_element(By.ID, "facts").text


def test_a_narrow_screen_needs_no_sideways_scrolling_and_no_other_host_is_asked(link):
    with chromium(width=360, height=780) as browser:
        browser.get(f"{link}?size=64")
        wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#picture img"))
        press(browser)
        finished(browser)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        rows = [row.rect["height"] for row in browser.find_elements(By.CSS_SELECTOR, "#facts tr")]
        assert max(rows) < 1.5 * min(rows)
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        addresses = [
            each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"
        ]
        assert [each for each in addresses if not each.startswith((link, "data:", "blob:"))] == []
