"""The built site as a reader sees it, in a real browser: ``make site-test``."""

import functools
import http.server
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urldefrag

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

SITE = Path(__file__).parent / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = (1280, 900), (390, 844)
# What the page is made of, as the browser has it.
CONTENT = """() => ({
    ids: [...document.querySelectorAll("[id]")].map(element => element.id),
    links: [...document.querySelectorAll("a[href]")].map(link => link.href),
    broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
    unnamed: [...document.querySelectorAll("article img:not([alt])")].map(image => image.src),
    headings: document.querySelectorAll("article h1").length,
    flat: [...document.querySelectorAll("math")].filter(it => !it.getBoundingClientRect().height)
        .map(it => it.textContent),
    // The equations are made without TeX: an index lands below an accent, \\frac12( is 12 / (.
    misread: [...document.querySelectorAll("munderover > mi:first-child, mfrac > mo")]
        .map(it => it.closest("math").textContent),
    card: Object.fromEntries([...document.querySelectorAll("meta[property], meta[name]")]
        .map(it => [it.getAttribute("property") || it.name, it.content])),
})"""
# Elements beyond the edge of the page, where nothing scrolls to them; what is folded counts, too.
CUT_OFF = """() => {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
    const scrolls = it => /auto|scroll/.test(getComputedStyle(it).overflowX);
    const reached = it => it.matches(".content") ? false : scrolls(it) || reached(it.parentElement);
    return [...document.querySelectorAll(".content *")].filter(it => {
        const {left, right} = it.getBoundingClientRect();
        return (left < -1 || right > document.documentElement.clientWidth + 1)
            && !reached(it.parentElement);
    }).map(it => it.outerHTML.slice(0, 80));
}"""
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Visit:
    """What came to light when a page was opened."""

    ids: set[str]
    links: set[str]
    broken: list[str]
    unnamed: list[str]
    headings: int
    flat: list[str]
    misread: list[str]
    card: dict[str, str]
    too_wide: dict[str, int] = field(default_factory=dict)
    cut_off: dict[str, list[str]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not PAGES:
        pytest.exit(f"Expected a built site in {SITE}: run `make docs`.", returncode=1)
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        pytest.exit(
            f"Expected one of the browsers {', '.join(BROWSERS)}, but found none: install "
            "Chromium, on Debian and Ubuntu by `apt-get install chromium`.",
            returncode=1,
        )
    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox; the flags keep the browser from calling home.
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        options += ["--disable-component-update", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=found[0], args=options)
        yield browser
        browser.close()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the site without a line for each request."""

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@pytest.fixture(scope="session")
def home() -> Iterator[str]:
    """Serve the site on this machine alone and return its address."""
    handler = functools.partial(Handler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def opened(browser: Browser, size: tuple[int, int], *, dark: bool = False) -> Page:
    """Return an empty tab."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        permissions=["clipboard-read", "clipboard-write"],
    )
    return context.new_page()


@pytest.fixture(scope="session")
def visits(browser: Browser, home: str) -> dict[str, Visit]:
    """Open every page once."""
    page = opened(browser, DESKTOP)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((home, "data:")) else complaints.append(request.url)
        ),
    )
    page.on(
        "response",
        lambda response: (
            complaints.append(f"{response.status}: {response.url}")
            if response.status >= 400
            else None
        ),
    )
    found = {}
    for name in PAGES:
        complaints.clear()
        page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
        page.goto(home + name)
        page.wait_for_load_state("networkidle")
        content = page.evaluate(CONTENT)
        visit = Visit(**{**content, "ids": {*content["ids"]}, "links": {*content["links"]}})
        for device, (width, height) in {"desktop": DESKTOP, "phone": PHONE}.items():
            page.set_viewport_size({"width": width, "height": height})
            if wide := page.evaluate(TOO_WIDE):
                visit.too_wide[device] = wide
            if cut := page.evaluate(CUT_OFF):
                visit.cut_off[device] = cut
        visit.complaints = list(complaints)
        found[name] = visit
    page.context.close()
    return found


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole(name: str, visits: dict[str, Visit]) -> None:
    visit = visits[name]
    assert visit.complaints == []  # nothing missing, and nothing fetched from elsewhere
    assert visit.broken == []
    assert visit.unnamed == []
    assert visit.flat == []
    assert visit.misread == []
    assert visit.headings == (name != "search.html")
    assert visit.too_wide == {}
    assert visit.cut_off == {}


