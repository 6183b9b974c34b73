"""Errors of the driver and of the protocol, and what they are called here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import amqp.exceptions

from kombulite import _core, exceptions

#: py-amqp's errors, which its handshake raises. A test fails where one is missing.
DRIVER_ERRORS: dict[type[Exception], type[Exception]] = {
    amqp.exceptions.AMQPError: exceptions.AMQPError,
    amqp.exceptions.ConnectionError: exceptions.ConnectionError,
    amqp.exceptions.ChannelError: exceptions.ChannelError,
    amqp.exceptions.RecoverableConnectionError: exceptions.RecoverableConnectionError,
    amqp.exceptions.IrrecoverableConnectionError: exceptions.IrrecoverableConnectionError,
    amqp.exceptions.RecoverableChannelError: exceptions.RecoverableChannelError,
    amqp.exceptions.IrrecoverableChannelError: exceptions.IrrecoverableChannelError,
    amqp.exceptions.Blocked: exceptions.Blocked,
    amqp.exceptions.ConsumerCancelled: exceptions.ConsumerCancelled,
    amqp.exceptions.ContentTooLarge: exceptions.ContentTooLarge,
    amqp.exceptions.NoConsumers: exceptions.NoConsumers,
    amqp.exceptions.ConnectionForced: exceptions.ConnectionForced,
    amqp.exceptions.InvalidPath: exceptions.InvalidPath,
    amqp.exceptions.AccessRefused: exceptions.AccessRefused,
    amqp.exceptions.NotFound: exceptions.NotFound,
    amqp.exceptions.ResourceLocked: exceptions.ResourceLocked,
    amqp.exceptions.PreconditionFailed: exceptions.PreconditionFailed,
    amqp.exceptions.FrameError: exceptions.FrameError,
    amqp.exceptions.FrameSyntaxError: exceptions.FrameSyntaxError,
    amqp.exceptions.InvalidCommand: exceptions.InvalidCommand,
    amqp.exceptions.ChannelNotOpen: exceptions.ChannelNotOpen,
    amqp.exceptions.UnexpectedFrame: exceptions.UnexpectedFrame,
    amqp.exceptions.ResourceError: exceptions.ResourceError,
    amqp.exceptions.NotAllowed: exceptions.NotAllowed,
    amqp.exceptions.AMQPNotImplementedError: exceptions.AMQPNotImplementedError,
    amqp.exceptions.InternalError: exceptions.InternalError,
    amqp.exceptions.MessageNacked: exceptions.MessageNacked,
}

#: What the codec finds wrong with the broker's bytes.
CODEC_ERRORS: dict[type[_core.ProtocolError], type[exceptions.ConnectionError]] = {
    _core.MalformedFrame: exceptions.FrameError,
    _core.MalformedValue: exceptions.FrameSyntaxError,
    _core.UnexpectedFrame: exceptions.UnexpectedFrame,
}


def codec_error(error: _core.ProtocolError) -> exceptions.ConnectionError:
    """The connection error for what the codec found."""
    return CODEC_ERRORS[type(error)](str(error))


@contextmanager
def translated() -> Iterator[None]:
    """Raise the driver's errors as ours."""
    try:
        yield
    except tuple(DRIVER_ERRORS) as error:
        if type(error) not in DRIVER_ERRORS:
            raise  # one of ours, which are py-amqp's too
        # All but MessageNacked have these four, and so have ours.
        facts = [getattr(error, name, None) for name in ("reply_text", "method_sig", "method_name", "reply_code")]
        raise DRIVER_ERRORS[type(error)](*facts) from error
