"""The page of `moevision demo` in a real browser, each tab used as a person would, compared with `moevision.api`.

Where MOEVISION_SCREENSHOTS names a folder, screenshots go there.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moevision
from moevision.imaging.picture import picture_from_array
from moevision.imaging.read import read_picture
from moevision.imaging.write import write_picture

pytest.importorskip("gradio", reason="the extra `app` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: apt-get install chromium")

EXAMPLES = Path(__file__).parents[2] / "app" / "examples"
SCENES = EXAMPLES.parent / "scenes"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox needs what containers do not give to root.
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


class Visit:
    """A page in the browser, and what went wrong in it."""

    def __init__(self, page, folder):
        self.page, self.folder = page, folder
        self.errors, self.foreign = [], []

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()
        return self.page.get_by_role("tabpanel")

    def shot(self, name):
        if self.folder is None:
            return
        self.page.wait_for_timeout(400)  # pictures fade in
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)

    def saved(self, panel, name):
        """The file that a click on its link downloads."""
        with self.page.expect_download() as waiting:
            panel.get_by_role("link", name=name).or_(panel.locator(f'a[download="{name}"]')).first.click()
        assert waiting.value.suggested_filename == name
        return Path(waiting.value.path())


@pytest.fixture
def visit(browser, demo):
    """`visit(viewport, scheme)` opens the page; at the end nothing may have gone wrong in it."""
    folder = os.environ.get("MOEVISION_SCREENSHOTS")
    visits = []

    def open_page(viewport=None, scheme="light"):
        context = browser.new_context(viewport=viewport or DESK, color_scheme=scheme, accept_downloads=True)
        context.set_default_timeout(60_000)
        one = Visit(context.new_page(), folder and Path(folder))
        one.page.on("console", lambda m: one.errors.append(m.text) if m.type == "error" else None)
        one.page.on("pageerror", lambda error: one.errors.append(str(error)))
        one.page.on(
            "request", lambda r: None if r.url.startswith((demo.url, "data:", "blob:")) else one.foreign.append(r.url)
        )
        one.page.goto(demo.url)
        one.page.get_by_role("button", name="Restore", exact=True).wait_for()
        visits.append((one, context))
        return one

    yield open_page
    for one, context in visits:
        context.close()
        assert one.foreign == []
        assert one.errors == []


def test_restore_as_a_person_does(visit, tmp_path):
    file = tmp_path / "deep.png"
    ramp = np.linspace(0, 65535, 120 * 160 * 3).reshape(120, 160, 3).astype(np.uint16)
    write_picture(picture_from_array(ramp), file)
    one = visit()
    panel = one.tab("Restore")
    panel.locator("input[type=file]").first.set_input_files(file)
    panel.get_by_role("button", name="Remove").or_(panel.get_by_label("Remove Image")).first.wait_for()
    panel.get_by_label("haze", exact=True).check()
    panel.get_by_role("button", name="Restore", exact=True).click()
    panel.get_by_role("heading", name="Taken away: haze").wait_for()
    result = read_picture(one.saved(panel, "deep-restored.png"))
    assert result.pixels_HWC.dtype == np.uint16
    np.testing.assert_array_equal(
        result.pixels_HWC, moevision.restore(str(file), device="cpu", weather=["haze"])
    )  # fmt: skip


def test_examples_run_with_one_click_and_look_right(visit):
    one = visit()
    panel = one.tab("Restore")
    panel.locator("button.gallery-item").first.click()
    panel.get_by_role("heading", name="haze, ").wait_for()
    one.shot("demo-restore")
    result = read_picture(one.saved(panel, "haze-mountain-restored.jpg"))
    expected = moevision.restore(str(EXAMPLES / "haze-mountain.jpg"), device="cpu")
    assert np.abs(result.pixels_HWC.astype(int) - expected).mean() < 2  # JPEG
    panel.get_by_label("Show who decided what").check()
    panel.get_by_text("Press Restore to see who decided what.").wait_for()
    panel.get_by_role("button", name="Restore", exact=True).click()
    panel.get_by_text("oftenest expert").wait_for()
    panel.get_by_role("cell", name="Expert ").first.wait_for()
    one.shot("demo-experts")
    panel = one.tab("Fuse")
    panel.locator("tbody tr").first.click()
    panel.get_by_role("heading", name="Visible ").wait_for()
    one.shot("demo-fuse")
    result = read_picture(one.saved(panel, "meadow-visible-fused.png"))
    pair = (str(SCENES / f"meadow-{kind}.png") for kind in ("infrared", "visible"))
    np.testing.assert_array_equal(result.pixels_HWC, moevision.fuse(*pair, device="cpu"))


def test_segment_in_the_dark(visit, demo):
    one = visit(scheme="dark")
    panel = one.tab("Segment")
    panel.locator("button.gallery-item").first.click()
    panel.get_by_role("heading", name="Mostly ").wait_for()
    panel.get_by_role("table").get_by_text("%").first.wait_for()
    found = moevision.segment(str(EXAMPLES / "rain-stream.jpg"), model=demo.segmentation_model, device="cpu")
    np.testing.assert_array_equal(np.asarray(Image.open(one.saved(panel, "rain-stream-classes.png"))), found.ids_HW)
    panel.get_by_label("Model").click()
    panel.get_by_role("option", name="segmentation-camvid", exact=True).click()
    panel.get_by_role("button", name="Segment", exact=True).click()
    panel.get_by_role("cell", name="Building").wait_for()
    one.shot("demo-segment-dark")


def test_detect_tells_how_far_it_is_and_can_be_cancelled(visit):
    one = visit()
    panel = one.tab("Detect")
    panel.locator("tbody tr").last.click()
    panel.get_by_text("of 60; events so far").wait_for()
    panel.get_by_role("button", name="Cancel").click()
    panel.get_by_text("Cancelled.").wait_for()
    panel.get_by_role("button", name="Detect", exact=True).click()
    panel.get_by_role("heading", name="1 event").wait_for()
    one.shot("demo-detect")
    panel.get_by_text("0:00:01.").locator("visible=true").first.wait_for()  # in the table of events
    assert one.page.evaluate("Math.max(...[...document.querySelectorAll('video')].map(v => v.duration))") > 5


def test_a_phone_shows_everything_in_its_width(visit):
    one = visit(viewport=PHONE)
    for name in ("Restore", "Fuse", "Detect", "Segment"):
        panel = one.tab(name)
        panel.get_by_role("button", name=name, exact=True).wait_for()
        one.shot(f"demo-{name.lower()}-phone")
        assert one.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, name


def test_every_control_has_a_name(visit):
    one = visit()
    for name in ("Restore", "Fuse", "Detect", "Segment"):
        panel = one.tab(name)
        panel.get_by_role("button", name=name, exact=True).wait_for()
        unnamed = panel.evaluate(
            """panel => [...panel.querySelectorAll("button, input:not([type=file]), textarea")].filter(
                e => e.offsetParent && !(e.innerText.trim() || e.ariaLabel || e.title || e.labels?.length
                    || e.querySelector("img[alt]") || e.querySelector("input"))).map(e => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []


def test_a_message_says_what_was_wrong(visit, tmp_path):
    file = tmp_path / "letter.png"
    file.write_text("Dear Sir or Madam")
    one = visit()
    panel = one.tab("Restore")
    panel.get_by_role("button", name="Restore", exact=True).click()
    one.page.get_by_text("no photograph yet: choose one first").wait_for()
    panel.locator("input[type=file]").first.set_input_files(file)
    panel.get_by_role("button", name="Remove").or_(panel.get_by_label("Remove Image")).first.wait_for()
    panel.get_by_role("button", name="Restore", exact=True).click()
    message = one.page.get_by_text("letter.png: not an image file")
    message.wait_for()
    one.shot("demo-message")
    assert str(tmp_path) not in message.first.inner_text()
    assert one.page.get_by_text("Traceback").count() == 0
