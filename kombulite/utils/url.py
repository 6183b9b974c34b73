"""Broker URLs: taken apart, put together, made safe to show.

``urllib.parse`` is imported by who needs it: it costs a tenth of all that a program imports with us, and one that has
no connection has no URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kombulite.utils.records import NamedTuple

if TYPE_CHECKING:
    from urllib.parse import urlparse

__all__ = ["as_url", "maybe_sanitize_url", "parse_url", "safequote", "sanitize_url", "url_to_parts", "urlparse"]


ssl_available = True  # a program may say otherwise


class urlparts(NamedTuple):  # noqa: N801 - kombu's name
    """A URL in parts, percent-decoded; None for what is absent. ``path`` is without its first slash."""

    scheme: str
    hostname: str | None
    port: int | None
    username: str | None
    password: str | None
    path: str | None
    query: dict[str, str]


def safequote(text: str) -> str:
    """Percent-encode all that has a meaning in a URL, slashes too.

    Args:
        text: The text.
    """
    from urllib.parse import quote

    return quote(text, safe="")


def quote_path(path: str) -> str:
    """Percent-encode what a path may not have; slashes stay.

    Args:
        path: The path.
    """
    from urllib.parse import quote

    return quote(path)


def normalize_scheme(url: str) -> str:
    """Return a URL without blanks around it, its scheme in lower case: capitals mean nothing there (RFC 3986, 3.1).

    Args:
        url: The URL.
    """
    scheme, separator, rest = url.strip().partition("://")
    return f"{scheme.lower()}://{rest}" if separator else scheme


def url_to_parts(url: str) -> urlparts:
    """Return the parts of a URL.

    Args:
        url: The URL. Without ``://`` it is a host, with what may follow a host.

    Raises:
        ValueError: The host or the port is malformed.
    """
    from urllib.parse import parse_qsl, unquote, urlparse

    scheme, separator, rest = normalize_scheme(url).partition("://")
    if not separator:
        scheme, rest = "", url
    try:
        parts = urlparse(f"http://{rest}")  # each scheme has the same syntax here, also those urlparse does not know
        port = parts.port
    except ValueError:
        # The parser's own words would quote what it took for the port, which may be the password.
        raise ValueError(f"cannot read host and port of a URL with the scheme {scheme!r}") from None
    path = parts.path.removeprefix("/")
    return urlparts(
        scheme,
        unquote(parts.hostname) if parts.hostname else None,
        port,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        unquote(path) or None,
        dict(parse_qsl(parts.query)),
    )


_parse_url = url_to_parts


def parse_url(url: str) -> dict[str, Any]:
    """Return the parts of a URL, under the names of ``Connection``'s arguments.

    Query keys ``ssl_*`` become one dict ``ssl``.

    Args:
        url: The URL.

    Raises:
        ValueError: The URL is malformed.
    """
    scheme, hostname, port, userid, password, path, query = _parse_url(url)
    ssl = {name: value for name, value in query.items() if name.startswith("ssl_")}
    others: dict[str, Any] = {name: value for name, value in query.items() if name not in ssl}
    if ssl:
        others["ssl"] = _ssl_values(ssl)
    return {
        "transport": scheme,
        "hostname": hostname,
        "port": port,
        "userid": userid,
        "password": password,
        "virtual_host": path,
        **others,
    }


def _ssl_values(query: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = dict(query)
    if "ssl_check_hostname" in values:
        values["ssl_check_hostname"] = values["ssl_check_hostname"].lower() not in ("false", "0", "no")
    if "ssl_cert_reqs" in values:
        name = values["ssl_cert_reqs"]
        try:
            values["ssl_cert_reqs"] = parse_ssl_cert_reqs(name)
        except KeyError:
            raise ValueError(f"ssl_cert_reqs must be required, optional or none, not {name!r}") from None
        if values["ssl_cert_reqs"] is None:
            import_module(__name__).logger.warning("Defaulting to insecure SSL behaviour.")
    return values


def parse_ssl_cert_reqs(query_value: str) -> Any:
    """Return the member of ``ssl.VerifyMode`` with that name, or None for a Python without TLS.

    Args:
        query_value: ``required``, ``optional`` or ``none``, in any case, also with ``CERT_`` before it.

    Raises:
        KeyError: There is no such member.
    """
    if not ssl_available:
        return None
    modes = import_module(__name__).ssl.VerifyMode  # few URLs ask for it
    found = modes.__members__.get(f"CERT_{query_value.upper().removeprefix('CERT_')}")
    if found is None:
        raise KeyError(query_value)
    return found


def as_url(
    scheme: str,
    host: str | None = None,
    port: int | None = None,
    user: str | None = None,
    password: str | None = None,
    path: str | None = None,
    query: Mapping[str, Any] | None = None,
    sanitize: bool = False,
    mask: str | None = "**",
) -> str:
    """Return a URL made of its parts, percent-encoded except for the path, which is taken as it is.

    Args:
        scheme: Scheme, without ``://``.
        host: Host; None: none.
        port: Port; None: none.
        user: User; None: none.
        password: Password; None: none.
        path: Path without its first slash, percent-encoded; None: none.
        query: Ignored; kept for compatibility.
        sanitize: If True, ``mask`` stands for the password.
        mask: The text for it; None: an empty one.
    """
    url = [f"{scheme}://"]
    if user or password:
        if user:
            url.append(safequote(user))
        if password:
            url.append(f":{mask or ''}" if sanitize else f":{safequote(password)}")
        url.append("@")
    if host:
        url.append(safequote(host))
    if port:
        url.append(f":{port}")
    url.append(f"/{path or ''}")
    return "".join(url)


def sanitize_url(url: str, mask: str | None = "**") -> str:
    """Return a URL with its password masked.

    Args:
        url: The URL.
        mask: Text in place of the password; None: an empty one.
    """
    scheme, host, port, user, password, path, _ = _parse_url(url)
    return as_url(scheme, host, port, user, password, quote_path(path or ""), sanitize=True, mask=mask)


def maybe_sanitize_url(url: Any, mask: str | None = "**") -> Any:
    """Return a URL with its password masked; any other value as it is.

    Args:
        url: The value; text without ``://`` is no URL.
        mask: Text in place of the password; None: an empty one.
    """
    if isinstance(url, str) and "://" in url:
        return sanitize_url(url, mask)
    return url


def __getattr__(name: str) -> Any:
    # They cost as much as the rest of a connection's imports, and are seldom needed.
    if name == "ssl":
        return import_module(name)
    if name in ("parse_qsl", "quote", "unquote", "urlparse"):
        return getattr(import_module("urllib.parse"), name)
    if name in ("get_logger", "logger"):
        get_logger = import_module("kombulite.log").get_logger
        return get_logger if name == "get_logger" else get_logger(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
