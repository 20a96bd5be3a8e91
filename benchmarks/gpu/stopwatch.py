"""The device's own clock around a function: medians, with nothing of the run before in its caches."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import empty

FLUSH = 256 * 2**20  # bytes that are written before each run: several times the largest L2 cache
SECONDS = 0.15  # to measure one thing for
LEAST, MOST = 5, 50  # runs


class Stopwatch:
    """Writing `flush` bytes before each run also gives the host the time to ask for it: what is short is then not
    measured with the gaps in which the device waits."""

    def __init__(self, flush: int = FLUSH, seconds: float = SECONDS) -> None:
        self._device, self._flush, self._seconds = device.current(), empty(flush, dtype="uint8"), seconds

    def seconds(self, function: Callable[[], object]) -> float:
        """Seconds of one run as a CUDA graph, as in a training step: the function must always do the same work."""

        def once() -> None:
            function()

        run = self._device.captured(once)
        for _ in range(2):  # compiled, then captured
            run()
        first = self._run(run, 2)
        count = min(MOST, max(LEAST, int(self._seconds / max(min(first), 1e-9))))
        return statistics.median(self._run(run, count))

    def _run(self, run: Callable[[], None], count: int) -> list[float]:
        marks = []
        for _ in range(count):
            self._device.clear(self._flush.address, self._flush.nbytes)
            begin = self._device.mark()
            run()
            marks.append((begin, self._device.mark()))
        return [end - begin for begin, end in marks]  # asked for last: it waits
