"""The page in a real browser."""

import os
import shutil

import pytest

from retarget.report import build
from retarget.study.config import Arm
from retarget.study.figures import Analysis, Table, Text

pytestmark = pytest.mark.browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        message = "no chromium, chromium-browser or google-chrome on the path: the page cannot be opened"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, finished):
    """Opens the page; ``visit.faults`` gathers console messages, errors and requests that leave the file."""
    contexts = []

    def open_page(width=1280, height=800, scheme="light", path=None):
        path = path or finished / "report.html"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: open_page.faults.append(message.text))
        page.on("pageerror", lambda error: open_page.faults.append(str(error)))
        page.on("request", lambda request: open_page.requests.append(request.url))
        page.goto(path.as_uri())
        return page

    open_page.faults, open_page.requests = [], []
    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_without_an_error_and_nothing_leaves_the_file(visit, finished, width, scheme):
    page = visit(width, scheme=scheme)
    for sentence in (
        "1 of 6 claims holds here, 3 do not, 2 lack evidence.",
        "PS-KD improves accuracy on image classification.",
        "11 seeds would decide with 80 % power, if mean and spread stay the same",
    ):
        assert any(one.is_visible() for one in page.get_by_text(sentence).all())
    assert page.get_by_role("table", name="Claims, what was compared").get_by_role("row").count() == 9
    assert page.get_by_role("img", name="Line chart of validation NLL").is_visible()
    assert page.get_by_role("img", name="Samples: benign noise").evaluate("image => image.naturalWidth") == 64
    assert visit.faults == []
    addresses = [url for url in visit.requests if not url.startswith("data:")]
    assert addresses == [(finished / "report.html").as_uri()]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(visit, width):
    page = visit(width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overflowing = page.evaluate(
        """width => [...document.querySelectorAll('main *')].filter(element =>
            !element.closest('.scroll, .panels, svg, .unseen, thead')
            && element.getBoundingClientRect().right > width + 1
        ).map(element => element.outerHTML.slice(0, 120))""",
        width,
    )
    assert overflowing == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_finding_and_the_forest_plot_stand_on_the_first_screen(visit, width, height):
    page = visit(width, height)
    plot = page.get_by_role("img", name="Forest plot of 6 claims").bounding_box()
    assert page.locator(".found").first.bounding_box()["y"] < plot["y"]
    assert plot["y"] + plot["height"] < height
    shown = [page.locator(f".forest .{part}").is_visible() for part in ("broad", "slim")]
    assert shown == [width > 768, width <= 768]
    key = page.locator(".forest .key")
    assert key.text_content() == "Marks: disc: holds; square: does not hold; lozenge: not enough evidence. "
    assert key.is_visible() == (width <= 768)  # where no word stands beside a mark


def test_nothing_of_the_forest_plot_leaves_its_drawing(visit):
    for width in (390, 1280):
        beyond = visit(width).evaluate(
            """() => [...document.querySelectorAll('.forest svg')].filter(svg => svg.getClientRects().length)
                .flatMap(svg => { const box = svg.getBoundingClientRect();
                    return [...svg.querySelectorAll('text, path, circle')].filter(e => {
                        const own = e.getBoundingClientRect();
                        return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
                    }).map(e => e.outerHTML); })"""
        )
        assert beyond == []


def test_a_table_sorts_by_a_column_and_filters_its_rows(visit, study, plain_plan):
    arms = tuple(Arm(name=f"arm{place}", label=f"arm {place}") for place in range(9))
    page = visit(path=build([study("many", plain_plan(arms=arms, claims=()), Analysis())]))
    table = page.locator("table.metrics").first
    table.get_by_role("button", name="top-1 accuracy").click()
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    values = [float(text.split()[0]) for text in table.locator("tbody td:nth-child(2)").all_text_contents()]
    assert values == sorted(values)
    table.get_by_role("button", name="top-1 accuracy").click()
    assert [float(one.split()[0]) for one in table.locator("tbody td:nth-child(2)").all_text_contents()] == values[::-1]
    page.get_by_label("Rows with").first.fill("ARM 7")
    assert table.locator("tbody tr:visible").count() == 1
    assert visit.faults == []


def test_times_and_powers_of_ten_sort_by_their_size(visit, study, plain_plan):
    rows = [
        ["a", "2 h 0 min", "−4.6×10⁻⁸"],
        ["b", "59.0 s", "3.9×10⁻⁷"],
        ["c", "1 min 15 s", "0.2"],
        ["d", "3.0 s", "2×10³"],
    ]
    table = Table(title="Cost", caption="", columns=["arm", "time", "value"], rows=rows)
    page = visit(path=build([study("times", plain_plan(claims=()), Analysis(figures=[table]))]))
    shown = page.locator("table.sortable", has_text="59.0 s").first
    for head, place in (("time", 2), ("value", 3)):
        shown.get_by_role("button", name=head).click()
        found = shown.locator(f"tbody td:nth-child({place})").all_text_contents()
        wanted = {
            "time": ["3.0 s", "59.0 s", "1 min 15 s", "2 h 0 min"],
            "value": ["−4.6×10⁻⁸", "3.9×10⁻⁷", "0.2", "2×10³"],
        }
        assert found == wanted[head]


def test_everything_is_there_without_a_script(browser, finished):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((finished / "report.html").as_uri())
    assert page.get_by_role("img", name="Forest plot").is_visible()
    assert page.locator("table.metrics tbody tr").count() > 10
    assert page.locator("input").count() == 0
    context.close()


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser, finished, tmp_path):
    path = tmp_path / "changed.html"
    foreign = "<script>document.title = 'changed'</script></body>"
    path.write_text((finished / "report.html").read_text().replace("</body>", foreign))
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.title() == "PS-KD on image classification"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(visit, scheme):
    page = visit(scheme=scheme)
    colours = page.evaluate(
        """() => {
            const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
            const rgb = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                                    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
            const paper = rgb(getComputedStyle(document.body).backgroundColor);
            const texts = [...document.querySelectorAll('main *')].filter(e =>
                [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.tagName !== 'text');
            return [paper, ...new Set(texts.map(e => rgb(getComputedStyle(e).color).join()))];
        }"""
    )
    paper, *inks = [tuple(map(int, str(one).split(","))) if isinstance(one, str) else tuple(one) for one in colours]
    assert (sum(paper) < 200) == (scheme == "dark")
    assert len(inks) >= 5
    for ink in inks:
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, ink


