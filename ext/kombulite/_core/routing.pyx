"""Routing table lookup: which queues a message goes to.

What a binding asks for is compiled when it is made: a hash for direct exchanges, one tuple for fanout, a trie of words
for topic, an index of header values for headers. A lookup touches only what can match.

A table is not guarded: its owner holds a lock around changes and lookups alike.

The module is longer than others: the four kinds of exchanges are the parts of one table, and a lookup goes through all.
"""

from collections import namedtuple

cimport cython

from kombulite._core.fieldtable cimport decimal_type, is_text
from kombulite._core.message cimport Delivery
from kombulite._core.recursion cimport Py_LeaveRecursiveCall, enter_recursion


#: Routing keys of an exchange whose targets are remembered: a lookup in a trie of words costs five times as much.
MAX_KNOWN_KEYS = 1024

Binding = namedtuple("Binding", "source destination routing_key arguments to_exchange")
Binding.__doc__ = "A binding: messages of exchange ``source`` go to a queue or (``to_exchange``) another exchange."


class UnknownExchange(LookupError):
    """The table holds no exchange of that name."""


# --- what a binding points to -----------------------------------------------------------------------------------

@cython.final
cdef class Targets:
    """The distinct destinations that share a key; each with the number of bindings that lead to it."""

    cdef dict counts
    cdef tuple compiled

    def __cinit__(self):
        self.counts = {}

    cdef int add(self, object target) except -1:
        self.counts[target] = self.counts.get(target, 0) + 1
        self.compiled = None
        return 0

    cdef bint remove(self, object target) except -1:
        """Take one binding away; True if nothing is left."""
        count = self.counts[target] - 1
        if count:
            self.counts[target] = count
        else:
            del self.counts[target]
            self.compiled = None
        return not self.counts

    cdef tuple get(self):
        # Compiled at the first lookup, so that a thousand bindings in a row cost no thousand tuples.
        if self.compiled is None:
            self.compiled = tuple(self.counts)
        return self.compiled


cdef class Matcher:
    """Finds the targets of a message among the bindings of one exchange."""

    cdef int add(self, str key, dict arguments, object target) except -1:
        raise NotImplementedError

    cdef int remove(self, str key, dict arguments, object target) except -1:
        raise NotImplementedError

    cdef tuple match(self, str key, object headers):
        raise NotImplementedError


@cython.final
cdef class DirectMatcher(Matcher):
    cdef dict by_key

    def __cinit__(self):
        self.by_key = {}

    cdef int add(self, str key, dict arguments, object target) except -1:
        targets = self.by_key.get(key)
        if targets is None:
            targets = self.by_key[key] = Targets()
        return (<Targets> targets).add(target)

    cdef int remove(self, str key, dict arguments, object target) except -1:
        if (<Targets> self.by_key[key]).remove(target):
            del self.by_key[key]
        return 0

    cdef tuple match(self, str key, object headers):
        targets = self.by_key.get(key)
        return () if targets is None else (<Targets> targets).get()


@cython.final
cdef class FanoutMatcher(Matcher):
    cdef Targets targets

    def __cinit__(self):
        self.targets = Targets()

    cdef int add(self, str key, dict arguments, object target) except -1:
        return self.targets.add(target)

    cdef int remove(self, str key, dict arguments, object target) except -1:
        self.targets.remove(target)
        return 0

    cdef tuple match(self, str key, object headers):
        return self.targets.get()


# --- topic ------------------------------------------------------------------------------------------------------

@cython.final
@cython.trashcan(True)  # a long key makes a long chain, which a stack could not free
cdef class TopicNode:
    """A place in the trie of binding keys: what follows after one more word, any word, or any number of words."""

    cdef dict words
    cdef TopicNode any_word
    cdef TopicNode any_words
    cdef bint repeats  # reached through `#`: may take further words and stay
    cdef unsigned long long step  # the step of a lookup that saw it last
    cdef Targets targets

    cdef bint is_empty(self) noexcept:
        return not self.words and self.any_word is None and self.any_words is None and self.targets is None


