"""Names of options, checked: a misspelt one must not be ignored without a word.

kombu's users pass options of several transports in one dict, so a name that means nothing here is an error only where
it can be nothing but a misspelling: in ``ssl``, or close to the name of an option that there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import NamedTuple


class Option(NamedTuple):
    """A transport option, as the manual's table shows it; units are in the meaning."""

    default: str
    meaning: str


#: How alike two names are (0 to 1) of which one is taken for a misspelling of the other. Of all names that kombu's
#: transports know, none is as close as that to another transport's.
MISSPELT = 0.92

#: Options of all transports: how the default channel connects.
CONNECT_OPTIONS = frozenset(
    ["max_retries", "interval_start", "interval_step", "interval_max", "errback", "callback", "connect_retries_timeout"]
)

#: TLS settings that py-amqp, redis-py or kombulite know; each may have the prefix ``ssl_`` that URLs give it.
TLS_NAMES = frozenset(
    [
        *("keyfile", "certfile", "ca_certs", "ca_data", "ca_path", "cert_reqs", "password", "check_hostname"),
        *("server_hostname", "server_side", "do_handshake_on_connect", "suppress_ragged_eofs", "context", "ciphers"),
        *("ssl_version", "version", "min_version", "tls_minimum_version", "tls_maximum_version"),
        *("include_verify_flags", "exclude_verify_flags"),
        *("validate_ocsp", "validate_ocsp_stapled", "ocsp_context", "ocsp_expected_cert"),
    ]
)


def check_transport_options(given: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError for a transport option that is close to a known one, but is not known."""
    known = {*known, *CONNECT_OPTIONS}
    for name in given:
        if name not in known and (close := get_close_matches(name, known, 1, MISSPELT)):
            raise ValueError(f"unknown transport option {name!r}; did you mean {close[0]!r}?")


def check_tls_settings(given: Iterable[str]) -> None:
    """Raise ValueError for a TLS setting that is not known."""
    for name in given:
        if name.removeprefix("ssl_") not in TLS_NAMES and name not in TLS_NAMES:
            prefix = "ssl_" if name.startswith("ssl_") else ""
            close = get_close_matches(name.removeprefix("ssl_"), TLS_NAMES, 1, 0)
            raise ValueError(f"unknown TLS setting {name!r} in ssl; did you mean {prefix + close[0]!r}?")
