"""Spellings of URLs mean the same as for kombu, which has them from urllib; and more of them mean something."""

from __future__ import annotations

import importlib

import pytest

from kombulite import Connection
from tests.oracle.test_programs_against_kombu import outcome

URLS = [
    "AMQP://Guest:Secret@HOST:5672/Shop",
    "Amqp://u:p@[::1]:5672//",
    "MEMORY://",
    "REDIS://h/1",
    "amqp://h\t/x",
    "rediss://h\n",
    "amqp://%20u:p@h/",
    "amqp://u:p@h/%2F",
    "amqp:///v",
    "amqp://:5673/v",
    "host",
    "redis://a/1;redis://b/2",
    "Redis://a/1;REDIS://b/2",
]


def parsed(library, url):
    urls = importlib.import_module(f"{library}.utils.url")
    connection = importlib.import_module(library).Connection(url)
    facts = connection.info()
    names = ("hostname", "port", "userid", "password", "virtual_host", "transport")
    return (
        urls.parse_url(url) if "://" in url and ";" not in url else None,
        urls.maybe_sanitize_url(url) if ";" not in url else None,
        [facts[name] for name in names],
        connection.as_uri(),
        connection.as_uri(include_password=True),
    )


@pytest.mark.parametrize("url", URLS)
def test_a_url_means_what_it_means_for_kombu(url):
    assert outcome(lambda: parsed("kombulite", url)) == outcome(lambda: parsed("kombu", url))


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        (" memory://a/1 ; Memory://b/2 ", ["memory://a/1", "memory://b/2"]),
        ("memory://a;", ["memory://a"]),
        (";memory://a; ;memory://b", ["memory://a", "memory://b"]),
        ([" MEMORY://a", "memory://b\n"], ["memory://a", "memory://b"]),
    ],
)
def test_blanks_and_capitals_between_several_urls(given, urls):
    connection = Connection(given)
    assert connection.alt == urls
    assert (connection.transport_cls, connection.hostname) == ("memory", "a")
    connection.maybe_switch_next()
    assert connection.hostname == ("b" if len(urls) > 1 else "a")


@pytest.mark.parametrize("transport", ["MEMORY", " memory ", "Memory"])
def test_a_transport_in_capitals(transport):
    connection = Connection(transport=transport)
    assert connection.transport_cls == "memory"
    assert connection.transport.driver_type == "memory"


def test_blanks_around_one_url_and_a_prefix_in_capitals():
    assert Connection(" redis://h/1 ").virtual_host == "1"
    assert Connection("REDIS+SOCKET:///tmp/redis.sock").hostname == "/tmp/redis.sock"
