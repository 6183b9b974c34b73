"""Celery on genuine kombu and Celery on kombulite share one broker, and do not notice."""

from __future__ import annotations

import threading

import pytest

from tests.celery.fleet import LIBRARIES, settle
from tests.celery.test_lifecycle import BOTH_BROKERS, COLLECT, SEND

OTHER = dict(zip(LIBRARIES, reversed(LIBRARIES)))

#: Those of `make test`; the others are soaked.
SHORT = ["delay_and_errors", "serializers_compression_headers", "events", "priorities", "chords"]
LONG = ["many", "countdown_and_eta", "routes", "retries_with_backoff", "groups_and_chains", "revoke"]


@pytest.mark.parametrize(
    ("library", "scenarios"),
    [
        pytest.param("kombulite", SHORT, id="kombulite"),
        pytest.param("kombulite", LONG, id="kombulite-long", marks=pytest.mark.soak),
        pytest.param("kombu", SHORT + LONG, id="kombu", marks=pytest.mark.soak),
    ],
)
@BOTH_BROKERS
def test_each_works_for_the_other(fleet, library, scenarios):
    fleet.worker(OTHER[library], "prefork", "-E")
    client = fleet.client(library)
    troubles = {scenario: trouble for scenario in scenarios if (trouble := client.run(scenario)) is not None}
    assert not troubles, "\n".join([*troubles.values(), fleet.logs()])


@pytest.mark.parametrize("library", [pytest.param("kombu", marks=pytest.mark.soak), "kombulite"])
@BOTH_BROKERS
def test_remote_control_and_broadcasts_reach_both(fleet, library):
    for each in LIBRARIES:
        fleet.worker(each, "prefork", "-E", name=each)
    client = fleet.client(library, workers=2)
    scenarios = ["remote_control", "broadcast"]
    if library == "kombu" and fleet.broker.startswith("redis"):
        scenarios.remove("broadcast")  # genuine kombu's workers do not hear it
    troubles = {name: trouble for name in scenarios if (trouble := client.run(name)) is not None}
    assert not troubles, "\n".join([*troubles.values(), fleet.logs()])


@pytest.mark.parametrize("library", [pytest.param("kombu", marks=pytest.mark.soak), "kombulite"])
@BOTH_BROKERS
def test_what_one_left_unacknowledged_the_other_takes_over(fleet, library):
    fleet.environment["SHOP_LEASE"] = "3"  # seconds, with Redis; RabbitMQ knows at once
    worker = fleet.worker(library, name="first")
    fleet.run(library, SEND.format(count=20, seconds=0.2))
    fleet.wait_for_log(worker, "received", 4)
    worker.kill()
    if fleet.broker.startswith("redis"):
        settle(4)  # genuine kombu looks for leases that have ended when it starts
    fleet.worker(OTHER[library], name="heir")
    fleet.run(OTHER[library], COLLECT.format(count=20))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_fleets_on_one_cluster_one_for_each_layout_mix_nothing(make_fleet):
    """All names are the same in both; tasks, remote control and events of each are its own."""
    fleets = [make_fleet(kind) for kind in ("cluster", "cluster-tagged")]
    for fleet in fleets:
        fleet.environment["SHOP_SPACE"] = fleets[0].space
        fleet.worker("kombulite", "prefork", "-E")
    clients = [fleet.client("kombulite") for fleet in fleets]
    for scenario in (
        "delay_and_errors",
        "many",
        "countdown_and_eta",
        "remote_control",
        "events",
        "_one_worker_answers",
    ):
        outcomes = ["it did not end", "it did not end"]

        def run(place, scenario=scenario, outcomes=outcomes):
            outcomes[place] = clients[place].run(scenario)

        threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert outcomes == [None, None], [fleet.logs() for fleet in fleets]
