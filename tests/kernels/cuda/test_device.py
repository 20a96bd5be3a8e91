"""The interpreter's device, and what both devices promise."""

import numpy as np
import pytest

from llmpy.errors import UserError

pytest.importorskip("triton")
from llmpy.kernels.cuda import DeviceArray
from llmpy.kernels.cuda.runtime import device


@pytest.fixture
def host():
    if not device.INTERPRETED:
        pytest.skip("of the interpreter")
    return device.current()


def test_a_number_has_arrived_when_it_was_asked_for(host):
    x = DeviceArray.of(np.array([1.5, 2.5], np.float32))
    number = host.read_later(x.address + 4)
    x.fill(0)
    assert number.arrived
    assert float(number) == 2.5
    assert float(host.read_later(DeviceArray.of(np.array([-3], np.int32)).address, np.int32)) == -3


def test_lots_are_delivered_in_order_as_they_were_when_put(host):
    x, y, queue = DeviceArray.of(np.zeros(5, np.int32)), DeviceArray.of(np.zeros((2, 3))), host.copies_ahead(512)
    for n in (1, 2):
        tokens = np.full(5, n, np.int32)
        queue.put(tokens, np.full((3, 2), n).T.astype(float))
        tokens[:] = -1
    for n in (1, 2):
        queue.deliver(x.address, y.address)
        assert set(x.numpy()) == {n}
        assert (y.numpy() == n).all()


@pytest.mark.parametrize(
    ("put", "deliver", "message"),
    [
        ([(1,), (1,), (1,)], (), "2 batches wait already"),
        ([(1, 1, 1)], (), "a batch of 768 bytes where 512 were planned"),
        ([], (1,), "no batch waits"),
        ([(1, 1)], (1,), "1 addresses for a batch of 2 arrays"),
    ],
)
def test_what_does_not_fit_is_refused(host, put, deliver, message):
    queue = host.copies_ahead(300)
    with pytest.raises(ValueError, match=message):
        queue_all(queue, put, deliver)


def queue_all(queue, put, deliver):
    for sizes in put:
        queue.put(*(np.zeros(size) for size in sizes))
    queue.deliver(*deliver)


def test_a_captured_function_is_called_each_time(host):
    calls = []
    graph = host.captured(lambda: calls.append(1))
    for _ in range(3):
        graph()
    assert len(calls) == 3
    assert host.mark() - host.mark() <= 0


def test_the_gpu_is_that_of_the_environment(monkeypatch):
    monkeypatch.setattr(device, "_chosen", None)
    monkeypatch.setenv("LLMPY_CUDA_DEVICE", " 2 ")
    assert device._ordinal() == 2
    monkeypatch.setenv("LLMPY_CUDA_DEVICE", "")
    assert device._ordinal() == 0
    monkeypatch.setenv("LLMPY_CUDA_DEVICE", "-1")
    with pytest.raises(UserError, match="LLMPY_CUDA_DEVICE=-1 is no number of a GPU"):
        device._ordinal()