@pytest.mark.parametrize("name", PAGES)
def test_a_link_to_the_page_has_a_picture(name: str, visits: dict[str, Visit]) -> None:
    card = visits[name].card
    assert card["og:title"]
    assert card["og:description"]
    assert card["twitter:card"] == "summary_large_image"
    home = card["og:url"].removesuffix(name)
    assert card["og:image"] == f"{home}_static/card.png"
    picture = (SITE / "_static" / "card.png").read_bytes()
    assert struct.unpack(">2I", picture[16:24]) == (1200, 630)
    assert len(picture) < 100_000


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str, visits: dict[str, Visit], home: str) -> None:
    dead = []
    for link in visits[name].links:
        address, fragment = urldefrag(link)
        if not address.startswith(home):
            assert address.startswith("https://"), link
            continue
        target = address.removeprefix(home) or "index.html"
        if not (SITE / target).is_file() or (fragment and fragment not in visits[target].ids):
            dead.append(link.removeprefix(home))
    assert dead == []


def test_every_page_is_reached_from_the_first(visits: dict[str, Visit], home: str) -> None:
    reached, waiting = set[str](), {"index.html"}
    while waiting:
        reached |= waiting
        links = {urldefrag(link)[0] for name in waiting for link in visits[name].links}
        waiting = ({link.removeprefix(home) for link in links} & visits.keys()) - reached
    assert visits.keys() - reached == {"search.html"}  # which the box leads to


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("overflow", "how_to/mixed_precision.html"),
        ("FSDP2", "processes.html"),
        ("smooth_counts", "reference.html"),
        ("sharpness", "glossary.html"),
    ],
)
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_search_finds(
    term: str, expected: str, size: tuple[int, int], browser: Browser, home: str
) -> None:
    page = opened(browser, size)
    page.goto(home)
    if size == PHONE:  # the search box is in the drawer
        page.locator("label.nav-overlay-icon:visible").click()
    page.locator("input[name=q]:visible").fill(term)
    page.keyboard.press("Enter")
    page.locator("#search-results .search-summary").filter(has_text="found").wait_for()
    results = page.locator("#search-results ul.search > li > a")
    addresses = [urldefrag(link.evaluate("it => it.href"))[0] for link in results.all()]
    assert home + expected in {address.partition("?")[0] for address in addresses}
    results.first.click()
    page.locator("article h1").wait_for()
    assert not page.url.startswith(f"{home}search.html")
    page.context.close()


def contrast(page: Page, selector: str) -> float:
    """Return the contrast ratio of a text to what lies behind it, as the WCAG define it."""
    front, back = page.locator(selector).first.evaluate(
        """element => {
            const rgb = color => color.match(/[\\d.]+/g).map(Number);
            const front = rgb(getComputedStyle(element).color);
            for (let behind = element; behind; behind = behind.parentElement) {
                const back = rgb(getComputedStyle(behind).backgroundColor);
                if (back.length < 4 || back[3] > 0) return [front, back];
            }
            return [front, [255, 255, 255]];
        }"""
    )
    bright = [
        sum(
            share * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for share, c in zip((0.2126, 0.7152, 0.0722), (x / 255 for x in color), strict=False)
        )
        for color in (front, back)
    ]
    return (max(bright) + 0.05) / (min(bright) + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_code_and_lit_lines_can_be_read(dark: bool, browser: Browser, home: str) -> None:
    page = opened(browser, DESKTOP, dark=dark)
    page.goto(f"{home}switch.html")
    for selector in ("article p", "article pre", "article a.reference", "article .hll .n"):
        assert contrast(page, selector) >= 4.5, selector
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lit = page.locator(".hll").first.evaluate("it => getComputedStyle(it).backgroundColor")
    block = page.locator("pre").first.evaluate("it => getComputedStyle(it).backgroundColor")
    assert lit not in (ground, block)
    names = page.locator("article .nn").first
    assert names.evaluate("it => getComputedStyle(it).textDecorationLine") == "none"
    page.context.close()


def test_copy_button_takes_the_code_without_its_prompts(browser: Browser, home: str) -> None:
    page = opened(browser, DESKTOP)
    page.goto(f"{home}weights_and_regions.html")
    block = page.locator("div.highlight", has_text=">>> from balanced_sam import TargetBins").first
    block.hover()
    block.locator("button.copybtn").click()
    page.locator("button.copybtn.success").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "from balanced_sam import TargetBins\n" in copied
    assert ">>>" not in copied
    page.context.close()


def test_a_fold_out_shows_its_table_within_the_page(browser: Browser, home: str) -> None:
    page = opened(browser, PHONE)
    page.goto(f"{home}results.html")
    fold = page.locator("details", has_text="All exponents").first
    table = fold.locator("table")
    assert not table.is_visible()
    fold.locator("summary").click()
    assert table.is_visible()
    assert page.evaluate(TOO_WIDE) <= 0
    page.context.close()
