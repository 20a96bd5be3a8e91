"""Triton's interpreter on arrays of ours, and made right for bfloat16.

As it comes (Triton 3.6 to 3.9), it cuts numbers off instead of rounding them, and multiplies bit patterns in `tl.dot`.

With TRITON_INTERPRET=1 kernels run program by program in NumPy: slow, without a GPU, and with the same arithmetic. Its
cost is per operation and not per number, so kernels take larger blocks here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

from llmpy.kernels.cuda.runtime.array import DeviceArray

_Builder, _Handle = triton_interpreter.InterpreterBuilder, triton_interpreter.TensorHandle
_cast, _dot = _Builder.cast_impl, _Builder.create_dot
_patch_tensor, _patch_language = triton_interpreter._patch_lang_tensor, triton_interpreter._patch_lang


class Pointer:
    """An array as the interpreter wants its arguments: like a tensor of PyTorch, its storage on the host."""

    def __init__(self, array: DeviceArray) -> None:
        self.array, self.dtype = array, array.dtype

    def data_ptr(self) -> int:
        return self.array.address

    def untyped_storage(self) -> Pointer:
        return self

    def cpu(self) -> Pointer:
        return self

    def copy_(self, other: Pointer) -> None:
        assert other.data_ptr() == self.data_ptr()

    def new_empty(self, size: int, device: str) -> Pointer:
        return Pointer(self.array)

    def set_(self, storage: Pointer, offset: int, size: Any, stride: Any) -> None:
        """Does nothing: the host has the storage already, perhaps under another dtype."""

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides


def install() -> None:
    """Replaces what is wrong, and what is slow, in the interpreter of this process."""
    _Builder.cast_impl, _Builder.create_dot = _rounding_cast, _multiplying_dot
    for name in ("create_fp_ext", "create_fp_trunc"):
        setattr(_Builder, name, lambda self, source, target: self.cast_impl(source, target))
    triton_interpreter._patch_lang_tensor = _tensor_with_index
    triton_interpreter._patch_lang = _patch_once
    for name in ("add", "sub", "mul", "truediv"):
        setattr(tl.constexpr, f"__{name}__", _with_tensors(getattr(tl.constexpr, f"__{name}__"), f"__r{name}__"))
    options = triton_interpreter.interpreter_builder.options
    # Looking for overflow in every addition of integers takes half of the time.
    triton_interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)


def _with_tensors(operator: Any, reflected: str) -> Any:
    """An operator of the constants of a module, whose result with a tensor is a tensor, as it is when compiled."""

    def applied(constant: Any, other: Any) -> Any:
        if isinstance(other, tl.tensor):
            return getattr(other, reflected)(constant.value)
        return operator(constant, other)

    return applied


def _floats(handle: Any) -> np.ndarray:
    """The numbers of a handle; the interpreter keeps bfloat16 as bit patterns."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _rounding_cast(self: Any, source: Any, target: Any) -> Any:
    before, after = source.dtype.scalar, target.scalar
    if before == tl.bfloat16 and after.is_floating() and after != tl.bfloat16:
        return _Handle(_floats(source).astype(triton_interpreter._get_np_dtype(target)), after)
    if after == tl.bfloat16 and before != tl.bfloat16:
        with np.errstate(invalid="ignore"):  # of NaN, which a GPU casts without a word
            rounded = np.ascontiguousarray(source.data).astype(np.float32).astype(ml_dtypes.bfloat16)
        return _Handle(rounded.view(np.uint16), after)
    return _cast(self, source, target)


def _multiplying_dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        return _Handle(np.matmul(_floats(a), _floats(b)) + accumulator.data, accumulator.dtype.scalar)
    return _dot(self, a, b, accumulator, *rest)


def _tensor_with_index(tensor: Any, scope: Any) -> None:
    """`range` of a tensor: NumPy 2.4 makes no int of an array of one number any more."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))


class _Kept:
    def restore(self) -> None:
        """Keeps the replacements: replacing them around every launch takes longer than most launches."""


_patched: set[int] = set()


def _patch_once(function: Any) -> Any:
    module = id(function.__globals__)
    if module not in _patched:
        _patched.add(module)
        _patch_language(function)
    return _Kept()
