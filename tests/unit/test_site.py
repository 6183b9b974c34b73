"""The built manual: no broken link, each snippet in its page, and each page fits a phone."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from inspect import getdoc
from pathlib import Path

import pytest

from kombulite.messaging import Producer
from tests.unit.test_docstrings import ENTRIES, documented, examples_of, resolve

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(?:python|pycon|py|console|text)\b.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TAG = re.compile(r"<[^>]+>")
EDIT_URL = "https://git.example.org/kombulite/edit/main/docs/"
CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.timeout(900)  # seconds: the first test builds the site, which took 135 where many others work


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is of the extra `docs`, which the matrix of Pythons does without")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DOCS_EDIT_URL": EDIT_URL}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def address(page):
    """Where a page is on the site."""
    path = page.relative_to(ROOT / "docs").with_suffix("")
    return "" if path.name == "index" else f"{path}/"


def test_each_snippet_is_in_the_built_page(site):
    for page in PAGES:
        text = html.unescape(TAG.sub("", (site / address(page) / "index.html").read_text()))
        for block in BLOCK.findall(page.read_text()):
            if "--8<--" not in block:
                assert block.strip() in text, page


def test_each_page_links_to_where_it_is_edited(site):
    for page in PAGES:
        built = (site / address(page) / "index.html").read_text()
        assert f'href="{EDIT_URL}{page.relative_to(ROOT / "docs")}"' in built


def test_reference_has_the_docstrings(site):
    page = (site / "api/messaging/index.html").read_text()
    assert "kombulite.messaging.Producer.publish" in page
    assert getdoc(Producer.publish).partition("\n")[0] in html.unescape(TAG.sub("", page))


def test_examples_of_docstrings_are_shown_as_code(site):
    shown = 0
    for path, page in ENTRIES.items():
        blocks = re.findall(r"<pre.*?</pre>", (site / f"api/{page}/index.html").read_text(), re.DOTALL)
        code = "\n".join(html.unescape(TAG.sub("", block)) for block in blocks)
        for name, member in documented(resolve(path)):
            for example in examples_of(member):
                assert example in code, name
                shown += 1
    assert shown >= 9


def test_trees_keep_their_lines(site):
    pages = list(site.rglob("index.html"))
    assert any("├──" in page.read_text() for page in pages)
    for page in pages:
        assert "├──" not in re.sub(r"<pre.*?</pre>", "", page.read_text(), flags=re.DOTALL), page


def test_no_table_has_swallowed_a_list(site):
    for page in site.rglob("index.html"):
        assert re.findall(r"<td[^>]*>\s*(?:[-*] .*)", page.read_text()) == [], page


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def home(site):
    """Where the site is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def view():
    """A page of a browser as wide as a phone."""
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 390, "height": 800})
        browser.close()


def test_each_page_fits_a_phone(home, view, tmp_path):
    problems = {}
    errors = []
    view.on("pageerror", lambda error: errors.append(str(error)))
    for page in PAGES:
        view.goto(f"{home}/{address(page)}", wait_until="load")
        if not view.evaluate("document.documentElement.scrollWidth <= innerWidth"):
            errors.append("wider than the screen")
        if errors:
            problems[address(page)] = list(errors)
            errors.clear()
        view.screenshot(path=tmp_path / f"{address(page).replace('/', '-')}.png")
    assert problems == {}


LABELS_IN_BOXES = """() => [...document.querySelectorAll(".picture svg")].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll("rect")].map((rect) => rect.getBBox());
  return [...svg.querySelectorAll("text[stroke]")].filter((label) => {
    const text = label.getBBox();
    return boxes.some((box) => text.x < box.x + box.width && box.x < text.x + text.width
      && text.y < box.y + box.height && box.y < text.y + text.height);
  }).map((label) => label.textContent);
})"""


def test_labels_of_diagrams_lie_beside_the_boxes(home, view):
    pictures = 0
    for page in PAGES:
        if "<!-- picture:" in page.read_text():
            view.goto(f"{home}/{address(page)}", wait_until="load")
            assert view.evaluate(LABELS_IN_BOXES) == [], page
            pictures += view.locator(".picture svg").count()
    assert pictures >= 3


def test_search_finds_the_page_of_an_option(home, view):
    view.set_viewport_size({"width": 1280, "height": 800})
    view.goto(home, wait_until="load")
    view.get_by_role("textbox", name="Search").click()
    view.keyboard.type("confirm_publish")
    found = view.locator(".md-search-result__item a").first
    found.wait_for()
    assert "confirm_publish" in found.inner_text()
    view.goto(found.evaluate("link => link.href"), wait_until="load")
    assert "confirm_publish" in view.locator("article").inner_text()


def test_a_snippet_is_copied_as_it_is(home, view):
    view.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.goto(home, wait_until="load")
    view.locator(".highlight").first.hover()
    view.locator("button[title='Copy to clipboard']").first.click()
    first = BLOCK.findall((ROOT / "docs" / "index.md").read_text())[0]
    view.wait_for_function("async (text) => (await navigator.clipboard.readText()).trim() === text", arg=first.strip())


def test_commands_are_copied_without_prompts_and_output(home, view):
    view.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.goto(f"{home}/tutorials/moving-a-queue/", wait_until="load")
    view.locator(".highlight", has_text="3 published").locator("button[title='Copy to clipboard']").click()
    commands = [
        "kombulite publish --broker sqlite:///old.db -q jobs --declare one two three",
        "kombulite move --broker sqlite:///old.db jobs --to-broker sqlite:///new.db jobs --declare",
    ]
    lines = "(await navigator.clipboard.readText()).split('\\n').filter(line => line.trim())"
    view.wait_for_function(f"async (text) => {lines}.join('|') === text", arg="|".join(commands))
