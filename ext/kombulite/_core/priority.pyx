"""Priority queue naming: the list keys of a queue on brokers that keep one list for each priority step.

Format: the key of step 0 is the queue's name; that of another step is the name, a separator and the step in decimal.
"""

cimport cython

# Queues come and go (reply queues above all); what is remembered of their keys is forgotten when it is this much.
cdef enum:
    MOST_QUEUES = 4096

cdef enum:
    MOST_PRIORITY = 9


@cython.final
cdef class PriorityNaming:
    """Maps (queue, priority) to list keys and back.

    ``steps``: the priorities that have a list of their own, ascending; ``separator``: what stands before the step.
    Safe to share between threads.
    """

    cdef readonly tuple steps
    cdef readonly str separator
    cdef dict _keys
    cdef dict _step_of_suffix
    cdef int[MOST_PRIORITY + 1] _step_index

    def __cinit__(self, steps=(0, 3, 6, 9), separator="\x06\x16"):
        cdef int priority, index, i
        self.steps = tuple([int(step) for step in steps])
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"priority steps must ascend, and there must be one: {steps!r}")
        if self.steps[0] < 0:
            raise ValueError(f"priority steps must not be negative: {steps!r}")
        if not separator:
            raise ValueError("the separator is empty")
        self.separator = separator
        self._keys = {}
        self._step_of_suffix = {str(step): step for step in self.steps if step}
        for priority in range(MOST_PRIORITY + 1):
            index = len(self.steps) - 1  # below the first step: the last, as kombu does
            for i in range(len(self.steps)):
                if self.steps[i] <= priority:
                    index = i
            self._step_index[priority] = index

    cdef int _index(self, object priority):
        cdef int number
        if type(priority) is not int:
            try:
                priority = int(priority)
            except (TypeError, ValueError, OverflowError):
                return self._step_index[0]
        if priority <= 0:
            return self._step_index[0]
        if priority >= MOST_PRIORITY:
            return self._step_index[MOST_PRIORITY]
        number = priority
        return self._step_index[number]

    def step(self, priority):
        """The step of a priority: clamped to 0..9, rounded down; what is not a number counts as 0."""
        return self.steps[self._index(priority)]

    def keys(self, queue):
        """All keys of a queue (tuple of str), in the order of the steps, which is the order of service."""
        keys = self._keys.get(queue)
        if keys is None:
            if len(self._keys) >= MOST_QUEUES:
                self._keys.clear()  # not another one: it may be in the middle of a look-up
            keys = tuple([f"{queue}{self.separator}{step}" if step else queue for step in self.steps])
            self._keys[queue] = keys
        return keys

    def key(self, queue, priority):
        """The key that a message of this priority goes to."""
        return self.keys(queue)[self._index(priority)]

    def parse(self, key):
        """The (queue, step) that a key belongs to."""
        queue, separator, step = key.rpartition(self.separator)
        if separator and step in self._step_of_suffix:
            return queue, self._step_of_suffix[step]
        return key, 0
