"""The page in a real, headless Chromium, used with mouse and keyboard as a person would."""

import importlib.util
import shutil

import pytest

from tfdet.inspection import report as html_report

# Without a display, a sandbox (tests may run as root) or a network.
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
FLAGS += ("disable-component-update", "disable-sync", "force-prefers-reduced-motion", "window-size=1300,1000")

# For every element that shows text: its contrast (WCAG 2.1) with the ground it lies on.
CONTRASTS = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const found = [];
for (const element of document.querySelectorAll("body *:not(svg *):not(script)")) {
  const shows = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!shows || !element.getClientRects().length) continue;
  let ground = element;
  while (ground && (channels(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
  const over = channels(getComputedStyle(ground ?? document.body).backgroundColor);
  const [a, b] = [luminance(channels(getComputedStyle(element).color)), luminance(over)];
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 120)]);
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs) or not importlib.util.find_spec("selenium"):
        pytest.skip("no browser: needs chromium and chromedriver (Debian's chromium-driver), and PyPI's selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(report, tmp_path_factory):
    return html_report.write(report, tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture
def page(browser, address):
    """The page, freshly loaded; at the end of the test nothing has been complained of."""
    browser.get("about:blank")
    browser.get(address)
    yield Page(browser)
    assert browser.get_log("browser") == []


class Page:
    def __init__(self, browser):
        self.browser = browser

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def focused(self, attribute):
        return self.browser.switch_to.active_element.get_attribute(attribute)

    def names(self):
        """The first column of the table, top down."""
        return [cell.text for cell in self.all(".figures tbody th")]

    def opacities(self, selector):
        return {float(part.value_of_css_property("opacity")) for part in self.all(selector)}


@pytest.fixture
def keys():
    from selenium.webdriver import Keys

    return Keys


def click_on_object(page, panel, index):
    page.one(f"#picture-0-panel-{panel} .target[data-object='{index}']").click()


@pytest.mark.parametrize("panel", [0, 2])
def test_a_click_on_an_object_shows_its_samples_in_every_panel(page, panel):
    assert page.opacities("#picture-0 .layer") == {1}
    click_on_object(page, panel, 0)
    for number, samples in enumerate((2, 2, 2, 2, 3)):
        own = f"#picture-0-panel-{number} .sample"
        assert sum(int(part.get_attribute("data-count")) for part in page.all(f"{own}.chosen")) == samples
        assert page.opacities(f"{own}[data-object='0']") == {1}
        assert page.opacities(f"{own}:not([data-object='0'])") <= {0.1}
    assert page.opacities("#picture-0-panel-0 .lost") == {0.1}
    told = [line.text for line in page.all("#picture-0 .panel .of-object")]
    assert told[0] == "2 positive: IoU 0.81, IoU 0.63" and told[3] == "2 positive: top_left, bottom_right"
    assert told[4] == "1 landmark, 1 part, 1 positive"
    assert page.one("#picture-0 button[aria-pressed='true']").get_attribute("data-name") == "0 cat"
    assert page.opacities("#picture-1 .layer") == {1}  # other pictures are left alone

    click_on_object(page, panel, 0)  # once more lets go
    assert page.opacities("#picture-0 .layer") == {1} and not page.all("button.chosen")


def test_of_objects_within_each_other_the_inner_one_is_clicked(page):
    click_on_object(page, 1, 2)
    assert page.one("button.chosen").get_attribute("data-object") == "2"
    told = [line.text for line in page.all("#picture-0 .panel .of-object")]
    assert told[:2] == ["lost: too small for every anchor", "1 positive: IoU 0.42"]
    assert told[2] == "1 positive" and told[4] == "no sample of it is drawn"
    assert page.opacities("#picture-0-panel-0 .lost") == {1}


def test_objects_by_keyboard(page, keys):
    page.run("document.querySelector('.legend label:last-child input').focus()")
    page.press(keys.TAB)
    assert page.focused("data-name") == "0 cat"
    buttons = page.all("#picture-0 .objects button")
    assert [button.get_attribute("tabindex") for button in buttons] == ["0", "-1", "-1"]
    page.press(keys.ARROW_RIGHT)
    assert page.focused("data-name") == "1 dog & <b>bone</b>"
    assert [button.get_attribute("tabindex") for button in buttons] == ["-1", "0", "-1"]
    ring = page.browser.switch_to.active_element.value_of_css_property("outline-style")
    assert ring == "solid"
    page.press(keys.ENTER)
    assert page.focused("aria-pressed") == "true" and page.focused("data-object") == "1"
    assert page.opacities("#picture-0-panel-0 .sample[data-object='0']") == {0.1}
    page.press(keys.ARROW_RIGHT, keys.ARROW_RIGHT, keys.SPACE)  # around the end
    assert page.one("button.chosen").get_attribute("data-object") == "0"
    page.press(keys.END)
    assert page.focused("data-object") == "2"
    page.press(keys.ESCAPE)
    assert not page.all(".chosen") and page.opacities("#picture-0 .layer") == {1}


def test_sorting(page, keys):
    together = ["ssd300 priors", "iou=0.4"]
    assert page.names() == [*together, "fcos locations", "retinanet anchors"]
    name, positives, best, *_ = page.all(".figures thead button")
    positives.click()
    assert page.names() == [*together, "retinanet anchors", "fcos locations"]
    headings = page.all(".figures thead th")
    assert [heading.get_attribute("aria-sort") for heading in headings[:3]] == ["none", "descending", "none"]
    page.press(keys.ENTER)  # the button has the focus
    assert page.names() == ["fcos locations", "retinanet anchors", *together]
    assert headings[1].get_attribute("aria-sort") == "ascending"
    page.press(keys.TAB)
    page.press(keys.SPACE)
    assert page.names() == ["retinanet anchors", *together, "fcos locations"]  # 0.75, 0.625, none
    best.click()
    assert page.names() == [*together, "retinanet anchors", "fcos locations"]  # none is last again
    name.click()
    assert page.names() == ["fcos locations", "retinanet anchors", *together]


def test_kinds_levels_and_heatmaps_can_be_hidden(page):
    from selenium.webdriver.support.ui import Select

    def shown(selector):
        return [part.value_of_css_property("display") != "none" for part in page.all(selector)]

    assert shown("#picture-0 .sample.negative") == [True] * 3
    page.one(".legend input[data-kind='negative']").click()
    assert shown("#picture-0 .sample.negative") == [False] * 3
    assert all(shown("#picture-0 .sample.positive")) and all(shown(".legend .swatch"))
    page.one("#picture-0-panel-0 input[data-level='0']").click()
    assert shown("#picture-0-panel-0 .positive") == [False, True]
    assert all(shown("#picture-0-panel-1 .positive"))
    assert shown("#picture-0-panel-3 .heatmap") == [True, True]
    Select(page.one("#picture-0-panel-3 select")).select_by_visible_text("bottom_right")
    assert shown("#picture-0-panel-3 .heatmap") == [False, True]


def test_lost_objects_lead_to_their_panels(page):
    page.one("#lost summary").click()
    page.one("#lost a").click()
    assert page.browser.current_url.endswith("#picture-0-panel-0")
    top = page.run("return document.querySelector('#picture-0-panel-0').getBoundingClientRect().top")
    assert 0 <= top < 300
    assert page.one("button.chosen").get_attribute("data-name") == "2 bird"


def test_a_panel_grows(page):
    figure = page.one("#picture-0-panel-1")
    before = figure.rect["width"]
    figure.find_element("css selector", ".enlarge").click()
    assert figure.rect["width"] > 2 * before


def test_nothing_by_a_stranger_runs_and_nothing_is_fetched(page, report):
    assert page.browser.title == "Samples of csv:<boxes>.csv"
    assert page.one("#picture-1 h3").text == report["pictures"][1]["image"]
    assert not page.all("img") and len(page.all("script")) == 1
    resources = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in resources if not name.startswith("data:")] == []
    # A script that came in all the same would not run.
    page.run("document.body.insertAdjacentHTML('beforeend', '<i id=x onclick=\"document.title = 1\"></i>')")
    page.run("document.querySelector('#x').click()")
    assert page.browser.title == "Samples of csv:<boxes>.csv"
    blocked = page.browser.get_log("browser")
    assert len(blocked) == 1 and "Content Security Policy" in blocked[0]["message"]


def test_photographs_are_drawn(page):
    """All panels show the photo of their picture, at the whole of their size."""
    sizes = page.run(
        "return [...document.querySelectorAll('.photo')].map((use) => [use.getBBox().width, use.href.baseVal])"
    )
    assert [tuple(size) for size in sizes] == [(160, "#photo-0")] * 6 + [(160, "#photo-1")] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.run("for (const part of document.querySelectorAll('details')) part.open = true")
    click_on_object(page, 0, 2)
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 64) == (scheme == "dark")
    contrasts = page.run(CONTRASTS)
    assert len(contrasts) > 80
    assert [pair for pair in contrasts if pair[0] < 4.5] == []


@pytest.mark.parametrize("width", [400, 800, 1300, 2400])
def test_the_page_fits_its_window(page, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide = page.run("return document.documentElement.scrollWidth")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width