cdef list split_key(str key):
    """The words of a routing key; an empty key has none."""
    return key.split(".") if key else []


@cython.final
cdef class TopicMatcher(Matcher):
    """`*` stands for exactly one word, `#` for zero or more (AMQP 0-9-1, section 3.1.3.3).

    A lookup walks all paths at once, word by word, and visits no node twice in one step.
    """

    cdef TopicNode root
    cdef unsigned long long step

    def __cinit__(self):
        self.root = TopicNode()

    cdef int add(self, str key, dict arguments, object target) except -1:
        cdef TopicNode node = self.root
        cdef Targets targets
        for word in split_key(key):
            if word == "*":
                if node.any_word is None:
                    node.any_word = TopicNode()
                node = node.any_word
            elif word == "#":
                if node.any_words is None:
                    node.any_words = TopicNode()
                    node.any_words.repeats = True
                node = node.any_words
            else:
                if node.words is None:
                    node.words = {}
                child = node.words.get(word)
                if child is None:
                    child = node.words[word] = TopicNode()
                node = child
        targets = node.targets  # held: hashing the target may unbind the others
        if targets is None:
            targets = node.targets = Targets()
        return targets.add(target)

    cdef int remove(self, str key, dict arguments, object target) except -1:
        cdef list path = [self.root]
        cdef list words = split_key(key)
        cdef TopicNode node = self.root
        cdef TopicNode parent
        cdef Targets targets
        for word in words:
            if word == "*":
                node = node.any_word
            elif word == "#":
                node = node.any_words
            else:
                node = node.words[word]
            path.append(node)
        targets = node.targets
        if targets.remove(target):
            node.targets = None
        while words and node.is_empty():
            word = words.pop()
            path.pop()
            parent = path[len(path) - 1]
            if word == "*":
                parent.any_word = None
            elif word == "#":
                parent.any_words = None
            else:
                del parent.words[word]
            node = parent
        return 0

    cdef int enter(self, list active, TopicNode node) except -1:
        # `#` may stand for no word at all, so what follows it is entered along with it.
        while node is not None:
            if node.repeats:
                if node.step == self.step:
                    return 0
                node.step = self.step
            active.append(node)
            node = node.any_words
        return 0

    cdef tuple match(self, str key, object headers):
        cdef TopicNode node
        cdef list active = []
        cdef list following
        cdef tuple first = None
        cdef dict merged = None
        self.step += 1
        self.enter(active, self.root)
        for word in split_key(key):
            following = []
            self.step += 1
            for item in active:
                node = <TopicNode> item
                if node.words is not None:
                    child = node.words.get(word)
                    if child is not None:
                        self.enter(following, <TopicNode> child)
                if node.any_word is not None:
                    self.enter(following, node.any_word)
                if node.repeats:
                    self.enter(following, node)
            if not following:
                return ()
            active = following
        for item in active:
            node = <TopicNode> item
            if node.targets is None:
                continue
            if first is None:
                first = node.targets.get()
            else:
                if merged is None:
                    merged = dict.fromkeys(first)
                for target in node.targets.get():
                    merged[target] = None
        if merged is not None:
            return tuple(merged)
        return () if first is None else first


# --- headers ----------------------------------------------------------------------------------------------------

PRESENT = object()  # stands for the value of a header that only has to be there


cdef object header_form(object value):
    """What a header's value is compared by; PRESENT if no binding can ask for it."""
    try:
        return wire_form(value)
    except (ValueError, RecursionError):
        return PRESENT


@cython.final
cdef class HeaderBinding:
    cdef object target
    cdef bint match_all
    cdef dict wanted  # name -> wire form, or PRESENT

    cdef bint matches(self, dict forms) except -1:
        for name, form in self.wanted.items():
            found = name in forms and (form is PRESENT or form == forms[name])
            if found != self.match_all:
                return found
        return self.match_all


