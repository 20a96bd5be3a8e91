"""AMX in slow motion: its instructions in NumPy, so that all that stands on them runs, and is tested, on any processor.

`LLMPY_ISA=amx-emulated` chooses it. There is one set of registers, so there may be one thread only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding

PREFIX = "llmpy_emulated_"
_registers = np.zeros((8, 16, 16), np.uint32)
_register, _address, _stride = ctypes.c_uint8, ctypes.c_void_p, ctypes.c_int64
_kept: list[Any] = []  # the functions must outlive the compiled code that calls them


def _instruction(*kinds: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A function that compiled code calls by the name of the instruction."""

    def install(function: Callable[..., None]) -> Callable[..., None]:
        callback = ctypes.CFUNCTYPE(None, *kinds)(function)
        _kept.append(callback)
        address = ctypes.cast(callback, ctypes.c_void_p).value
        assert address is not None
        binding.add_symbol(PREFIX + function.__name__, address)
        return function

    return install


def _row(address: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint32 * 16).from_address(address))


@_instruction(_address)
def ldtilecfg(address: int) -> None:
    config = bytes((ctypes.c_uint8 * 64).from_address(address))
    assert config[0] == 1, "palette 1 is the only one"
    assert set(config[48:56]) == {16}
    assert set(config[16:32:2]) == {64}


@_instruction()
def tilerelease() -> None:
    _registers[:] = 0xFFFFFFFF  # NaN: whoever reads a register after this finds out


@_instruction(_register)
def tilezero(register: int) -> None:
    _registers[register] = 0


@_instruction(_register, _address, _stride)
def tileloadd64(register: int, address: int, stride: int) -> None:
    for i in range(16):
        _registers[register, i] = _row(address + i * stride)


@_instruction(_register, _address, _stride)
def tilestored64(register: int, address: int, stride: int) -> None:
    for i in range(16):
        _row(address + i * stride)[:] = _registers[register, i]


@_instruction(_register, _register, _register)
def tdpbf16ps(sums: int, a: int, b: int) -> None:
    """sums[m, n] += sum over pairs k: a[m, k] . b[k, n]"""
    total = _registers[sums].view(np.float32)
    for shift in (0, 16):  # the lower number of each pair, then the upper
        x, y = ((_registers[r] >> shift << 16).view(np.float32) for r in (a, b))
        total += x @ y
