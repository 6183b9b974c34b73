"""The database's clock jumps: leases and delays are dated by it, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from tests.clock import Clock
from tests.conftest import missing
from tests.servers import PostgreSQLServer, Unavailable
from tests.sql.fleet import Fleet

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

HOUR = 3600


class Server(PostgreSQLServer):
    """A PostgreSQL with a clock of its own."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def environment(self):
        return self._clock.environment


class Place:
    """Tables of a test."""

    def __init__(self, url):
        self.url, self.prefix = url, f"j{uuid4().hex[:8]}_"


@pytest.fixture(scope="module")
def clock(request):
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server is another user's
        try:
            yield Clock(folder)
        except Unavailable as error:
            missing(request, str(error))


@pytest.fixture(scope="module")
def server(request, clock):
    request.getfixturevalue("postgresql_url")  # skips where there is none
    with Server(clock) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request, clock, tmp_path):
    """Processes of which the database's clock can be moved: on SQLite it is theirs."""
    clock.move(0)
    if request.param == "sqlite":
        fleet = Fleet(Place(f"sqlite:///{tmp_path}/messages.db"), tmp_path, clock.environment)
    else:
        fleet = Fleet(Place(request.getfixturevalue("server").url), tmp_path)
    yield fleet
    fleet.close()


def test_jump_ahead_brings_messages_in_work_again_and_loses_none(fleet, clock):
    fleet.publish(200)
    first = fleet.start("consume", "first", 60, 0)
    fleet.wait_for("consume", "first", 40)
    second = fleet.start("consume", "second", 60, 0)
    clock.move(HOUR)
    fleet.wait_for("consume", "*", 120)
    first.kill()
    second.kill()
    fleet.finish()
    consumed = fleet.numbers("consume")
    assert set(consumed) == set(range(200))
    assert len(consumed) <= 200 + 4 * 100  # what two consumers had, once at the jump and once when they were killed


def test_messages_of_a_killed_consumer_come_back_in_a_lease_though_the_clock_jumps_back(fleet, clock):
    clock.move(HOUR)
    fleet.publish(60)
    holder = fleet.start("hold", "first", 60, 0)
    fleet.wait_for("hold", "first", 10)
    holder.kill()
    holder.wait(20)
    clock.move(0)
    fleet.finish()
    assert sorted(fleet.numbers("consume")) == list(range(60))
