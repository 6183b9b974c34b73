"""Errors of the protocol, and what they are called here."""

from __future__ import annotations

from kombulite import _core, exceptions
from kombulite.brokers.amqp import methods

#: What the codec finds wrong with the broker's bytes.
CODEC_ERRORS: dict[type[_core.ProtocolError], type[exceptions.ConnectionError]] = {
    _core.MalformedFrame: exceptions.FrameError,
    _core.MalformedValue: exceptions.FrameSyntaxError,
    _core.UnexpectedFrame: exceptions.UnexpectedFrame,
}


def codec_error(error: _core.ProtocolError) -> exceptions.ConnectionError:
    """Return the connection error for what the codec found."""
    return CODEC_ERRORS[type(error)](str(error))


def closing_error(arguments: bytes, default: type[exceptions.AMQPError]) -> exceptions.AMQPError:
    """Return the error that the arguments of a close method name; ``default`` is the class for unknown codes."""
    from amqp.exceptions import METHOD_NAME_MAP

    code, text, class_id, method_id = methods.decode(methods.CLOSE_ARGUMENTS, arguments)
    signature = class_id, method_id
    name = METHOD_NAME_MAP.get(signature, "")
    if code == exceptions.PreconditionFailed.code and "inequivalent arg" in text:
        return exceptions.NotEquivalentError(text, signature, name, code)
    return exceptions.error_for_code(code, text, signature, name, default)
