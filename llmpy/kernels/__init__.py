"""The operations of a model and their three backends: reference (NumPy), cpu (Numba) and cuda (Triton).

contract.py lists every operation with arguments and shapes, backend.py loads a backend by name, and defaults.py has
what the backends share. Importing this package loads no backend.
"""

from llmpy.kernels.backend import BACKENDS, backend_of, is_device, load, start
from llmpy.kernels.contract import OPERATIONS, Backend

__all__ = ["BACKENDS", "OPERATIONS", "Backend", "backend_of", "is_device", "load", "start"]
