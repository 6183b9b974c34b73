"""``kombulite web``: who gets in, what is shown, what may be changed; and the page in a browser."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from starlette.testclient import TestClient

from kombulite import Connection, Queue
from kombulite.cli.monitor import BrokerReading, Monitor, QueueReading, StatusSource
from kombulite.cli.web.app import create_app
from kombulite.cli.web.history import History

pytest_plugins = ["kombulite_pytest"]
TOKEN = "sesame"
ALLOWED = {"authorization": f"Bearer {TOKEN}"}
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def shop(kombulite_url):
    with Connection(kombulite_url) as connection:
        connection.Producer().publish_many(range(3), routing_key="orders", declare=[Queue("orders"), Queue("failed")])
        yield connection


@pytest.fixture
def visit(shop, kombulite_url):
    """Makes clients of the page."""
    clients = []

    def visit(may_change=False, host="localhost"):
        monitor = Monitor([StatusSource(kombulite_url, {}), StatusSource("amqp://guest:secret@127.0.0.1:1//", {})])
        app = create_app(
            [kombulite_url], {}, monitor, token=TOKEN, interval=0.01, hosts=["localhost"], may_change=may_change
        )
        client = TestClient(app, base_url=f"http://{host}")
        clients.append(client.__enter__())
        return clients[-1]

    yield visit
    for client in clients:
        client.__exit__(None, None, None)


def read(client):
    """Return the brokers, once they were read."""
    while not (brokers := client.get("/api/queues", headers=ALLOWED).json()["brokers"]):
        pass
    return brokers


@pytest.mark.parametrize("path", ["/", "/app.js", "/app.css", "/api/queues", "/metrics", "/?token=wrong"])
def test_nothing_is_shown_without_the_token(visit, path):
    client = visit()
    answer = client.get(path)
    assert answer.status_code == 401
    assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert TOKEN not in answer.text


def test_first_visit_leaves_the_token_in_a_cookie(visit):
    client = visit()
    answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")


def test_other_host_names_do_not_lead_here(visit):
    assert visit(host="evil.example").get("/", headers=ALLOWED).status_code == 400


def test_queues_and_their_history(visit):
    here, down = read(visit())
    assert {queue["queue"]: queue["ready"] for queue in here["queues"]} == {"orders": 3, "failed": 0}
    assert here["queues"][1]["history"][-1] == 3
    assert down["error"]
    assert "secret" not in str(down)


def test_metrics(visit, kombulite_url):
    client = visit()
    read(client)
    text = client.get("/metrics", headers=ALLOWED).text
    assert re.search(r'kombulite_queue_ready\{broker="memory://[^"]*",queue="orders"\} 3.0', text)
    assert re.search(r'kombulite_broker_up\{broker="amqp://[^"]*"\} 0.0', text)
    assert "secret" not in text


@pytest.mark.parametrize("what", ["tail", "purge", "move"])
def test_nothing_is_changed_unless_allowed(visit, shop, what):
    body = {"broker": 0, "queue": "orders", "confirm": "orders", "target": "failed"}
    assert visit().post(f"/api/{what}", json=body, headers=ALLOWED).status_code == 404
    client = visit(may_change=True)
    assert client.post(f"/api/{what}", json=body).status_code == 401
    assert client.post(f"/api/{what}", content=b"{}", headers=ALLOWED).status_code == 415
    assert Queue("orders")(shop).queue_declare(passive=True).message_count == 3


@pytest.mark.parametrize(
    "body",
    [
        {"broker": 0, "queue": "orders", "target": "failed"},
        {"broker": 0, "queue": "orders", "confirm": "failed", "target": "failed"},
        {"broker": 7, "queue": "orders", "confirm": "orders", "target": "failed"},
        {"broker": "x", "queue": "orders", "confirm": "orders", "target": "failed"},
        {"broker": -1, "queue": "orders", "confirm": "orders", "target": "failed"},
        {"broker": 0, "queue": ["orders"], "confirm": ["orders"], "target": "failed"},
        {"broker": 0, "queue": "orders", "confirm": "orders", "target": "orders"},
        [],
        "x" * 100_000,
    ],
)
def test_what_is_not_understood_changes_nothing(visit, shop, body):
    answer = visit(may_change=True).post("/api/move", json=body, headers=ALLOWED)
    assert answer.status_code in (400, 413)
    assert Queue("orders")(shop).queue_declare(passive=True).message_count == 3


def test_body_that_is_nested_too_deeply_is_not_understood(visit):
    headers = {**ALLOWED, "content-type": "application/json"}
    assert visit(may_change=True).post("/api/tail", content=b"[" * 60_000, headers=headers).status_code == 400


def test_tail_move_and_purge(visit, shop):
    client = visit(may_change=True)

    def post(what, **body):
        return client.post(f"/api/{what}", json={"broker": 0, **body}, headers=ALLOWED)

    tail = post("tail", queue="orders", count=2).json()["messages"]
    assert [message["body"] for message in tail] == [0, 1]
    assert post("move", queue="orders", confirm="orders", target="failed").json() == {"moved": 3}
    assert post("move", queue="orders", confirm="orders", target="missing").status_code == 502
    assert post("purge", queue="failed", confirm="failed").json() == {"purged": 3}
    assert post("tail", queue="failed").json() == {"messages": []}


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    """A page over a SQLite file, served by the command, and its address."""
    url = f"sqlite:///{tmp_path}/queue.db"
    with Connection(url) as connection:
        queues = [Queue("orders"), Queue("<b>failed</b>")]
        connection.Producer().publish_many(range(3), routing_key="orders", declare=queues)
    command = [sys.executable, "-m", "kombulite", "web", url, "--port", "0", "--interval", "0.1", "--allow-changes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    yield process.stdout.readline().strip(), url
    process.terminate()
    process.wait(20)
    process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such address")
def test_address_that_is_printed_lets_in_and_ctrl_c_ends_it(kombulite_url, interruptible):
    command = [sys.executable, "-m", "kombulite", "web", kombulite_url, "--host", "127.0.0.2", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        address = process.stdout.readline().strip()
        with build_opener(HTTPCookieProcessor()).open(address, timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_page_in_a_browser(served, width, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    address, url = served
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda entry: problems.append(entry.text) if entry.type == "error" else None)
        page.goto(address)
        assert "token" not in page.url
        row = page.locator("tbody tr", has_text="orders")
        expect(row.locator("td").nth(1)).to_have_text("3", timeout=30_000)
        expect(page.get_by_text("<b>failed</b>")).to_be_visible()  # a name is text, never markup
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        row.get_by_role("button", name="messages").click()
        expect(page.locator("#messages li")).to_have_count(3)
        expect(page.locator("#messages h2")).to_be_in_viewport()
        page.get_by_role("button", name="Close").click()
        row.get_by_role("button", name="purge").click()
        expect(page.get_by_role("button", name="Go on")).to_be_disabled()
        page.locator("#name").fill("orders")
        page.get_by_role("button", name="Go on").click()
        expect(row.locator("td").nth(1)).to_have_text("0", timeout=30_000)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert problems == []
    with Connection(url) as connection:
        assert Queue("orders")(connection).queue_declare(passive=True).message_count == 0


# --- the history


def reading(queues, ready=1):
    return [BrokerReading("memory://", [QueueReading(f"q{number}", ready, 0, 0) for number in range(queues)], None)]


@pytest.mark.parametrize(("queues", "kept"), [(1, 300), (100, 10), (2000, 1)])
def test_history_is_the_shorter_the_more_queues_there_are(monkeypatch, queues, kept):
    monkeypatch.setattr("kombulite.cli.web.history.MAX_POINTS", 1000)
    history = History(Monitor([]), 1)
    for when in range(310):
        history.add(reading(queues, when), when)
    shown = history.as_dict()
    assert shown["times"] == list(range(310 - kept, 310))
    assert [len(queue["history"]) for queue in shown["brokers"][0]["queues"]] == [kept] * queues
    assert shown["brokers"][0]["queues"][0]["history"][-1] == 309


def test_history_that_is_cancelled_ends_after_its_reading():
    is_reading, may_end, ended = threading.Event(), threading.Event(), []

    class SlowMonitor:
        def read(self):
            is_reading.set()
            assert may_end.wait(20)
            ended.append("reading")
            return []

    async def cancel():
        running = asyncio.create_task(History(SlowMonitor(), 0).run())
        await asyncio.to_thread(is_reading.wait, 20)
        running.cancel()
        await asyncio.sleep(0)
        assert not running.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        ended.append("run")

    asyncio.run(cancel())
    assert ended == ["reading", "run"]
