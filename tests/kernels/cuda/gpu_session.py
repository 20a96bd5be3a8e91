"""What test_gpu.py asks of a GPU, in one process: each function's answer is printed, in one object of JSON.

The driver does as little as it may until it is waited for, so an answer that is right was waited for.
"""

import gc
import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from llmpy.kernels.cuda import DeviceArray, empty, gelu_forward
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.transfers import HALF

gpu = device.current()


def log(*kinds):
    lines = [line.split() for line in Path(os.environ["FAKE_CUDA_LOG"]).read_text().splitlines()]
    return [line for line in lines if line[0] in kinds]


def refused(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def what_it_is():
    return [gpu.name, list(gpu.capability), gpu.memory()[1], "torch" in sys.modules]


def arrays_come_back_as_they_went():
    found = []
    for size in (1, 3, HALF - 1, HALF, 2 * HALF + 5):
        array = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
        there = empty(size, dtype=np.uint8)
        sent = array.copy()
        gpu.copy_in(there.address, sent)
        sent[:] = 0  # it may change as soon as copy_in returns
        found.append(bool((there.numpy() == array).all()))
    return found


def views_are_copied_by_their_strides():
    there = DeviceArray.of(np.arange(24, dtype=np.float32).reshape(4, 6))
    there[1:3, 2:5] = np.full((2, 3), 9, np.float32)
    there[0] = there[3]
    return there.numpy().astype(int).tolist()


def small_arrays_share_a_piece():
    before = len(log("take"))
    kept = [empty(100) for _ in range(50)]
    apart = [b.address - a.address for a, b in pairwise(kept)]
    return [len(log("take")) - before <= 1, sorted(set(apart))[0], all(a.address % 256 == 0 for a in kept)]


def memory_goes_back_with_its_arrays():
    before = len(log("free"))
    large = empty(2**26, dtype=np.uint8)
    during = len(log("free")) - before
    del large
    gc.collect()
    return [during, len(log("free")) - before]


def a_number_is_read_as_it_was_when_asked_for():
    there = DeviceArray.of(np.array([1.5, 2.5], np.float32))
    first = gpu.read_later(there.address + 4)
    there.fill(0)
    second = gpu.read_later(there.address + 4)
    arrived = first.arrived
    return [arrived, float(second), float(first), first.arrived, float(first)]


def numbers_of_other_types_are_read():
    found = []
    for dtype, value in ((np.int32, -7), (np.float64, 0.1), (np.uint8, 200)):
        found.append(float(gpu.read_later(DeviceArray.of(np.array([value], dtype)).address, dtype)))
    return found


def many_numbers_may_be_on_their_way():
    there = DeviceArray.of(np.arange(200, dtype=np.float32))
    coming = [gpu.read_later(there.address + 4 * i) for i in range(200)]
    values = [float(one) for one in coming]
    before = len(log("pinned"))
    for i in range(600):
        gpu.read_later(there.address + 4 * (i % 200))  # whose number nobody wants
    return [values == list(range(200)), len(log("pinned")) - before]


def lots_go_ahead_and_are_delivered_in_order():
    x, y = empty(100, dtype=np.int32), empty(3, 3)
    queue, found = gpu.copies_ahead(1024), []

    def put(n):
        tokens = np.full(100, n, np.int32)
        queue.put(tokens, np.full((3, 3), n / 2, np.float32))
        tokens[:] = -1

    put(1)
    put(2)
    for n in range(3, 9):
        queue.deliver(x.address, y.address)
        put(n)  # overwrites the place of the lot before it was read, unless it is waited for
        found.append([set(x.numpy().tolist()) == {n - 2}, float(y.numpy()[2, 2])])
    return found


def a_lot_is_waited_for_where_it_is_delivered():
    x, queue = empty(8, dtype=np.int32), gpu.copies_ahead(256)
    queue.put(np.arange(8, dtype=np.int32))
    queue.deliver(x.address)
    return x.numpy().tolist()


def a_lot_is_not_overwritten_before_it_is_delivered():
    """Each goes to a place of its own, and none is looked at before the last is on its way."""
    places, queue = [empty(1, dtype=np.int32) for _ in range(9)], gpu.copies_ahead(256)
    for n, place in enumerate(places):
        queue.put(np.array([n], np.int32))
        queue.deliver(place.address)
    return [int(place.numpy()[0]) for place in places]


def a_lot_of_a_wrong_size_is_refused():
    queue = gpu.copies_ahead(512)
    full = np.zeros(64, np.float32)
    queue.put(full, full)
    queue.put(full)
    return [
        refused(queue.put, full),
        refused(queue.deliver, 1),
        refused(gpu.copies_ahead(512).deliver, 1),
        refused(gpu.copies_ahead(512).put, full, full, np.zeros(1)),
    ]


def a_graph_does_what_the_function_did():
    x, y, calls = DeviceArray.of(np.arange(6, dtype=np.float32)), empty(6), []

    def step():
        calls.append(1)
        gpu.copy(y.address, x.address, x.nbytes)
        gpu.clear(y.address, 4)

    graph, found, launches = gpu.captured(step), [], len(log("launch"))
    for n in range(4):
        x[...] = np.arange(6, dtype=np.float32) + n
        graph()
        found.append(y.numpy().tolist())
    return [found, len(calls), len(log("launch")) - launches]


def a_failed_capture_leaves_the_stream_usable():
    x, state = DeviceArray.of(np.ones(3, np.float32)), {"fail": False}

    def step():
        gpu.clear(x.address, 4)
        if state["fail"]:
            empty(1)

    graph = gpu.captured(step)
    graph()
    state["fail"] = True
    try:
        graph()
    except RuntimeError as error:
        x[...] = np.array([5, 6, 7], np.float32)  # in the stream, and not in a graph that will never be
        after, message = [x.numpy().tolist() for _ in range(2)], str(error)
    state["fail"] = False
    x[...] = np.ones(3, np.float32)
    graph()
    return [message, after, x.numpy().tolist(), gc.isenabled()]


def what_a_graph_could_not_repeat_is_refused():
    x = empty(4)
    numbers = np.zeros(4, np.float32)
    tried = [
        lambda: gpu.copy_in(x.address, numbers),
        lambda: gpu.copy_out(numbers, x.address),
        lambda: gpu.read_later(x.address),
    ]
    return [refused(gpu.graph_of, one) for one in tried]


def kernels_start_on_our_stream():
    x, y = DeviceArray.of(np.ones((3, 100), np.float32)), empty(3, 100)
    graph = gpu.captured(lambda: gelu_forward(y, x))
    for _ in range(3):
        graph()
    gpu.synchronize()
    started = log("_forward")
    return [len(started), {stream for *_, stream in started} == {str(gpu.stream)}]


def time_between_two_moments():
    first = gpu.mark()
    return gpu.mark() - first


if __name__ == "__main__":
    own = [function for name, function in list(globals().items()) if getattr(function, "__module__", "") == "__main__"]
    print(json.dumps({one.__name__: one() for one in own if one not in (log, refused)}))
