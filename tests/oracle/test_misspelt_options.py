"""Options that are misspelt are errors; what kombu knows, for whatever transport, is none."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import amqp
import kombu
import kombu.transport.redis
import pytest
import redis

from kombulite import Connection
from kombulite.brokers.amqp.connector import OPTIONS as AMQP_OPTIONS
from kombulite.brokers.filesystem.folders import OPTIONS as FILESYSTEM_OPTIONS
from kombulite.brokers.options import ALL_NAMES, CONNECT_OPTIONS
from kombulite.brokers.redis.options import Options as RedisOptions
from kombulite.brokers.sql.transport import OPTIONS as SQL_OPTIONS

OWN = {
    "redis": sorted({*RedisOptions._fields, *CONNECT_OPTIONS}),
    "amqp": sorted({*AMQP_OPTIONS, *CONNECT_OPTIONS}),
    "filesystem": sorted({*FILESYSTEM_OPTIONS, *CONNECT_OPTIONS}),
}
LOOKED_UP = re.compile(r"options(?:\.get\(|\.pop\(|\[)\s*['\"](\w+)['\"]")


def names_that_kombu_knows():
    names = {
        *kombu.transport.redis.Channel.from_transport_options,
        *inspect.signature(amqp.Connection).parameters,
        *inspect.signature(redis.connection.AbstractConnection).parameters,
        *inspect.signature(redis.connection.Connection).parameters,
    }
    for source in Path(kombu.__file__).parent.rglob("*.py"):
        names.update(LOOKED_UP.findall(source.read_text()))
    return sorted(names)


@pytest.mark.parametrize("transport", OWN)
def test_what_kombu_knows_for_any_transport_is_taken(transport, caplog):
    names = names_that_kombu_knows()
    assert {"visibility_timeout", "queue_name_prefix", "kafka_common_config", "data_folder_in"} <= set(names)
    options = {name: None for name in [*names, *ALL_NAMES] if name not in FILESYSTEM_OPTIONS}
    assert Connection(f"{transport}://", transport_options=options).transport
    assert "ignored" not in caplog.text


def test_all_names_are_all_names():
    own = {*SQL_OPTIONS, *(name for names in OWN.values() for name in names)}
    assert {*names_that_kombu_knows(), *own} <= ALL_NAMES


@pytest.mark.parametrize("transport", [*OWN, "memory", "sqlite", "postgresql"])
def test_a_name_that_no_transport_has_is_warned_of_once(transport, caplog, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.options._reported", set())
    for _ in range(2):
        url = "sqlite:///messages.db" if transport == "sqlite" else f"{transport}://"
        assert Connection(url, transport_options={"nobody_has_it": 1}).transport
    assert caplog.text.count("'nobody_has_it'") == 1


def test_a_misspelt_option_of_sentinels_is_named_with_the_closest():
    options = {"master_name": "m", "sentinel_kwargs": {"passwort": "secret"}}
    with pytest.raises(ValueError, match="'passwort' in sentinel_kwargs; did you mean 'password'") as caught:
        Connection("sentinel://localhost:1", transport_options=options).connect()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("transport", "option"), [(kind, name) for kind in OWN for name in OWN[kind] if len(name) > 6])
def test_a_misspelt_transport_option_is_named_with_the_closest(transport, option):
    middle = len(option) // 2
    misspelt = option[:middle] + option[middle + 1 :]
    with pytest.raises(ValueError, match=f"'{misspelt}'; did you mean '{option}'"):
        Connection(f"{transport}://", transport_options={misspelt: None}).transport  # noqa: B018


@pytest.mark.parametrize("url", ["amqps://localhost:1", "rediss://localhost:1"])
@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("certfil", "certfile"),
        ("ssl_certfil", "ssl_certfile"),
        ("ca_cert", "ca_certs"),
        ("ssl_check_host", "ssl_check_hostname"),
    ],
)
def test_a_misspelt_tls_setting_is_named_with_the_closest(url, misspelt, meant):
    with pytest.raises(ValueError, match=f"'{misspelt}' in ssl; did you mean '{meant}'"):
        Connection(url, ssl={misspelt: "client.pem"}).connect()


def test_an_unknown_key_of_a_url_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"heartbaet.*heartbeat"):
        Connection("amqp://localhost/?heartbaet=10")
