"""The GPU's kernels called with arrays of the host, as every other backend is: for tests that know only those."""

import os

import numpy as np

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported; LLMPY_TEST_GPU=1 runs on the GPU itself
if os.environ.get("LLMPY_TEST_GPU") == "1":
    del os.environ["TRITON_INTERPRET"]


class OnDevice:
    """A backend whose operations take NumPy arrays: they see the device's, and find the results in their own.

    Under the interpreter the device's memory is the host's, and an array is seen where it lies: writing past its end is
    found by the guards around it. On a GPU it is copied there and back.
    """

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        function = getattr(self.module, name)
        if not callable(function):
            return function

        def call(*arguments, **options):
            seen = {}
            places = [self._place(x, seen) for x in arguments]
            returned = function(*places, **{key: self._place(x, seen) for key, x in options.items()})
            for array, placed in seen.values():
                self._fetch(array, placed)
            return returned

        return call

    def _place(self, x, seen):
        if isinstance(x, tuple):
            return tuple(self._place(each, seen) for each in x)
        if not isinstance(x, np.ndarray):
            return x
        key = (x.__array_interface__["data"][0], x.shape, x.strides)
        if key not in seen:
            seen[key] = x, self._seen(x)
        return seen[key][1]

    def _seen(self, x):
        from llmpy.kernels.cuda.runtime import device
        from llmpy.kernels.cuda.runtime.array import DeviceArray

        if not device.INTERPRETED:
            return DeviceArray.of(x)
        strides = tuple(stride // x.itemsize for stride in x.strides)
        return DeviceArray(x.__array_interface__["data"][0], x.shape, x.dtype, x, strides)

    def _fetch(self, array, placed):
        from llmpy.kernels.cuda.runtime import device

        if not device.INTERPRETED and array.flags.writeable:
            array[...] = placed.numpy()
