"""Arrays in the memory of the device: an address, a shape and strides. Only kernels compute with them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from llmpy.kernels.cuda.runtime import device


class DeviceArray:
    """Elements on the device, with the part of NumPy's interface that the models use.

    `strides` count numbers, not bytes. Indexing by integers and slices gives views; `reshape` too, of what
    is contiguous. What is assigned is copied: a number, an array of the host, or one of the device.
    """

    __slots__ = ("address", "dtype", "owner", "shape", "strides")

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: Any, owner: Any, strides: tuple[int, ...] | None = None
    ) -> None:
        self.address, self.shape, self.dtype, self.owner = address, tuple(shape), np.dtype(dtype), owner
        self.strides = _contiguous(self.shape) if strides is None else strides

    @classmethod
    def of(cls, array: np.ndarray) -> DeviceArray:
        """A copy of an array of the host."""
        made = empty(*array.shape, dtype=array.dtype)
        made[...] = array
        return made

    # ---- what Triton asks of an argument ---------------------------------------------------------------------------

    def data_ptr(self) -> int:
        return self.address

    # ---- shape and views -------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Returns whether the array is C-contiguous as in NumPy: strides of axes of length 1 do not matter."""
        wanted = _contiguous(self.shape)
        return all(n == 1 or s == w for n, s, w in zip(self.shape, self.strides, wanted, strict=True))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> DeviceArray:
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = keys[:at] + (slice(None),) * (self.ndim - len(keys) + keys.count(None) + 1) + keys[at + 1 :]
        if None in keys:
            return self._with_axes(keys)
        if len(keys) > self.ndim:
            raise IndexError(f"{len(keys)} indices for an array of {self.ndim} dimensions")
        start, shape, strides = 0, [], []
        for axis, (length, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            index = keys[axis] if axis < len(keys) else slice(None)
            if isinstance(index, slice):
                first, stop, step = index.indices(length)
                if step != 1:
                    raise IndexError("slices of the device's arrays have no steps")
                start += first * stride
                shape.append(max(0, stop - first))
                strides.append(stride)
            else:
                place = int(index) + (length if index < 0 else 0)
                if not 0 <= place < length:
                    raise IndexError(f"index {index} is out of bounds for an axis of {length}")
                start += place * stride
        address = self.address + start * self.dtype.itemsize
        return DeviceArray(address, tuple(shape), self.dtype, self.owner, tuple(strides))

    def _with_axes(self, keys: tuple[Any, ...]) -> DeviceArray:
        """Indexes with `None`, which inserts an axis of length 1."""
        inner = self[tuple(key for key in keys if key is not None)]
        shape, strides, axis = list(inner.shape), list(inner.strides), 0
        for key in keys:
            if key is None:
                shape.insert(axis, 1)
                strides.insert(axis, 0)
            axis += key is None or isinstance(key, slice)
        return DeviceArray(inner.address, tuple(shape), self.dtype, self.owner, tuple(strides))

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def reshape(self, *shape: int | tuple[int, ...]) -> DeviceArray:
        sizes: list[Any] = list(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)
        if -1 in sizes:
            sizes[sizes.index(-1)] = self.size // max(1, -prod(sizes))
        if prod(sizes) != self.size or not self.is_contiguous:
            raise ValueError(f"an array {self.shape} with strides {self.strides} cannot be seen as {tuple(sizes)}")
        return DeviceArray(self.address, tuple(sizes), self.dtype, self.owner)

    def swapaxes(self, first: int, second: int) -> DeviceArray:
        order = list(range(self.ndim))
        order[first], order[second] = order[second], order[first]
        shape, strides = (tuple(of[axis] for axis in order) for of in (self.shape, self.strides))
        return DeviceArray(self.address, shape, self.dtype, self.owner, strides)

    # ---- values ----------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """A copy on the host, after all earlier work of the device."""
        made = np.empty(self.shape, self.dtype)
        for place, part in _contiguous_parts(self):
            device.current().copy_out(made[place], part.address)
        return made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy().astype(dtype or self.dtype, copy=False)

    def __setitem__(self, key: Any, value: Any) -> None:
        target = self[key]
        if not isinstance(value, DeviceArray):
            value = np.broadcast_to(np.asarray(value), target.shape).astype(target.dtype)
        elif (value.shape, value.dtype) != (target.shape, target.dtype):
            raise ValueError(f"{value.shape} {value.dtype} cannot be copied to {target.shape} {target.dtype}")
        for place, part in _contiguous_parts(target):
            source = value[place]
            if isinstance(source, DeviceArray):
                for inner, piece in _contiguous_parts(source):
                    device.current().copy(part[inner].address, piece.address, piece.nbytes)
            else:
                device.current().copy_in(part.address, np.ascontiguousarray(source))

    def fill(self, value: float) -> None:
        """Sets every element to `value`; 0 takes one call of the device."""
        if value == 0 and self.is_contiguous:
            device.current().clear(self.address, self.nbytes)
        else:
            self[...] = value


def empty(*shape: Any, dtype: Any = np.float32) -> DeviceArray:
    """A new array with arbitrary contents; a run plans its arrays and allocates them once (llmpy/utils/memory.py)."""
    shape = shape[0] if shape and isinstance(shape[0], tuple) else shape
    address, owner = device.current().take(prod(shape) * np.dtype(dtype).itemsize)
    return DeviceArray(address, shape, dtype, owner)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def _contiguous_parts(array: DeviceArray):
    """Yields (index, part) for the largest contiguous parts of an array."""
    if array.size == 0:
        return
    if array.is_contiguous:
        yield (...,), array
        return
    for i in range(len(array)):
        for place, part in _contiguous_parts(array[i]):
            yield (i, *place), part
