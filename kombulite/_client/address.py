"""Where a broker is, and how to reach it: what URLs and keywords say together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any, TypedDict

from kombulite.brokers import Scheme, check_scheme, is_native, native_scheme, resolve_transport
from kombulite.brokers.base import Settings
from kombulite.transport import TRANSPORT_ALIASES
from kombulite.utils.collections import HashedSeq
from kombulite.utils.imports import symbol_by_name
from kombulite.utils.url import (
    as_url,
    maybe_sanitize_url,
    normalize_scheme,
    parse_url,
    quote_path,
    safequote,
    url_to_parts,
)

DEFAULT_SCHEME = "amqp"

#: What a URL may say in its query, besides ``ssl_*``.
URL_OPTIONS = frozenset(["connect_timeout", "heartbeat", "login_method", "ssl", "credential_provider", "insist"])
#: Transport options that say how often the default channel tries to connect.
CONNECT_RETRY_OPTIONS = ("max_retries", "interval_start", "interval_step", "interval_max", "errback", "callback")

URL_PARTS = frozenset(["hostname", "port", "userid", "password", "virtual_host"])


def _shuffled(urls: Iterable[str]) -> Iterator[str]:
    from random import shuffle  # few ask for it, and it costs as much as all of this module

    choices = list(urls)
    while True:
        shuffle(choices)
        yield from choices


FAILOVER_STRATEGIES: dict[str, Callable[[Iterable[str]], Iterator[str]]] = {"round-robin": cycle, "shuffle": _shuffled}

DEFAULT_FAILOVER_STRATEGY = "round-robin"


def _urls_of(urls: Iterable[str]) -> list[str]:
    """Return the URLs without blanks around them, and without the empty one that a trailing ``;`` leaves."""
    return [normalize_scheme(url) for url in urls if url.strip()]


def _is_scheme(transport: str) -> bool:
    """Whether a transport is named by its scheme, and not by the path of its class."""
    return "." not in transport and ":" not in transport


def _pop_parameters(transport: Any, parsed: dict[str, Any], url: str) -> dict[str, Any]:
    """Take what is no option of kombu's from a parsed URL, as the transport option that has it. Raises ValueError."""
    others = parsed.keys() - URL_OPTIONS - URL_PARTS
    native = native_scheme(transport) if isinstance(transport, str) and _is_scheme(transport) else None
    if native is not None and native.query_option is not None:
        return {native.query_option: {name: parsed.pop(name) for name in others}}
    for name in others:
        raise ValueError(
            f"unknown option {name!r} in {maybe_sanitize_url(url)!r}; "
            f"known ones: {', '.join(sorted(URL_OPTIONS))}, ssl_*"
        )
    return {}


