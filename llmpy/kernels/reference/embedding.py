"""Token and position embedding: x[b, t] = wte[tokens[b, t]] + wpe[start + t]; without wpe, only the tokens' rows."""

import numpy as np


def embedding_forward(x, tokens, wte, wpe=None, start=0):
    """tokens int32 [B, T], wte [V, C], wpe [maxT, C] -> x [B, T, C]; `start` is the position of the first token."""
    x[:] = wte[tokens]
    if wpe is not None:
        x += wpe[start : start + tokens.shape[1]]


def embedding_backward(dwte, dwpe, dx, tokens):
    """dx [B, T, C], tokens [B, T]; accumulates dwte [V, C] and dwpe [maxT, C], which may be None."""
    np.add.at(dwte, tokens, dx)
    if dwpe is not None:
        dwpe[: tokens.shape[1]] += dx.sum(0)
