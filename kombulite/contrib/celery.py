"""Celery's tasks from async code: sent without blocking the event loop, their results awaited.

``result = await send(task.s(1, 2), countdown=3, queue="q")``, then ``await result.get(timeout=10)``. Celery makes
the message: its options, routes, signals and serializers hold as for ``apply_async``. Instead of a producer it gets one
that notes what it publishes; that is then published over an ``aio.Connection``. Nothing of Celery is patched, and the
program may run on genuine kombu.

Longer than other modules for three kinds of result backends, which share one way to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from logging import getLogger
from time import monotonic
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import celery
import celery.canvas
import celery.exceptions
import celery.result
import celery.states

from kombulite import aio, exceptions
from kombulite.entity import Exchange, Queue, binding

__all__ = ["AsyncResult", "Client", "close", "send"]

logger = getLogger("kombulite.celery")

# Those of the kombu that Celery has: serializers may have been registered there.
_serialization: Any = import_module("kombu.serialization")
_compression: Any = import_module("kombu.compression")
dumps, loads, compress = _serialization.dumps, _serialization.loads, _compression.compress

SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds between two looks at a result backend that cannot tell of results
RECONNECT_PAUSE = 1.0  # seconds

Meta = dict[str, Any]


async def send(signature: celery.canvas.Signature, **options: Any) -> AsyncResult:
    """Send a task, over the connection that this event loop has to the broker of the task's application.

    Args:
        signature: Of a task (``task.s(...)``), or a chain that begins with a task.
        options: Those of ``Task.apply_async``: ``countdown``, ``eta``, ``expires``, ``queue``, ``priority``,
            ``headers``, ``task_id``, ``link``, ``retry``, ``retry_policy``, ``timeout`` and all others.

    Returns:
        The result, whose ``get`` is awaited.

    Raises:
        TypeError: It is no such signature.
        RecoverableConnectionError, OperationalError, TimeoutError: The broker does not have the task, or it is not
            known whether it has.
    """
    _check(signature)
    return await _client_of(signature.app).send(signature, **options)


async def close() -> None:
    """Close the connections that ``send`` has opened on this event loop. The next ``send`` opens them again."""
    clients = _clients.pop(asyncio.get_running_loop(), {})
    for client in clients.values():
        await client.close()


class Client:
    """The tasks that one Celery application sends from one event loop.

    Args:
        app: The application.
        connection: The connection to its broker (None: one that is made from the application's settings, and closed
            with the client).
    """

    def __init__(self, app: celery.Celery, connection: aio.Connection | None = None) -> None:
        self.app = app
        self._is_own = connection is None
        self._connection = _connection_of(app) if connection is None else connection
        self._producer = self._connection.producer()
        self._results = _results_of(app.backend, self._connection)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Have no more results come, and close the connection if it is the client's own."""
        await self._results.close()
        if self._is_own:
            await self._connection.close()

    async def send(self, signature: celery.canvas.Signature, **options: Any) -> AsyncResult:
        """Send a task, as the function ``send`` does.

        Args:
            signature: A task (``task.s(...)``), or a chain that begins with a task.
            **options: Options of ``Task.apply_async``.
        """
        _check(signature)
        if "reply_to" not in options and (reply_to := await self._results.open()) is not None:
            options["reply_to"] = reply_to
        first, options, last = _unchained(signature, options)
        # Asked to ignore the result, Celery does not subscribe to it, for which it would wait. The message says what
        # was meant.
        is_ignored = options.get("ignore_result", first.options.get("ignore_result"))
        if is_ignored is None:
            is_ignored = getattr(first.type, "ignore_result", False)
        recorder = Recorder()
        made = first.apply_async(producer=recorder, **{**options, "ignore_result": True})
        result = AsyncResult((last or made).id, parent=(last or made).parent, app=self.app)
        result.ignored = bool(is_ignored)
        if isinstance(made, celery.result.EagerResult):
            result.settle({"status": made.state, "result": made.result, "traceback": made.traceback})
            return result
        result.await_with(self._results)
        for body, arguments in recorder.published:
            await self._publish(body, arguments, bool(is_ignored))
        return result

    async def _publish(self, body: Any, arguments: dict[str, Any], is_ignored: bool) -> None:
        """Publish what Celery wanted to."""
        sent = dict(arguments)
        headers = dict(sent.pop("headers", None) or {})
        if "ignore_result" in headers:
            headers["ignore_result"] = is_ignored
        content_type, content_encoding, data = dumps(body, sent.pop("serializer", None))
        if compression := sent.pop("compression", None):
            data, headers["compression"] = compress(data, compression)
        timeouts = [each for each in (sent.pop("timeout", None), sent.pop("confirm_timeout", None)) if each is not None]
        exchange = sent.pop("exchange", None) or ""
        await self._producer.publish(
            data,
            exchange=exchange if isinstance(exchange, str) else exchange.name,
            declare=[_entity(each) for each in sent.pop("declare", None) or ()],
            content_type=content_type,
            content_encoding=content_encoding,
            headers=headers,
            timeout=max(timeouts) if timeouts else None,
            **sent,
        )


