"""Celery where its processes are not forked from a worker: spawned ones, and those of pytest with Celery's fixtures."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.celery.fleet import LIBRARIES, TIMEOUT, Process

APPLICATION = """
import json
from celery import Celery

settings = json.load(open("settings.json"))
app = Celery("application", broker="filesystem://", backend="file://" + settings.pop("results"))
app.conf.update(
    broker_transport_options=settings,
    worker_pool_start_method="spawn",
    worker_concurrency=1,
    worker_hijack_root_logger=False,
)

@app.task
def add(a, b):
    import kombu
    return [a + b, kombu.__name__]
"""

FIXTURES = """
import pytest

@pytest.fixture(scope="session")
def celery_config():
    return {"broker_url": "memory://", "result_backend": "cache+memory://"}

def test_an_application(celery_app):
    @celery_app.task
    def add(a, b):
        return a + b
    assert add.apply((1, 2)).get() == 3

def test_a_worker(celery_app, celery_worker):
    import kombu
    assert kombu.__name__ == "kombulite"
    @celery_app.task
    def multiply(a, b):
        return a * b
    celery_worker.reload()
    assert multiply.delay(4, 4).get(timeout=20) == 16

def test_a_worker_of_the_session(celery_session_app, celery_session_worker):
    @celery_session_app.task
    def subtract(a, b):
        return a - b
    celery_session_worker.reload()
    assert subtract.delay(4, 1).get(timeout=20) == 3
"""


@pytest.mark.soak
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_spawned_child_has_the_library_of_its_worker(tmp_path, library):
    (tmp_path / "application.py").write_text(APPLICATION)
    folders = {name: str(tmp_path / name) for name in ("results", "messages", "control")}
    for folder in folders.values():
        os.mkdir(folder)
    settings = {"results": folders["results"], "control_folder": folders["control"]}
    settings |= dict.fromkeys(("data_folder_in", "data_folder_out"), folders["messages"])
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    here = ["-c", "import sys; sys.path.insert(0, '.'); from celery.__main__ import main; main()"]
    worker = Process(library, {}, tmp_path / "worker.log", *here, "-A", "application", "worker", "-P", "prefork")
    caller = "import sys; sys.path.insert(0, '.'); from application import add; print(add.delay(1, 2).get(timeout=50))"
    try:
        asked = Process(library, {}, tmp_path / "caller.log", "-c", caller)
        assert asked.wait(TIMEOUT) == 0
    finally:
        worker.kill()
    assert (tmp_path / "caller.log").read_text().splitlines()[-1] == f"[3, '{library}']"


@pytest.mark.soak
def test_the_pytest_fixtures_of_celery_work(tmp_path):
    (tmp_path / "test_fixtures.py").write_text(FIXTURES)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "celery.contrib.pytest"]
    done = subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "KOMBULITE_AS_KOMBU": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