cdef HeaderBinding header_binding(dict arguments, object target):
    cdef HeaderBinding binding = HeaderBinding()
    mode = arguments.get("x-match", "all")
    if mode not in ("all", "any", "all-with-x", "any-with-x"):
        raise ValueError(f"x-match must be all, any, all-with-x or any-with-x, not {mode!r:.80}")
    if not all(isinstance(name, str) for name in arguments):
        raise ValueError("the names of binding arguments must be strings")
    binding.target = target
    binding.match_all = mode.startswith("all")
    binding.wanted = {name: PRESENT if value is None else wire_form(value) for name, value in arguments.items()
                      if name != "x-match" and (mode.endswith("-with-x") or not name.startswith("x-"))}
    return binding


@cython.final
cdef class HeadersMatcher(Matcher):
    """Bindings indexed by a header they ask for: an `all` binding by its rarest, an `any` binding by each."""

    cdef dict index     # (name, wire form or PRESENT) -> list of HeaderBinding
    cdef dict bindings  # (target, frozen arguments) -> (HeaderBinding, index keys)
    cdef Targets always

    def __cinit__(self):
        self.index = {}
        self.bindings = {}
        self.always = Targets()

    cdef int add(self, str key, dict arguments, object target) except -1:
        cdef HeaderBinding binding = header_binding(arguments, target)
        keys = list(binding.wanted.items())
        if binding.match_all:
            if not keys:
                return self.always.add(target)
            keys = [min(keys, key=lambda key: len(self.index.get(key, ())))]
        for key_ in keys:
            self.index.setdefault(key_, []).append(binding)
        self.bindings[target, key, wire_form(arguments)] = (binding, keys)
        return 0

    cdef int remove(self, str key, dict arguments, object target) except -1:
        entry = self.bindings.pop((target, key, wire_form(arguments)), None)
        if entry is None:
            self.always.remove(target)
            return 0
        binding, keys = entry
        for key_ in keys:
            self.index[key_].remove(binding)
            if not self.index[key_]:
                del self.index[key_]
        return 0

    cdef tuple match(self, str key, object headers):
        cdef dict found = dict.fromkeys(self.always.get())
        cdef dict forms
        if self.index and headers:
            forms = {name: header_form(value) for name, value in dict(headers).items()}
            for name, form in forms.items():
                self._collect((name, PRESENT), forms, found)
                if form is not PRESENT:
                    self._collect((name, form), forms, found)
        return tuple(found)

    cdef int _collect(self, tuple key, dict forms, dict found) except -1:
        for binding in self.index.get(key, ()):
            if (<HeaderBinding> binding).matches(forms):
                found[(<HeaderBinding> binding).target] = None
        return 0


cdef str exact_str(object text):
    """Names may be of a subclass of str, an enumeration for example."""
    if not isinstance(text, str):
        raise TypeError(f"a name or routing key is a string, not {type(text).__name__}")
    return str.__str__(text)


# --- the table --------------------------------------------------------------------------------------------------

cdef object wire_form(object value):
    """A hashable form of what AMQP would carry, equal where RabbitMQ finds equal: 1, 1.0 and True are three values."""
    if isinstance(value, (dict, list, tuple)):
        enter_recursion(b" while comparing arguments")
        try:
            if isinstance(value, dict):
                members = [(exact_str(name) if isinstance(name, str) else str(name), wire_form(item))
                           for name, item in value.items()]
                return dict, tuple(sorted(members, key=repr))
            return list, tuple([wire_form(item) for item in value])
        finally:
            Py_LeaveRecursiveCall()
    if isinstance(value, str):
        return str, exact_str(value)
    if isinstance(value, bytes):
        value = bytes.__getitem__(value, slice(None))  # of the class itself
        return (str, value.decode()) if is_text(value) else (bytes, value)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind, kind(value)
    if isinstance(value, decimal_type()):
        return decimal_type(), value.as_tuple()
    try:
        hash(value)
    except TypeError:
        raise ValueError(f"binding arguments of type {type(value).__name__} cannot be compared") from None
    return type(value), value


