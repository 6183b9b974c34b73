"""Names of options, checked: a misspelt one must not be ignored without a word.

kombu's users pass options of several transports in one dict, so a name that means nothing here is an error only where
it can be nothing but a misspelling: in ``ssl``, or close to the name of an option that there is. A name that no
transport has at all is warned of, once: it may be that of a subclass of the application's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from inspect import signature
from logging import getLogger
from typing import Any, NamedTuple

logger = getLogger("kombulite.brokers")


class Option(NamedTuple):
    """A transport option, as the manual's table shows it; units are in the meaning."""

    default: str
    meaning: str


def as_number(name: str, value: Any) -> float:
    """Return the value of an option as a number. Raises ValueError, which names the option, for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r:.80}") from None


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


#: Transport options of any transport, of kombulite's and of kombu's 5.7. They mean nothing to the others, and may be
#: there.
ALL_NAMES = frozenset(
    [
        *("ack_deadline_seconds", "ack_emulation", "ack_modify_batch_size", "authentication", "auto_delete"),
        *("auto_start_request", "binding_key", "body_encoding", "bulk_max_messages", "callback", "channel_max"),
        *(
            "client_name",
            "client_properties",
            "cluster",
            "command_packer",
            "confirm_publish",
            "conn_string",
            "connect_args",
        ),
        *("connect_retries_timeout", "connect_timeout", "connection_name", "connection_wait_time_seconds"),
        *("control_folder", "create_tables", "credential_provider", "data_folder_in", "data_folder_out", "db"),
        *("deadletter_queue", "decode_responses", "delivery_mode", "driver_info", "durable"),
        *("enable_exactly_once_delivery", "encoding", "encoding_errors", "errback", "event_dispatcher", "exchange"),
        *("exchange_arguments", "exchange_auto_delete", "exchange_durable", "exchange_type", "expiration_seconds"),
        *("fanout_patterns", "fanout_prefix", "fetch_message_attributes", "fifo_mode", "frame_handler", "frame_max"),
        *(
            "frame_writer",
            "fsync",
            "global_keyprefix",
            "hash_tag",
            "health_check_interval",
            "heartbeat",
            "heartbeat_thread",
        ),
        *("himport_registry", "host", "init_extension", "interval_max", "interval_start", "interval_step"),
        *("is_secure", "kafka_admin_config", "kafka_common_config", "kafka_consumer_config", "kafka_producer_config"),
        *("kwargs", "lease", "legacy_responses", "lib_name", "lib_version", "locale", "login_method"),
        *("login_response", "maint_notifications_config", "maint_notifications_pool_handler"),
        *("maintenance_notification_hash", "maintenance_state", "master_name", "max_connections"),
        *("max_lock_renewal_duration", "max_poll_seconds", "max_retries", "message_tablename", "min_other_sentinels"),
        *("notify_throttle_interval_ms", "num_partitions", "on_blocked", "on_open", "on_tune_ok", "on_unblocked"),
        *("orig_host_address", "orig_socket_connect_timeout", "orig_socket_timeout"),
        *("oss_cluster_maint_notifications_handler", "parser_class", "password", "peek_lock_seconds"),
        *("poll_interval_ms", "polling_interval", "pool_size", "pool_timeout", "port", "predefined_exchanges"),
        *("predefined_queues", "priority_steps", "processed_folder", "protocol", "queue_auto_delete"),
        *("queue_durable", "queue_name_prefix", "queue_order_strategy", "queue_tablename", "queue_tags"),
        *("read_timeout", "readpreference", "reauth_check_interval", "redis_connect_func", "region", "regioninfo"),
        *("replication_factor", "retry", "retry_backoff_factor", "retry_backoff_max", "retry_errors"),
        *("retry_on_error", "retry_on_timeout", "retry_timeout_seconds", "retry_total", "routing_key"),
        *("sasl_mechanism", "sasl_mechanisms", "schema", "secure", "security_protocol", "sentinel_fanout_compat"),
        *("sentinel_kwargs", "sep", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"),
        *("socket_read_size", "socket_settings", "socket_timeout", "socket_type", "sqs_base64_encoding", "ssl"),
        *("ssl_certfile", "ssl_keyfile", "ssl_skip_hostname_check", "ssl_trustfile", "store_processed"),
        *("sts_role_arn", "sts_token_buffer_time", "sts_token_timeout", "supports_fanout", "synchronous"),
        *("table_prefix", "topic_config", "uamqp_keep_alive_interval", "unacked_index_key", "unacked_key"),
        *("unacked_mutex_expire", "unacked_mutex_key", "unacked_restore_interval", "unacked_restore_limit"),
        *("unacked_restore_throttle", "use_lock_renewal", "use_notify", "userid", "username", "virtual_host"),
        *("visibility_timeout", "wait_replicas", "wait_time_seconds", "write_timeout"),
    ]
)

_reported: set[str] = set()  # names that were warned of


def check_transport_options(given: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError for a transport option that is close to a known one, but is not known.

    Warns, once for each name, of an option that no transport has.
    """
    known = {*known, *CONNECT_OPTIONS}
    for name in given:
        if name in known:
            continue
        if close := get_close_matches(name, known, 1, MISSPELT):
            raise ValueError(f"unknown transport option {name!r}; did you mean {close[0]!r}?")
        if name not in ALL_NAMES and name not in _reported:
            _reported.add(name)
            logger.warning("The transport option %r is ignored: no transport has it", name)


def check_driver_options(given: Iterable[str], function: Callable[..., object], where: str) -> None:
    """Raise ValueError for an option that a function of a driver does not take; ``where``: the dictionary it is in."""
    known = [name for name in signature(function).parameters if name not in ("self", "args", "kwargs")]
    for name in given:
        if name not in known:
            (close,) = get_close_matches(name, known, 1, 0)
            raise ValueError(f"unknown option {name!r} in {where}; did you mean {close!r}?")


def check_tls_settings(given: Iterable[str]) -> None:
    """Raise ValueError for a TLS setting that is not known."""
    for name in given:
        if name.removeprefix("ssl_") not in TLS_NAMES and name not in TLS_NAMES:
            prefix = "ssl_" if name.startswith("ssl_") else ""
            close = get_close_matches(name.removeprefix("ssl_"), TLS_NAMES, 1, 0)
            raise ValueError(f"unknown TLS setting {name!r} in ssl; did you mean {prefix + close[0]!r}?")