def _merged(url_options: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a URL with those that were given over them, also within an option that is a dict."""
    if not url_options:
        return given
    merged = {**url_options, **given}
    for name, value in url_options.items():
        if isinstance(value, dict):
            merged[name] = {**value, **(given.get(name) or {})}
    return merged


def _is_known(scheme: str) -> bool:
    """Return whether there is such a transport."""
    return scheme in TRANSPORT_ALIASES or (_is_scheme(scheme) and native_scheme(scheme) is not None)


def _seconds(name: str, value: Any, is_float: bool = False) -> float | None:
    """Return a number of seconds; an integer stays one, unless ``is_float`` and it is not 0. Raises ValueError."""
    try:
        return value if value is None or (type(value) is int and not (is_float and value)) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a number of seconds, not {value!r:.80}") from None


def _alias_and_rest(url: str) -> tuple[str, str | None]:
    """Return the name of a URL's transport, and what is behind the ``+`` of ``name+rest``, if it has one."""
    scheme, _, rest = url.partition("://")
    name, plus, inner = scheme.partition("+")
    if not plus or scheme in TRANSPORT_ALIASES:
        return scheme, None
    return name, f"{inner}://{rest}"


def _takes_whole_url(transport: Any) -> bool:
    """Return whether a transport wants URLs as they are."""
    if isinstance(transport, str) and _is_scheme(transport) and native_scheme(transport):
        return False
    cls = resolve_transport(transport)
    return not is_native(cls) and bool(getattr(cls, "can_parse_url", False))


def _clustered(transport: Any, in_url: Any, options: Mapping[str, Any]) -> str | None:
    """Return the scheme that the option ``cluster``, of a URL or of the transport, makes of one; None without it.

    Raises ValueError for a scheme that has no such option.
    """
    wanted = in_url if in_url is not None else options.get("cluster")
    if str(wanted).lower() in ("none", "false", "0", ""):
        return None
    facts = native_scheme(transport) if isinstance(transport, str) and _is_scheme(transport) else None
    if facts is not None and facts.clustered is not None:
        return facts.clustered
    if in_url is not None:
        raise ValueError(f"the option 'cluster' is one of redis:// and rediss:// URLs, not of {transport!r:.80}")
    return None


class ConnectionSettings(TypedDict, total=False):
    """Settings of a connection that a URL may say too."""

    userid: str | None
    password: str | Callable[[], str] | None
    virtual_host: str | None
    port: int | None
    insist: bool  #: has no effect
    ssl: Any  #: True, or a dict of TLS settings
    transport: Any
    connect_timeout: float | None  #: seconds
    login_method: str | None
    heartbeat: float | None  #: seconds
    uri_prefix: str | None
    credential_provider: Any


DEFAULT_SETTINGS: ConnectionSettings = {
    "userid": None,
    "password": None,
    "virtual_host": None,
    "port": None,
    "insist": False,
    "ssl": False,
    "transport": None,
    "connect_timeout": 5,
    "login_method": None,
    "heartbeat": 0,
    "uri_prefix": None,
    "credential_provider": None,
}


class Address:
    """One broker, or several that stand in for one another: the settings of a connection, without the connection.

    ``hostname``: a URL, several (a list, or separated by ``;``), or a host. What a URL says wins over the keywords, but
    for ``transport``. At any time the attributes are those of one URL; ``take`` takes over another.

    Raises KeyError for an unknown transport, ValueError for a URL that cannot be or has options that are not known.
    """

    def __init__(
        self,
        hostname: str | Iterable[str] | None,
        alternates: Iterable[str] | None,
        failover_strategy: str | Callable[[Iterable[str]], Iterator[str]] | None,
        transport_options: Mapping[str, Any] | None,
        given: Mapping[str, Any],
    ) -> None:
        if isinstance(hostname, str) and ";" in hostname:
            hostname = hostname.split(";")
        others = _urls_of(alternates or ())
        if isinstance(hostname, str) or hostname is None:
            first = hostname
        else:
            others = [*_urls_of(hostname), *others]
            first = others[0] if others else None
        self.alt = others
        self._failover_strategy = failover_strategy = failover_strategy or DEFAULT_FAILOVER_STRATEGY
        #: What makes an endless iterator of the URLs.
        self.failover_strategy: Any = failover_strategy
        if isinstance(failover_strategy, str):
            self.failover_strategy = FAILOVER_STRATEGIES.get(failover_strategy, failover_strategy)
        self.cycle: Iterator[str] | None = None
        for url in self.alt:  # a misspelt one shall fail here, not at the first failover
            if "://" in url:
                check_scheme(_alias_and_rest(url)[0])
        if self.alt:
            if isinstance(self.failover_strategy, str):
                raise KeyError(self.failover_strategy)
            self.cycle = self.failover_strategy(self.alt)
            next(self.cycle)  # the first is where we start
        self.transport_options: dict[str, Any] = dict(transport_options or {})
        self._given = self._of_the_first = given
        self.take(first)
        named = {name: getattr(self, name) for name in given if name != "transport"}
        #: The settings for alternates that are host names only.
        self._of_the_first = {**named, "transport": self.transport_cls}

    def take(self, url: str | None, prefers_url: bool = False) -> None:
        """Take the settings from one URL, over those of the constructor; a host name has those of the first URL.

        Args:
            url: The URL, or a host name (None: the settings that were given).
            prefers_url: If True, the URL's scheme goes over the transport that was given, if there is such a transport.
        """
        settings = dict(self._given if url is None or "://" in url else self._of_the_first)
        transport, prefix = settings["transport"], settings["uri_prefix"]
        if prefers_url and url is not None and "://" in url and _is_known(_alias_and_rest(url)[0]):
            transport = None
        if isinstance(transport, str) and _is_scheme(transport) and transport not in TRANSPORT_ALIASES:
            transport = transport.strip().lower()
        url_options: dict[str, Any] = {}
        if url is None or "://" not in url:
            settings["hostname"] = url
        else:
            url = normalize_scheme(url)
            scheme, inner = _alias_and_rest(url)
            # A misspelt one shall fail here, not at the first message.
            is_ours = (native_scheme if transport and _is_scheme(scheme) else check_scheme)(scheme) is not None
            if inner is not None:
                prefix = inner.partition("://")[0] if is_ours else scheme
            if inner is not None and not is_ours:
                transport, settings["hostname"] = scheme, inner
            elif _takes_whole_url(transport or scheme):
                transport, settings["hostname"] = transport or scheme, url
            else:
                transport = transport or scheme
                rest = url.partition("://")[2]
                parsed = self._parse(f"{scheme}://{rest}")
                del parsed["transport"]
                if prefix == "socket" and not parsed["hostname"]:
                    # The path is that of a socket; everything else stands in the query.
                    parts = url_to_parts(f"{scheme}://{rest}")
                    parsed.update(hostname=f"/{parts.path}", virtual_host=parts.query.get("virtual_host"))
                    url_options = {name: parsed.pop(name) for name in parsed.keys() - URL_OPTIONS - URL_PARTS}
                clustered = _clustered(transport, parsed.pop("cluster", None), self.transport_options)
                transport = clustered or transport
                url_options.update(_pop_parameters(transport, parsed, url))
                settings.update((name, value) for name, value in parsed.items() if value is not None)
        self._url_options = url_options
        #: The URL that the settings are taken from, as it was given; it may have a password.
        self.current_url = url
        self.transport_cls: Any = self._preferred(transport or DEFAULT_SCHEME)
        facts = check_scheme(self._scheme) if self._scheme is not None else None
        self.uri_prefix: str | None = prefix
        self.hostname: str | None = settings.get("hostname")
        self.userid: str | None = settings["userid"]
        self.password: str | Callable[[], str] | None = settings["password"]
        self.virtual_host: str = settings["virtual_host"] or "/"
        self.port: int | None = settings["port"]
        self.insist: bool = settings["insist"]
        self.ssl: Any = settings["ssl"] or (facts is not None and facts.ssl)
        self.login_method: str | None = settings["login_method"]
        self.connect_timeout: float | None = _seconds("connect_timeout", settings["connect_timeout"])
        self.heartbeat: float | None = _seconds("heartbeat", settings["heartbeat"], is_float=True)
        provider = settings["credential_provider"]
        self.credential_provider: Any = symbol_by_name(provider)() if isinstance(provider, str) else provider

    def _parse(self, url: str) -> dict[str, Any]:
        """Return the parts of a URL, under the names of ``Connection``'s arguments. Raises ValueError."""
        return parse_url(url)

    def _preferred(self, transport: Any) -> Any:
        """Return the transport that is used where one is named."""
        return transport

    @property
    def _scheme(self) -> str | None:
        """The name of the transport, if it has one: it may be a class, or the path of one."""
        transport = self.transport_cls
        return transport if isinstance(transport, str) and _is_scheme(transport) else None

    @property
    def _facts(self) -> Scheme | None:
        """What the scheme stands for, if it is one of kombulite's own transports."""
        return native_scheme(self._scheme) if self._scheme is not None else None

    def _transport_defaults(self) -> Mapping[str, Any]:
        """Return what a transport written for kombu's interface has for what is left out."""
        return {}

    def _defaults(self) -> tuple[str, int | None, str | None, Any, str | None]:
        """Host, port, user, password and login method, with what the scheme stands for filled in."""
        facts = self._facts
        if facts is None:
            given = self._transport_defaults().get
            return (
                self.hostname or given("hostname") or "localhost",
                self.port or given("port"),
                self.userid or given("userid"),
                self.password or given("password"),
                self.login_method or given("login_method"),
            )
        port = facts.tls_port if self.ssl and facts.tls_port else facts.port
        return (
            self.hostname or "localhost",
            self.port or port,
            self.userid or facts.userid,
            self.password or facts.password,
            self.login_method or facts.login_method,
        )

    @property
    def place(self) -> tuple[Any, ...]:
        """Key of a broker: entities that are durable there are not known to be anywhere else."""
        return self.transport_cls, self.hostname, self.port, self.virtual_host

    def settings(self) -> Settings:
        """Return the settings that a transport needs to connect. A callable password is called."""
        host, port, userid, password, login_method = self._defaults()
        return Settings(
            hostname=host,
            port=port,
            userid=userid,
            password=password() if callable(password) else password,
            virtual_host=self.virtual_host,
            ssl=self.ssl,
            connect_timeout=self.connect_timeout,
            heartbeat=self.heartbeat or 0,
            login_method=login_method,
            uri_prefix=self.uri_prefix,
            options=_merged(self._url_options, self.transport_options),
            scheme=self._scheme,
            alternates=tuple(self.alt),
            credential_provider=self.credential_provider,
        )

    def info(self) -> dict[str, Any]:
        """Return the constructor's arguments, with defaults filled in. The password is in it."""
        host, port, userid, password, login_method = self._defaults()
        transport = self.transport_cls
        if self.uri_prefix and self._facts is None:
            host = f"{self.uri_prefix}+{host}"
        return {
            "hostname": host,
            "userid": userid,
            "password": password,
            "virtual_host": self.virtual_host,
            "port": port,
            "insist": self.insist,
            "ssl": self.ssl,
            "transport": "amqp" if transport == "pyamqp" else transport,
            "connect_timeout": self.connect_timeout,
            "transport_options": _merged(self._url_options, self.transport_options),
            "login_method": login_method,
            "uri_prefix": self.uri_prefix,
            "heartbeat": self.heartbeat,
            "failover_strategy": self._failover_strategy,
            "alternates": self.alt,
            "credential_provider": self.credential_provider,
        }

    def as_uri(
        self, include_password: bool = False, mask: str = "**", getfields: Callable[[Any], Any] | None = None
    ) -> str:
        """Return the URL. The password is masked by default.

        Args:
            include_password: If True, show the password.
            mask: Text that stands for the password.
            getfields: Ignored; kept for compatibility.
        """
        host, port, userid, password, _ = self._defaults()
        scheme = self.transport_cls if isinstance(self.transport_cls, str) else self.transport_cls.__name__.lower()
        if self._facts is not None and self._facts.names_file:
            return as_url(scheme, path=quote_path(self.virtual_host))
        if scheme == "pyamqp":
            scheme = "amqp"
        secret = (password() if callable(password) else password) if include_password else ""
        if self.uri_prefix == "socket" and host.startswith("/"):
            shown = secret if include_password else mask if password else ""
            url = as_url(
                f"{scheme}+socket",
                user=userid,
                password=shown,
                path=quote_path(host[1:]),
                sanitize=not include_password,
                mask=mask,
            )
            return url if self.virtual_host == "/" else f"{url}?virtual_host={safequote(self.virtual_host)}"
        url = as_url(
            scheme,
            host,
            port,
            userid,
            secret if include_password else mask,
            quote_path(self.virtual_host),
            sanitize=not include_password,
            mask=mask,
        )
        return f"{scheme}+{self.uri_prefix}{url[len(scheme) :]}" if self.uri_prefix else url

    def __eqhash__(self) -> HashedSeq:
        """Return the key of pools: equal for addresses of one broker."""
        return HashedSeq(
            self.transport_cls,
            *self._defaults(),
            self.virtual_host,
            repr(self.transport_options),
        )

    # --- private names of kombu's that programs use

    @property
    def _initial_params(self) -> dict[str, Any]:
        """What the constructor was given."""
        given = {"hostname": self.hostname, **self._given}
        del given["uri_prefix"]
        return given

    def _info(self, resolve: bool = True) -> Iterator[tuple[str, Any]]:
        return iter(self.info().items())

    def _init_params(self, transport: Any = None, **params: Any) -> None:
        """Take over settings by their names, without connecting to them."""
        self.transport_cls = transport or DEFAULT_SCHEME
        for name, value in params.items():
            setattr(self, name, value)

    def _extract_failover_opts(self) -> dict[str, Any]:
        """Return how often and how long the default channel tries to connect: arguments of ``ensure_connection``."""
        given = self.transport_options or {}
        timeout = given.get("connect_retries_timeout", self.connect_timeout)
        return {"timeout": timeout, **{name: given[name] for name in CONNECT_RETRY_OPTIONS if name in given}}

    @property
    def host(self) -> str:
        """``hostname:port``."""
        host, port, *_ = self._defaults()
        return f"{host}:{port}"

    def completes_cycle(self, retries: int) -> bool:
        """Return whether each URL has been tried as often as the others.

        Args:
            retries: Number of retries so far.
        """
        return not (retries + 1) % len(self.alt) if self.alt else True