@cython.final
cdef class ExchangeNode:
    cdef str name
    cdef object alternate
    cdef Matcher matcher
    cdef dict bindings  # identity -> Binding, those that start here
    cdef dict arriving  # identity -> Binding, those from other exchanges
    cdef Py_ssize_t links  # how many of `bindings` lead to an exchange
    cdef dict known  # routing key -> targets, of keys that were looked up; None where a key alone does not tell

    cdef int forget_known(self) except -1:
        if self.known is not None:
            self.known = {}  # not emptied: a lookup that is under way notes its targets in the old one
        return 0


cdef Matcher new_matcher(str kind):
    if kind == "direct":
        return DirectMatcher()
    if kind == "fanout":
        return FanoutMatcher()
    if kind == "topic":
        return TopicMatcher()
    if kind == "headers":
        return HeadersMatcher()
    raise ValueError(f"unknown exchange type {kind!r:.80}")


@cython.final
cdef class RoutingTable:
    """Exchanges and bindings, and the queues that a message reaches through them.

    A queue is known by whatever hashable the owner binds: its name, or an object that stands for it. The default
    exchange, ``""``, is always there and leads to the name that the routing key is; nothing can be bound to it.
    """

    def __cinit__(self):
        self._exchanges = {}
        self._by_queue = {}

    def __contains__(self, exchange):
        return exchange == "" or exchange in self._exchanges

    cdef object _node(self, object exchange):
        node = self._exchanges.get(exchange)
        if node is None:
            raise UnknownExchange(exchange)
        return node

    def declare(self, exchange, kind, alternate=None):
        """Add an exchange (direct, fanout, topic or headers); one that is there already stays as it is.

        ``alternate``: the exchange that takes what finds no queue. Raises ValueError for an unknown type.
        """
        cdef ExchangeNode node
        if exchange in self:
            return
        node = ExchangeNode()
        node.name = exact_str(exchange)
        node.alternate = alternate
        node.matcher = new_matcher(exact_str(kind))
        node.bindings = {}
        node.arriving = {}
        node.known = None if alternate is not None or isinstance(node.matcher, HeadersMatcher) else {}
        self._exchanges[exchange] = node

    def delete(self, exchange):
        """Remove an exchange with all bindings from and to it. Returns the bindings (a list)."""
        cdef ExchangeNode node = <ExchangeNode> self._node(exchange)
        gone = list({**node.bindings, **node.arriving}.values())  # one to itself is among both
        for binding in gone:
            self.unbind(*binding)
        del self._exchanges[exchange]
        return gone

    def delete_queue(self, queue):
        """Remove all bindings that lead to a queue. Returns them (a list)."""
        gone = list(self._by_queue.get(queue, {}).values())
        for binding in gone:
            self.unbind(*binding)
        return gone

    def bind(self, source, destination, routing_key="", arguments=None, bint to_exchange=False):
        """Add a binding; False if it is there already.

        Raises UnknownExchange, and ValueError for arguments that the exchange cannot match by.
        """
        cdef ExchangeNode node = <ExchangeNode> self._node(source)
        arguments = dict(arguments) if arguments else {}
        routing_key = exact_str(routing_key)
        identity = (source, destination, routing_key, wire_form(arguments), to_exchange)
        if identity in node.bindings:
            return False
        if to_exchange:
            target = self._node(destination)
            arriving = (<ExchangeNode> target).arriving
        else:
            target = destination
            arriving = self._by_queue.get(destination)
        node.matcher.add(routing_key, arguments, target)
        if arriving is None:
            arriving = self._by_queue[destination] = {}
        node.links += to_exchange
        node.bindings[identity] = arriving[identity] = Binding(source, destination, routing_key, arguments, to_exchange)
        node.forget_known()
        return True

    def unbind(self, source, destination, routing_key="", arguments=None, bint to_exchange=False):
        """Remove a binding; False if there is none. Raises UnknownExchange."""
        cdef ExchangeNode node = <ExchangeNode> self._node(source)
        arguments = dict(arguments) if arguments else {}
        routing_key = exact_str(routing_key)
        identity = (source, destination, routing_key, wire_form(arguments), to_exchange)
        if identity not in node.bindings:
            return False
        if to_exchange:
            target = self._node(destination)
            del (<ExchangeNode> target).arriving[identity]
        else:
            target = destination
            del self._by_queue[destination][identity]
            if not self._by_queue[destination]:
                del self._by_queue[destination]
        node.matcher.remove(routing_key, arguments, target)
        node.links -= to_exchange
        del node.bindings[identity]
        node.forget_known()
        return True

    def bindings(self, exchange):
        """The bindings that start at an exchange (a list of ``Binding``). Raises UnknownExchange."""
        return list((<ExchangeNode> self._node(exchange)).bindings.values())

    def route(self, exchange, routing_key, headers=None):
        """The queues that a message reaches (a tuple, each once; empty if nothing takes it).

        ``headers``: the message's, a mapping or None. Raises UnknownExchange.
        """
        if exchange == "":
            return (routing_key,)
        return self._route(exchange, routing_key, headers)

    def route_message(self, Delivery message not None, dict queues not None):
        """The same for a message. ``queues``: all that there are, by the names that the default exchange goes by."""
        exchange, routing_key = message.exchange, message.routing_key
        if exchange == "":
            queue = queues.get(routing_key)
            return () if queue is None else (queue,)
        return self._route(exchange, routing_key, message.properties.headers)

    cdef object known_queue(self, Delivery message, dict queues):
        """The only queue that a message reaches, if a lookup of two hashes tells; or None.

        It runs no Python code, allocates nothing that the garbage collector tracks, and changes nothing: no other
        thread can come in between while there is a GIL.
        """
        cdef ExchangeNode node
        exchange, routing_key = message.exchange, message.routing_key
        if type(exchange) is not str or type(routing_key) is not str:
            return None
        if not <str> exchange:
            return queues.get(routing_key)
        node = <ExchangeNode> self._exchanges.get(exchange)
        if node is None or node.known is None:
            return None
        targets = node.known.get(routing_key)
        return (<tuple> targets)[0] if targets is not None and len(<tuple> targets) == 1 else None

    cdef tuple _route(self, object exchange, object routing_key, object headers):
        cdef ExchangeNode node
        cdef tuple targets
        cdef dict known
        node = <ExchangeNode> self._node(exchange)
        if type(routing_key) is not str:
            routing_key = exact_str(routing_key)
        known = node.known
        if known is not None and node.links == 0:
            targets = known.get(routing_key)
            if targets is None:
                targets = node.matcher.match(<str> routing_key, headers)
                if len(known) >= MAX_KNOWN_KEYS:
                    known.clear()
                known[routing_key] = targets
            return targets
        targets = node.matcher.match(<str> routing_key, headers)
        if node.links == 0 and (targets or node.alternate is None):
            return targets
        return self._spread(node, routing_key, headers)

    cdef tuple _spread(self, object start, str routing_key, object headers):
        """Follow bindings to exchanges, and alternates of exchanges that match nothing; each is visited once."""
        cdef ExchangeNode node
        cdef tuple targets
        cdef dict queues = {}
        cdef dict visited = {start: None}
        cdef list pending = [start]
        while pending:
            node = <ExchangeNode> pending.pop()
            targets = node.matcher.match(routing_key, headers)
            if not targets and node.alternate is not None:
                alternate = self._exchanges.get(node.alternate)
                targets = () if alternate is None else (alternate,)
            for target in targets:
                if type(target) is not ExchangeNode:
                    queues[target] = None
                elif target not in visited:
                    visited[target] = None
                    pending.append(target)
        return tuple(queues)