def luminance(colour):
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_verbatim_text_is_shown_to_the_letter(visit, study):
    block = "\n  first line is empty\n\ttab <b>&amp;</b>\n"
    found = Analysis(figures=[Text(title="Rollout", caption="c", labels=["one"], blocks=[block])])
    page = visit(path=build([study("verbatim", None, found)]))
    assert page.locator(".blocks pre").text_content() == block


def test_drawings_follow_the_scheme(visit):
    strokes = []
    for scheme in ("light", "dark"):
        page = visit(scheme=scheme)
        strokes.append(page.locator(".drawing .s-blue").first.evaluate("element => getComputedStyle(element).stroke"))
        strokes.append(page.locator(".drawing text").first.evaluate("element => getComputedStyle(element).fill"))
    assert len(set(strokes)) == 4


def test_print_shows_the_configuration_and_hides_the_links(visit):
    page = visit()
    setting = page.get_by_role("cell", name="0.5, 0.75", exact=True)
    assert not setting.is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(
        "getComputedStyle(document.querySelector('details'), '::details-content').contentVisibility"
    ) == ("visible")
    assert not page.get_by_role("navigation").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_every_box_that_scrolls_can_be_reached_by_keyboard(visit):
    page = visit(360)
    unreachable = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(e =>
            ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth
            && e.tabIndex < 0).map(e => e.outerHTML.slice(0, 100))"""
    )
    assert unreachable == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the findings"