class Recorder:
    """Stands for a producer: keeps what Celery publishes."""

    serializer = None

    def __init__(self) -> None:
        self.published: list[tuple[Any, dict[str, Any]]] = []

    def publish(self, body: Any, **arguments: Any) -> None:
        """Keep a message."""
        self.published.append((body, arguments))

    @property
    def connection(self) -> Recorder:
        """The object that Celery asks for its errors: itself, since nothing fails here."""
        return self

    def _reraise_as_library_errors(self) -> AbstractContextManager[None]:
        return nullcontext()


class AsyncResult(celery.result.AsyncResult):  # type: ignore[misc]
    """The result of a task: Celery's, whose ``get`` is awaited.

    Once it has come, ``result``, ``state``, ``ready()``, ``successful()`` and the like need no I/O. Before that they
    ask the backend as Celery does, and block.
    """

    _results: Results | None = None

    def await_with(self, results: Results) -> None:
        """Let the result come from an object.

        Args:
            results: The object.
        """
        self._results = results
        self._nodes = [self, *self._parents()]
        self._coming = {node.id: results.future(node.id) for node in self._nodes}

    async def get(self, timeout: float | None = None, propagate: bool = True) -> Any:
        """Wait for the result. Cancelled, it changes nothing: the result can be asked for again.

        Args:
            timeout: Seconds (None: no limit, as in Celery).
            propagate: If True, the exception of a task that failed is raised; else it is returned. A chain fails with
                the first of its tasks that does.

        Raises:
            celery.exceptions.TimeoutError: There is no result yet.
            RecoverableConnectionError: The client is closed.
        """
        if self.ignored:
            return None
        if self._cache is None and self._results is not None:
            await self._wait(self._results, None if timeout is None else monotonic() + timeout, propagate)
        if propagate:
            self.maybe_throw()
        return self.result

    async def _wait(self, results: Results, deadline: float | None, propagate: bool) -> None:
        for task_id, coming in self._coming.items():
            if coming.done() and coming.exception() is not None:  # the backend failed then; it is asked again
                self._coming[task_id] = results.future(task_id)
        waiting = dict(self._coming)
        await _within(results.look(list(waiting)), deadline)
        while self.id in waiting:
            left = None if deadline is None else max(deadline - monotonic(), 0)
            done, _ = await asyncio.wait(waiting.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise celery.exceptions.TimeoutError("the result has not come in time")
            for node in self._nodes:
                future = waiting.get(node.id)
                if future is not None and future in done:
                    del waiting[node.id]
                    node._maybe_set_cache(future.result())
                    if propagate:
                        node.maybe_throw()

    def settle(self, meta: Meta) -> None:
        """Note the outcome of the task.

        Args:
            meta: The outcome, as the backend stores it.
        """
        self._maybe_set_cache(meta)


class Results:
    """Source of results: here, a backend that has to be asked again and again."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._coming: WeakValueDictionary[str, asyncio.Future[Meta]] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: set[str] = set()  # tasks about which the backend is asked already

    def future(self, task_id: str) -> asyncio.Future[Meta]:
        """Return what is done when the task is. It is forgotten when its AsyncResult is."""
        future = self._coming.get(task_id)
        if future is None:
            future = self._coming[task_id] = asyncio.get_running_loop().create_future()
        return future

    def come(self, meta: Meta) -> None:
        """Hand a result over, if it is the last of its task."""
        future = self._coming.get(meta["task_id"])
        if future is not None and not future.done() and meta["status"] in celery.states.READY_STATES:
            future.set_result(meta)

    def fail(self, task_id: str, error: BaseException) -> None:
        """Have those that wait for a result raise an error. It may be asked for again."""
        future = self._coming.pop(task_id, None)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # retrieved: it may be that no task waits

    async def open(self) -> str | None:
        """Be ready for results; returns the queue that they have to be sent to, if it is one."""
        return None

    async def look(self, task_ids: list[str]) -> None:
        """See to it that the results of these tasks come."""
        for task_id in task_ids:
            if task_id not in self._asked and not self.future(task_id).done():
                self._asked.add(task_id)
                self.run(self._poll(task_id))

    async def _poll(self, task_id: str) -> None:
        pause = SHORTEST_PAUSE
        try:
            while task_id in self._coming and not self._coming[task_id].done():
                self.come({"task_id": task_id, **await asyncio.to_thread(self.backend.get_task_meta, task_id)})
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        except Exception as error:
            self.fail(task_id, error)
        finally:
            self._asked.discard(task_id)

    def run(self, work: Any) -> None:
        """Run a task until ``close``."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("results cannot be received any more: %r", error)
            for task_id in list(self._coming):
                self.fail(task_id, error)

    async def close(self) -> None:
        """End: no more results come, and those that wait for one raise RecoverableConnectionError."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task_id in list(self._coming):
            self.fail(task_id, exceptions.RecoverableConnectionError("no more results come: the client is closed"))


class RPCResults(Results):
    """Results that are sent to a queue of this client's (``rpc://``)."""

    def __init__(self, backend: Any, connection: aio.Connection) -> None:
        super().__init__(backend)
        self._connection = connection
        self._queue = Queue(str(uuid4()), durable=False, auto_delete=True, expires=backend.expires)
        self._opening: asyncio.Lock = asyncio.Lock()
        self._is_open = False

    async def open(self) -> str | None:
        """Consume from the queue."""
        async with self._opening:
            if not self._is_open:  # or it was lost with the connection for good
                messages = self._connection.consume(self._queue, no_ack=True, prefetch=1000)
                await messages.__aenter__()
                self._is_open = True
                self.run(self._receive(messages))
        return self._queue.name

    async def look(self, task_ids: list[str]) -> None:
        """Do nothing: they come by themselves."""

    async def _receive(self, messages: aio.Messages) -> None:
        try:
            async for message in messages:
                kind = message.content_type, message.content_encoding
                try:
                    self.come(loads(message.body, *kind, accept=self.backend.accept))
                except Exception:
                    logger.exception("a result cannot be decoded")
        finally:
            self._is_open = False
            await messages.__aexit__(None, None, None)


class RedisResults(Results):
    """Results in Redis, which publishes each under its key."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        import redis.asyncio

        pool = redis.asyncio.ConnectionPool(**_asynchronous(backend.connparams))
        self._errors = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
        self._redis: Any = redis.asyncio.Redis.from_pool(pool)
        self._pubsub: Any = self._redis.pubsub(ignore_subscribe_messages=True)
        self._subscribing = asyncio.Lock()
        self._is_receiving = False

    def _keys(self, task_ids: Iterable[str]) -> list[Any]:
        return [self.backend.get_key_for_task(each) for each in task_ids]

    async def look(self, task_ids: list[str]) -> None:
        """Subscribe to the results, and fetch those that there are."""
        waiting = [each for each in task_ids if not self.future(each).done()]
        if not waiting:
            return
        async with self._subscribing:
            await self._pubsub.subscribe(*self._keys(waiting))
        if not self._is_receiving:
            self._is_receiving = True
            self.run(self._receive())
        await self._fetch(waiting)

    async def _fetch(self, task_ids: list[str]) -> None:
        for payload in await self._redis.mget(self._keys(task_ids)) if task_ids else ():
            if payload is not None:
                await self._take(payload)

    async def _take(self, payload: Any) -> None:
        meta = self.backend.decode(payload)
        self.come(meta)
        if meta["status"] in celery.states.READY_STATES:
            await self._pubsub.unsubscribe(*self._keys([meta["task_id"]]))

    async def _receive(self) -> None:
        try:
            while True:
                try:
                    message = await self._pubsub.get_message(timeout=None)
                    if message is not None and message["type"] == "message":
                        await self._take(message["data"])
                    elif not self._pubsub.subscribed:
                        return  # all have come
                except self._errors as error:
                    logger.warning("the connection for results is lost: %s", error)
                    await asyncio.sleep(RECONNECT_PAUSE)
                    await self._catch_up()
        finally:
            self._is_receiving = False

    async def _catch_up(self) -> None:
        """Fetch what came while there was no connection."""
        waiting = [task_id for task_id, future in list(self._coming.items()) if not future.done()]
        try:
            if waiting:
                await self._pubsub.subscribe(*self._keys(waiting))
            await self._fetch(waiting)
        except self._errors as error:
            logger.warning("there is no connection for results yet: %s", error)

    async def close(self) -> None:
        """Close the connections too."""
        await super().close()
        await self._pubsub.aclose()
        await self._redis.aclose()


#: By event loop and application.
_clients: dict[asyncio.AbstractEventLoop, dict[celery.Celery, Client]] = {}


def _client_of(app: celery.Celery) -> Client:
    loop = asyncio.get_running_loop()
    for other in [each for each in _clients if each.is_closed()]:
        del _clients[other]
    clients = _clients.setdefault(loop, {})
    if app not in clients:
        clients[app] = Client(app)
    return clients[app]


def _connection_of(app: celery.Celery) -> aio.Connection:
    info = app.connection_for_write().info()
    return aio.connect(**{**info, "transport_options": dict(info.get("transport_options") or {})})


def _results_of(backend: Any, connection: aio.Connection) -> Results:
    name = type(backend).__name__
    if name == "RPCBackend":
        return RPCResults(backend, connection)
    # A Sentinel and a cluster have other settings; they are asked, like all others.
    return RedisResults(backend) if name == "RedisBackend" else Results(backend)


def _asynchronous(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a synchronous pool of redis-py's for an asynchronous one."""
    import redis.asyncio.connection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    found = {name: value for name, value in parameters.items() if name != "connection_class"}
    given = parameters.get("connection_class")
    if given is not None:
        found["connection_class"] = getattr(redis.asyncio.connection, given.__name__)
    # What is published while it reconnects by itself would be missed.
    return {**found, "retry": Retry(NoBackoff(), 0)}


def _unchained(signature: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """Return the task that is sent first, its options, and the last result of a chain.

    ``chain.apply_async`` does not hand its producer on, so its steps are prepared here. Raises TypeError where no task
    comes first.
    """
    first, last = signature, None
    if isinstance(signature, celery.canvas._chain) and signature.tasks and not signature.app.conf.task_always_eager:
        given = {**signature.options, **options}
        links, errbacks = given.pop("link", None), given.pop("link_error", None)
        ids = given.pop("root_id", None), given.pop("parent_id", None)
        steps, results = signature.prepare_steps(
            (), {}, signature.tasks, *ids, errbacks, signature.app, given.pop("task_id", None)
        )
        if links:
            steps[0].extend_list_option("link", links)
        for step in steps if "reply_to" in given else ():
            step.set(reply_to=given["reply_to"])  # that of this thread was set
        first, last = steps.pop(), results[0]
        options = {**given, "chain": steps} if steps else given
    _check(first)
    return first, options, last


def _check(signature: Any) -> None:
    """Raise TypeError for what is no signature of a task or a chain."""
    if not isinstance(signature, celery.canvas.Signature) or signature.get("subtask_type") not in (None, "chain"):
        raise TypeError(f"signature must be of a task or of a chain that begins with one, got {signature!r:.200}")


def _entity(entity: Any) -> Queue | Exchange:
    """Return an entity of kombu's as one of kombulite's."""
    if isinstance(entity, (Queue, Exchange)):
        return entity
    kind: Any = Queue if hasattr(entity, "exchange") else Exchange
    settings = {name: getattr(entity, name, None) for name, _ in kind.attrs}
    if kind is Queue:
        settings["exchange"] = None if entity.exchange is None else _entity(entity.exchange)
        settings["bindings"] = {
            binding(each.exchange and each.exchange.name, each.routing_key, each.arguments, each.unbind_arguments)
            for each in entity.bindings or ()
        }
        settings["kind"] = None
    made: Queue | Exchange = kind(**settings)
    return made


async def _within(work: Any, deadline: float | None) -> None:
    """Await something until a deadline. Raises Celery's TimeoutError."""
    try:
        await asyncio.wait_for(work, None if deadline is None else max(deadline - monotonic(), 0))
    except asyncio.TimeoutError as error:
        raise celery.exceptions.TimeoutError("the result backend has not answered in time") from error
