"""The NVIDIA GPUs of this machine, as the driver's library reports them; without a driver, detection costs nothing."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
CAPABILITY = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and MINOR


@dataclass(frozen=True)
class Card:
    """A GPU: its number, its name, its memory in bytes, and its compute capability."""

    ordinal: int
    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: the newest CUDA release that it supports, and its GPUs, or the problem that it reports."""

    cuda: tuple[int, int]
    cards: tuple[Card, ...] = ()
    problem: str | None = None


def ask() -> Driver | None:
    """The driver and its GPUs; None if there is no driver."""
    try:
        library = ctypes.CDLL(LIBRARY)
        version = ctypes.c_int()
        library.cuDriverGetVersion(ctypes.byref(version))
        cuda = version.value // 1000, version.value % 1000 // 10
        if status := library.cuInit(0):
            return Driver(cuda, problem=None if status == NO_DEVICE else _words(library, status))
        count = ctypes.c_int()
        if status := library.cuDeviceGetCount(ctypes.byref(count)):
            return Driver(cuda, problem=_words(library, status))
        return Driver(cuda, tuple(_card(library, ordinal) for ordinal in range(count.value)))
    except (OSError, AttributeError):  # no such library, or a stub of it
        return None


def _card(library: ctypes.CDLL, ordinal: int) -> Card:
    device, name, memory, number = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in CAPABILITY:
        library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    return Card(ordinal, name.value.decode(errors="replace"), memory.value, (capability[0], capability[1]))


def _words(library: ctypes.CDLL, status: int) -> str:
    words = ctypes.c_char_p()
    library.cuGetErrorString(status, ctypes.byref(words))
    return words.value.decode(errors="replace") if words.value else f"error {status}"
