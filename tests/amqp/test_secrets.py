"""Secrets that expire while a connection is open: OAuth 2 tokens of RabbitMQ, and challenges during the login."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import pytest

from kombulite import Connection, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.amqp import peer as p
from tests.servers import RabbitMQServer, Unavailable, wait_until

KEY = b"0123456789abcdef0123456789abcdef"
ADVANCED = """[{rabbitmq_auth_backend_oauth2, [
  {resource_server_id, <<"rabbitmq">>},
  {key_config, [{default_key, <<"key">>}, {signing_keys, #{<<"key">> =>
    {map, #{<<"kty">> => <<"oct">>, <<"alg">> => <<"HS256">>, <<"k">> => <<"%s">>}}}}]}]}].
"""


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(seconds: float, *scopes: str) -> str:
    """A token that is valid for so many seconds."""
    parts = [
        {"alg": "HS256", "typ": "JWT", "kid": "key"},
        {"sub": "worker", "aud": ["rabbitmq"], "exp": int(time.time() + seconds), "scope": list(scopes or ALL)},
    ]
    signed = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{encoded(hmac.digest(KEY, signed.encode(), hashlib.sha256))}"


ALL = ("rabbitmq.configure:*/*", "rabbitmq.write:*/*", "rabbitmq.read:*/*")


class TokenServer(RabbitMQServer):
    """A RabbitMQ whose passwords are tokens."""

    def __init__(self):
        super().__init__({"auth_backends.1": "rabbit_auth_backend_oauth2"}, ("rabbitmq_auth_backend_oauth2",))

    def command(self):
        (self.folder / "advanced.config").write_text(ADVANCED % encoded(KEY))
        return super().command()

    def environment(self):
        return {**super().environment(), "RABBITMQ_ADVANCED_CONFIG_FILE": f"{self.folder}/advanced.config"}


@pytest.fixture(scope="module")
def broker(request):
    try:
        server = TokenServer()
    except Unavailable:
        request.getfixturevalue("amqp_url")  # skips, and says so
        raise
    with server:
        yield server


def dial(broker, secret, facade=Connection):
    return facade("127.0.0.1", userid="worker", password=secret, port=broker.port, transport="amqp")


def is_refused(connection, name):
    try:
        with connection.channel() as channel:
            channel.queue_declare(name, exclusive=True, durable=False)
    except exceptions.AccessRefused:
        return True
    return False


def test_a_connection_goes_on_beyond_its_first_token(broker, name):
    with dial(broker, token(3600, *ALL[:1])) as connection:
        connection.connect()
        assert is_refused(connection, name("q")) is False
        connection.update_secret(token(3600, "rabbitmq.read:*/*"), "fewer rights")
        wait_until(lambda: is_refused(connection, name("q2")), 20, "the new rights do not count")
        connection.update_secret(token(3600), "all rights")
        wait_until(lambda: not is_refused(connection, name("q3")), 20, "the new rights do not count")


def test_a_token_that_has_expired_ends_what_may_be_done(broker, name):
    with dial(broker, token(5)) as connection:
        connection.connect()
        wait_until(lambda: is_refused(connection, name("q")), 30, "the token does not expire")
        connection.update_secret(token(3600))
        wait_until(lambda: not is_refused(connection, name("q2")), 20, "the new token does not count")


def test_a_bad_secret_ends_the_connection(broker):
    with dial(broker, token(3600)) as connection:
        connection.connect()
        with pytest.raises((exceptions.AccessRefused, exceptions.ConnectionError)):
            connection.update_secret("not a token")
        assert not connection.connected


def test_tasks_may_update_the_secret(broker, name):
    async def main():
        async with dial(broker, token(3600), aio.connect) as connection:
            await connection.update_secret(token(3600), "in time")
            await connection.declare(Queue(name("q"), exclusive=True))

    run(main)


def test_transports_without_secrets_say_so():
    with Connection("memory://") as connection, pytest.raises(exceptions.AMQPNotImplementedError, match="secret"):
        connection.update_secret("x")


def test_a_challenge_is_answered(peer):
    class Own:
        mechanism = b"CHALLENGE"

        def start(self, connection):
            return b"first"

        def respond(self, challenge):
            return challenge[::-1]

    def script(session):
        assert session.read(8) == p.HEADER
        session.send(0, p.START, "ooFSS", 0, 9, p.SERVER_PROPERTIES, "CHALLENGE", "en_US")
        session.expect(p.START_OK)
        session.send(0, (10, 20), "S", "abc")
        seen.append(session.expect((10, 21)).read("S")[0])
        session.send(0, p.TUNE, "BlB", 10, 8192, 0)
        session.expect(p.TUNE_OK)
        session.expect(p.OPEN)
        session.send(0, p.OPEN_OK, "s", "")
        session.farewell()

    seen = []
    peer.play(script)
    with peer.connection(transport_options={"authentication": Own()}) as connection:
        connection.connect()
    assert seen == ["cba"]


def test_a_challenge_without_a_response_is_an_error(peer):
    def script(session):
        session.start()
        session.send(0, (10, 20), "S", "abc")
        session.silence()

    peer.play(script)
    with peer.connection() as connection, pytest.raises(exceptions.ConnectionError, match="challenge"):
        connection.connect()
