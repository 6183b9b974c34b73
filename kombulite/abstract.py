"""What exchanges and queues share: a list of attributes, and a channel they may be bound to."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from kombulite._client.interfaces import Bindable
from kombulite.exceptions import NotBoundError
from kombulite.utils.functional import ChannelPromise

__all__ = ["MaybeChannelBound", "Object", "is_connection", "maybe_channel", "unpickle_dict"]

T = TypeVar("T", bound="Object")
Self = TypeVar("Self", bound="MaybeChannelBound")


class Object:
    """Something described by its ``attrs``: pairs of attribute name and conversion (or None).

    Copies, pickles and dicts hold just them.

    Args:
        *args: Ignored.
        **kwargs: Values of the attributes; others are ignored.
    """

    attrs: ClassVar[tuple[tuple[str, Any], ...]] = ()

    def __init__(self, *args: object, **kwargs: Any) -> None:
        for name, convert in self.attrs:
            value = kwargs.get(name)
            if value is not None:
                setattr(self, name, convert(value) if convert is not None else value)
            elif not hasattr(self, name):
                setattr(self, name, None)

    def as_dict(self, recurse: bool = False) -> dict[str, Any]:
        """Return the attributes by name.

        Args:
            recurse: If True, attributes that are such objects become dicts too.
        """

        def plain(value: Any) -> Any:
            if recurse and isinstance(value, Object):
                return value.as_dict(recurse=True)
            if recurse and isinstance(value, list):
                return [plain(item) for item in value]
            return value

        values = ((name, convert, getattr(self, name)) for name, convert in self.attrs)
        return {
            name: plain(value if convert is None or value is None or isinstance(value, Object) else convert(value))
            for name, convert, value in values
        }

    def __copy__(self: T) -> T:
        return type(self)(**self.as_dict())

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickle_dict, (type(self), self.as_dict())


def unpickle_dict(cls: type[Object], kwargs: dict[str, Any]) -> Object:
    """Return an entity of its attributes: what pickled entities, kombu's too, name as their constructor.

    Args:
        cls: Class of the entity.
        kwargs: Its attributes by name.
    """
    return cls(**kwargs)


class MaybeChannelBound(Object):
    """An entity that can be bound to a channel. Binding makes a copy; the entity itself stays as it is."""

    #: Whether one declaration lasts as long as the connection.
    can_cache_declaration = False

    _channel: Any = None
    _is_bound = False

    def __call__(self: Self, channel: Bindable) -> Self:
        """Return a copy that is bound to a channel, as ``bind`` does.

        Args:
            channel: A channel, or a connection for its default channel.
        """
        return self.bind(channel)

    def bind(self: Self, channel: Bindable) -> Self:
        """Return a copy that is bound to a channel.

        Args:
            channel: A channel, or a connection for its default channel.
        """
        return self.__copy__().maybe_bind(channel)

    def maybe_bind(self: Self, channel: Bindable | None) -> Self:
        """Bind this very entity, unless it is bound already or there is no channel.

        Args:
            channel: A channel, a connection for its default channel, or None.
        """
        if not self._is_bound and channel:
            self._attach(channel)
        return self

    def revive(self, channel: Bindable) -> None:
        """Move a bound entity to another channel.

        Args:
            channel: The new channel.
        """
        if self._is_bound:
            self._attach(channel)

    def when_bound(self) -> None:
        """React to binding."""

    @property
    def is_bound(self) -> bool:
        """True if the entity has a channel."""
        return self._is_bound and self._channel is not None

    @property
    def channel(self) -> Any:
        """The channel. Reading it raises NotBoundError if there is none."""
        channel = self._channel
        if channel is None:
            raise NotBoundError(f"Can't call method on {type(self).__name__} not bound to a channel")
        if isinstance(channel, ChannelPromise):
            channel = self._channel = channel()
        return channel

    def _attach(self, channel: Any) -> None:
        self._channel = maybe_channel(channel)
        self._is_bound = True
        self.when_bound()

    def __repr__(self) -> str:
        return self._repr_entity(type(self).__name__)

    def _repr_entity(self, item: str = "") -> str:
        item = item or type(self).__name__
        return f"<{item} bound to chan:{self.channel.channel_id}>" if self.is_bound else f"<unbound {item}>"


def maybe_channel(channel: Any) -> Any:
    """Return the channel itself, or the default channel of a connection.

    Args:
        channel: A channel, or a connection.
    """
    return channel.default_channel if is_connection(channel) else channel


def is_connection(channel: object) -> bool:
    """Return whether something is a connection; all else passes for a channel.

    Args:
        channel: A connection, or a channel.
    """
    # Asked of the class: an AttributeError amid connecting is no sign of a channel.
    return hasattr(channel.__class__, "default_channel")
