"""The page at /, in a real browser: what it shows, that nothing in it can be run, and that everybody can use it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.page.conftest import EVIL, SHARED
from tests.support.browser import shoot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from tests.support.server import Service

SIZES = {"desk": (1280, 900), "phone": (360, 740), "small": (320, 600)}


@contextmanager
def visit(browser: Browser, service: Service, size: str = "desk", **options: Any) -> Iterator[Page]:
    """The page, once it has its figures. Fails if anything was asked elsewhere, refused by its policy, or raised."""
    width, height = SIZES[size]
    phone = size != "desk"
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone, **options
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda asked: None if asked.url.startswith(service.url) else wrong.append(asked.url))
    page.goto(service.url)
    page.wait_for_selector("html[data-loaded]")
    try:
        yield page
        assert wrong == []
    finally:
        context.close()


def open_image(page: Page, image: str) -> None:
    page.click(f"button[data-image='{image}']")
    page.wait_for_selector("#detail h4")


def overflow(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def test_it_shows_what_is_there(browser: Browser, service: Service) -> None:
    """Images, layers, what is shared, uploads, processes; the same numbers as the routes behind it."""
    with visit(browser, service) as page:
        rows = page.locator("#imagelist tbody tr")
        assert rows.count() == 5
        assert page.locator("#imagelist .badge.unmountable").count() == 1
        assert "team/coming" in page.inner_text("#uploads")
        assert "worker 1" in page.inner_text("#processlist")
        overview = httpx.get(f"{service.url}/v1/overview").json()
        # The figures of both are counted now and then; the page asks for them again.
        expect(page.locator("#tiles .tile:first-child .big")).to_have_text(
            str(overview["store"]["images"]), timeout=30_000
        )
        open_image(page, "team/app:1")
        detail = page.inner_text("#detail")
        assert re.search(r"team/base:1\S*.*586 KiB\t67 %", detail), detail
        assert "/srv/model" in detail
        assert sorted(page.locator("#matrix .self").all_inner_texts()) == ["586 KiB", "654 KiB", "879 KiB"]
        assert page.locator("#charts svg path.line").count() >= 4
        page.click("text=The same as a table")
        assert page.locator("#samples tbody tr").count() >= 300
        page.fill("#filter", "BROKEN")
        assert rows.count() == 1
        shoot(page, "detail")
    assert len(SHARED) == 4


@pytest.mark.parametrize("image", ["evil/image:1", "evil/broken:1"])
def test_names_are_text(browser: Browser, service: Service, image: str) -> None:
    """Paths, reasons and platforms that are HTML are shown as they are, and nothing of them becomes an element."""
    with visit(browser, service) as page:
        open_image(page, image)
        # A reason has its quotes escaped, by who found it.
        assert "<script>document.title=" in page.inner_text("#detail")
        assert EVIL in page.inner_text("#imagelist")
        assert page.locator("main img, main script").count() == 0
        assert page.title() == "pagepool"


def test_scripts_in_it_would_not_run(browser: Browser, service: Service) -> None:
    """Should markup get into the page all the same, the policy keeps it from being run."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(service.url)
    page.wait_for_selector("html[data-loaded]")
    for attempt in _ATTEMPTS:
        assert page.evaluate(f"() => {{ try {{ {attempt} }} catch (error) {{ return error.name; }} }}") == "TypeError"
    assert page.title() == "pagepool"
    context.close()


_ATTEMPTS = (
    "document.body.innerHTML += '<img src=x>';",
    "document.createElement('img').setAttribute('onerror', 'document.title = 1');",
    "document.createElement('script').text = 'document.title = 1';",
    "document.createElement('script').src = 'data:text/javascript,document.title=1';",
    "setTimeout('document.title = 1');",
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(browser: Browser, service: Service, size: str, scheme: Any) -> None:
    """Every width, in the system's colours, with an image open; text can be told from what is behind it."""
    with visit(browser, service, size, color_scheme=scheme) as page:
        open_image(page, "team/app:1")
        assert not overflow(page)
        lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (sum(lightness) > 3 * 128) == (scheme == "light")
        assert page.evaluate(_CONTRAST) >= 4.5
        shoot(page, f"{size}-{scheme}")


# The least contrast of texts with their background, as WCAG 2.2 counts it.
_CONTRAST = """() => {
  const light = (colour) => {
    const [red, green, blue] = colour.match(/[0-9.]+/g).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (/^rgb\\(/.test(colour)) return colour;
    }
  };
  const texts = document.querySelectorAll("h2, h3, th, td, p, dt, dd, small, code, .badge, .link, nav a, label span");
  return Math.min(...[...texts].filter((node) => node.checkVisibility() && node.textContent && !node.closest(".heat"))
    .map((node) => [light(getComputedStyle(node).color), light(behind(node))])
    .map(([one, other]) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)));
}"""


def test_the_theme_that_was_chosen_stays(browser: Browser, service: Service) -> None:
    """Over a reload, whatever the system says."""
    with visit(browser, service, color_scheme="light") as page:
        page.select_option("#theme", "dark")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.reload()
        page.wait_for_selector("html[data-loaded]")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
        assert page.input_value("#theme") == "dark"
        page.select_option("#theme", "auto")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_by_keyboard(browser: Browser, service: Service) -> None:
    """The first key leads past the navigation; an image opens and closes, and the focus comes back; charts tell."""
    with visit(browser, service, reduced_motion="reduce") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
        page.focus("button[data-image='team/app:1']")
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail h4")
        assert page.get_attribute("button[data-image='team/app:1']", "aria-expanded") == "true"
        page.wait_for_selector("#detail:focus")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("button[data-image='team/app:1']:focus")
        assert page.is_hidden("#detail")
        page.focus("#charts svg >> nth=0")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert re.fullmatch(r"\d\d:\d\d:\d\d  90 %", page.text_content("#tip") or "")
        page.keyboard.press("Escape")
        assert page.is_hidden("#tip")
        page.focus("#matrix .heat button >> nth=0")
        assert "of its content" in page.inner_text("#tip")


def test_by_touch(browser: Browser, service: Service) -> None:
    """A tap on a chart shows a value, one on a pair what it is."""
    with visit(browser, service, "phone") as page:
        page.tap("#charts svg >> nth=0")
        assert "90 %" in page.inner_text("#tip")
        page.tap("#matrix .heat button >> nth=0")
        assert " shares " in page.inner_text("#tip")
        page.click("input[value=week]", force=True)
        page.wait_for_selector("#charts figure:nth-child(6)")
        assert not overflow(page)


def test_it_says_when_the_service_is_gone(browser: Browser, service: Service) -> None:
    """And goes on when it is back; the figures that were there stay."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(service.url)
    page.wait_for_selector("html[data-loaded]")
    service.stop()
    page.uncheck("#live")
    assert page.inner_text("#status") == "Paused"
    page.check("#live")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.inner_text("#status") == "Not up to date"
    assert page.locator("#imagelist tbody tr").count() == 5
    service.start()
    page.uncheck("#live")
    page.check("#live")
    page.wait_for_selector("#problem", state="hidden")
    assert page.inner_text("#status").startswith("Updated ")
    context.close()
