"""One NVIDIA GPU through cuda-core: memory, copies, a stream of our own, and CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from llmpy.errors import UserError
from llmpy.kernels.cuda.runtime import compiling
from llmpy.kernels.cuda.runtime.arena import Arena
from llmpy.kernels.cuda.runtime.transfers import PrefetchQueue, Reading, Readings, Staging
from llmpy.kernels.cuda.runtime.triton_driver import install


class Gpu:
    """The `Device` (llmpy/kernels/cuda/runtime/device.py) that is a GPU.

    Raises UserError if there is no GPU with this number.
    """

    def __init__(self, ordinal: int = 0) -> None:
        import cuda.core as core
        from cuda.bindings import driver

        self.core, self._driver = core, driver
        self.name = "the GPU"  # until it is known
        self._done(driver.cuInit(0))
        (there,) = self._done(driver.cuDeviceGetCount())  # cuda-core asks another library, which containers may lack
        if ordinal >= there:
            numbers = "0 alone" if there == 1 else f"0 to {there - 1}"
            raise UserError(f"there is no GPU {ordinal}: this machine has {there}, so give {numbers}")
        self._device = core.Device(ordinal)
        self._device.set_current()
        self._stream = self._device.create_stream()
        self.stream = int(self._stream.handle)
        self.name = str(self._device.name)
        major, minor = self._device.compute_capability
        self.capability = int(major), int(minor)
        self._arena = Arena(self._allocate)
        self._readings = Readings(self)
        self._kept: list[PrefetchQueue] = []
        self._recording = False
        install(self, ordinal)

    # ---- memory ----------------------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        free, whole = self._done(self._driver.cuMemGetInfo())
        return int(free), int(whole)

    def take(self, size: int) -> tuple[int, Any]:
        self._refuse_in_graph("memory is taken")
        return self._arena.take(size)

    def _allocate(self, size: int) -> tuple[int, Any]:
        try:
            buffer = self._device.allocate(size, stream=self._stream)
        except Exception as error:  # cuda-core's own class is not public
            if "OUT_OF_MEMORY" not in str(error):
                raise
            free = self.memory()[0]
            raise UserError(
                f"the {self.name} refused {size / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free: end what else "
                "computes on it (nvidia-smi shows it), or lower --batch-size"
            ) from error
        return int(buffer.handle), buffer

    # ---- copies ----------------------------------------------------------------------------------------------------

    @cached_property
    def _staging(self) -> Staging:
        return Staging(self)

    @cached_property
    def ahead(self) -> Any:
        """The stream that copies batches while the other stream computes."""
        return self._device.create_stream()

    def copy_in(self, address: int, array: np.ndarray) -> None:
        self._refuse_in_graph("an array is copied from the host")
        self._staging.copy_in(address, array)

    def copy_out(self, array: np.ndarray, address: int) -> None:
        self._refuse_in_graph("an array is copied to the host")
        self._staging.copy_out(array, address)

    def copy(self, to: int, address: int, size: int) -> None:
        self.copy_on(self._stream, to, address, size)

    def copy_on(self, stream: Any, to: int, address: int, size: int) -> None:
        """Copies between GPU memory and pinned host memory, in any direction."""
        if size:
            self._done(self._driver.cuMemcpyAsync(to, address, size, int(stream.handle)))

    def clear(self, address: int, size: int) -> None:
        if size:
            self._done(self._driver.cuMemsetD8Async(address, 0, size, self.stream))

    def read_later(self, address: int, dtype: Any = np.float32) -> Reading:
        self._refuse_in_graph("a number is read")
        return self._readings.begin(address, dtype)

    def copies_ahead(self, size: int) -> PrefetchQueue:
        queue = PrefetchQueue(self, size)
        self._kept.append(queue)  # a pending copy needs the memory, even after the caller dropped the queue
        return queue

    # ---- order -----------------------------------------------------------------------------------------------------

    def synchronize(self) -> None:
        self._stream.sync()

    def event(self, timing: bool = False) -> Any:
        """A new event; an event that was never recorded counts as done."""
        return self._device.create_event(self.core.EventOptions(timing_enabled=timing))

    def record(self, event: Any) -> None:
        self._stream.record(event)

    def wait(self, event: Any) -> None:
        """Makes later work of the stream wait for the event."""
        self._stream.wait(event)

    def mark(self) -> Moment:
        return Moment(self)

    def captured(self, function: Callable[[], None]) -> Captured:
        return Captured(self, function)

    def graph_of(self, function: Callable[[], None]) -> Any:
        """Captures the work of a call of the function as a graph, without running it."""
        collecting = gc.isenabled()
        gc.collect()  # memory that the collector frees during capture would become a part of the graph
        gc.disable()
        builder = self._stream.create_graph_builder()
        builder.begin_building("relaxed")  # "global" would forbid loading a kernel meanwhile
        self._recording = True
        try:
            function()
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                builder.end_building()
            raise
        finally:
            self._recording = False
            if collecting:
                gc.enable()
        return builder.end_building().complete()

    def launch_graph(self, graph: Any) -> None:
        graph.launch(self._stream)

    def _refuse_in_graph(self, what: str) -> None:
        if self._recording:
            raise RuntimeError(f"{what} while a graph is captured: it would happen once, and not with the graph")

    def _done(self, result: Any) -> Any:
        """The values of a driver call. Raises RuntimeError with the name of the driver's error."""
        status, *values = result
        if int(status):
            raise RuntimeError(f"the driver of {self.name} answers {status.name}")
        return values


class Captured:
    """A function that becomes one call of the GPU; see `Device.captured`."""

    def __init__(self, gpu: Gpu, function: Callable[[], None]) -> None:
        self._gpu, self._function = gpu, function  # which also keeps the arrays that the graph reads
        self._called = False
        self._graph: Any = None

    def __call__(self) -> None:
        if not self._called:
            with compiling.shown():
                self._function()
            self._called = True
            return
        if self._graph is None:
            self._graph = self._gpu.graph_of(self._function)
        self._gpu.launch_graph(self._graph)


class Moment:
    """A mark: the time at which the stream reached it."""

    def __init__(self, gpu: Gpu) -> None:
        self.event = gpu.event(timing=True)
        gpu.record(self.event)

    def __sub__(self, earlier: Moment) -> float:
        self.event.sync()
        return (self.event - earlier.event) / 1000  # of milliseconds
