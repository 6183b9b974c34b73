"""A trace goes from kombulite to a program on genuine kombu, and back."""

from __future__ import annotations

import uuid

import kombu
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import kombulite
from kombulite.contrib.opentelemetry import OpenTelemetryHook


@pytest.fixture
def spans():
    """Spans that have ended; their ``tracer``, and the hook that makes some."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer, exporter.hook = provider.get_tracer("test"), OpenTelemetryHook(tracer_provider=provider)
    return exporter


@pytest.mark.parametrize("broker", ["amqp_url", "redis_url"])
def test_a_program_on_kombu_goes_on_with_the_trace(broker, request, spans):
    url, name = request.getfixturevalue(broker), f"traced-{uuid.uuid4()}"
    tenants = []

    def relay(body, message):
        """What a program does that carries the context by hand."""
        origin = propagate.extract(message.headers)
        with spans.tracer.start_as_current_span("relay", origin) as span:
            headers = {}
            propagate.inject(headers, trace.set_span_in_context(span, origin))
            theirs.Producer().publish(body, routing_key=f"{name}.back", headers=headers)
        message.ack()

    def on_message(message):
        tenants.append(baggage.get_baggage("tenant"))
        message.ack()

    with kombulite.Connection(url) as ours, kombu.Connection(url) as theirs:
        ours.add_hook(spans.hook)
        there, back = (kombulite.Queue(f"{name}.{way}")(ours.default_channel) for way in ("there", "back"))
        there.declare()
        back.declare()
        token = context.attach(baggage.set_baggage("tenant", "blue"))
        ours.Producer().publish({"id": 7}, routing_key=there.name)
        context.detach(token)
        with theirs.Consumer([kombu.Queue(there.name, no_declare=True)], callbacks=[relay]):
            theirs.drain_events(timeout=10)
        with ours.Consumer([back], on_message=on_message):
            ours.drain_events(timeout=10)
        there.delete()
        back.delete()
    send, relayed, process = spans.get_finished_spans()
    assert (send.name, relayed.name, process.name) == (f"send {there.name}", "relay", f"process {back.name}")
    assert relayed.parent.span_id == send.context.span_id
    assert process.parent.span_id == relayed.context.span_id
    assert process.context.trace_id == send.context.trace_id
    assert tenants == ["blue"]
