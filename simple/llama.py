"""Llama 2 in one file: reads a model and a tokenizer of llama2.c, and writes text, in NumPy.

    python llama.py stories15M.bin                              tells a story, with the tokenizer in tokenizer.bin
    python llama.py stories15M.bin -t 0 -i "Once upon a time"   continues a prompt with the likeliest tokens
    python llama.py stories260K.bin -z tok512.bin -s 42         another tokenizer, and a fixed seed

Flags, output and random numbers are those of llama2.c's run.c: the same seed gives the same text, unless the rounding
of float32 decides between two tokens. NumPy uses all processors for a large matrix; on a busy machine,
OPENBLAS_NUM_THREADS=1 in the environment is faster.

Read from top to bottom: layers, model, tokenizer, sampling, generation, command line.

Sizes: C channels, L layers, NH query heads and NKV key/value heads of size hs = C/NH, H hidden channels of the
feed-forward network, V tokens in the vocabulary, at most T positions. The model reads one token at a time, so an
activation is one vector [C] and most of the time goes into matrix @ vector. All numbers are float32.
"""

import argparse
import math
import os
import re
import struct
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

# ----------------------------------------------------------------------------------------------------------------------
# The layers.


def rmsnorm(x, w):
    """x [C], w [C] -> [C], x / (root of the mean of x^2) * w (Zhang and Sennrich 2019)"""
    return x * (1 / math.sqrt(x @ x / len(x) + 1e-5)) * w


def rope_table(T, hs):
    """complex64 [T, hs/2]: entry (pos, i) is cos(angle) + j sin(angle) for angle = pos / 10000^(2i/hs)."""
    frequencies = 1 / np.float32(10000) ** (np.arange(0, hs, 2, dtype=np.float32) / np.float32(hs))
    angles = np.arange(T, dtype=np.float32)[:, None] * frequencies
    table = np.empty((T, hs // 2), np.complex64)
    table.real, table.imag = np.cos(angles), np.sin(angles)
    return table


def rope(x, rotation):
    """x [heads, hs], rotation complex64 [hs/2] -> [heads, hs], x rotated for its position (Su et al. 2021).

    Channels 2i and 2i+1 are the coordinates of a point in a plane. As a complex number, the point is rotated by one
    multiplication. The score of a query and a key then depends on the distance of their positions.
    """
    return (x.view(np.complex64) * rotation).view(np.float32)


def softmax(x):
    """x [..., n] -> exp(x) / sum(exp(x)) over the last axis. Subtracting the maximum avoids overflow."""
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(q, keys, values):
    """q [NH, hs], keys and values [n, NKV, hs] of n positions -> [C], for each query head a weighted mean of values.

    NH/NKV query heads in a row share one key/value head (grouped-query attention, Ainslie et al. 2023).
    """
    (NH, hs), NKV = q.shape, keys.shape[1]
    scores = q.reshape(NKV, NH // NKV, hs) @ keys.transpose(1, 2, 0)  # [NKV, NH/NKV, n]
    weights = softmax(scores / math.sqrt(hs))
    return (weights @ values.transpose(1, 0, 2)).reshape(NH * hs)


def swiglu(h1, h3):
    """h1 [H], h3 [H] -> silu(h1) * h3 [H], with silu(x) = x / (1 + exp(-x)) (Shazeer 2020)"""
    return h1 / (1 + np.exp(-h1)) * h3


# ----------------------------------------------------------------------------------------------------------------------
# The model.


@dataclass(frozen=True)
class Config:
    """The sizes in the header of a model file, in the order of the file."""

    C: int
    H: int
    L: int
    NH: int
    NKV: int
    V: int
    T: int

    @property
    def hs(self):
        """Channels of one head."""
        return self.C // self.NH


def weight_shapes(config, shared):
    """The tensors of a model file in their order; a matrix is stored as [outputs, inputs].

    With shared = True, wcls, the classifier that makes the logits, is the token embedding.
    """
    C, H, L, V, T = config.C, config.H, config.L, config.V, config.T
    KV = config.NKV * config.hs
    # fmt: off
    shapes = {
        "token_embedding": (V, C),
        "rms_att": (L, C),
        "wq": (L, C, C), "wk": (L, KV, C), "wv": (L, KV, C), "wo": (L, C, C),
        "rms_ffn": (L, C),
        "w1": (L, H, C), "w2": (L, C, H), "w3": (L, H, C),
        "rms_final": (C,),
        "rope_cos": (T, config.hs // 2), "rope_sin": (T, config.hs // 2),  # not used: rope_table has the same numbers
    }
    # fmt: on
    return shapes if shared else shapes | {"wcls": (V, C)}


class Llama:
    """A model with its KV cache: the keys and values of all positions so far, for the attention of later tokens."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.keys, self.values = np.zeros((2, config.L, config.T, config.NKV, config.hs), np.float32)
        self.rope_table = rope_table(config.T, config.hs)

    @np.errstate(over="ignore", invalid="ignore")  # exp may become infinite in swiglu; generate checks the logits
    def forward(self, token, pos):
        """The token at position pos -> logits [V] for the next token. Call for pos = 0, 1, 2, ... in this order."""
        w, NH, NKV, hs = self.weights, self.config.NH, self.config.NKV, self.config.hs
        rotation = self.rope_table[pos]
        x = w.token_embedding[token].copy()  # [C], the residual stream
        for i in range(self.config.L):
            norm = rmsnorm(x, w.rms_att[i])
            q = rope((w.wq[i] @ norm).reshape(NH, hs), rotation)
            self.keys[i, pos] = rope((w.wk[i] @ norm).reshape(NKV, hs), rotation)
            self.values[i, pos] = (w.wv[i] @ norm).reshape(NKV, hs)
            x += w.wo[i] @ attention(q, self.keys[i, : pos + 1], self.values[i, : pos + 1])
            norm = rmsnorm(x, w.rms_ffn[i])
            x += w.w2[i] @ swiglu(w.w1[i] @ norm, w.w3[i] @ norm)
        return w.wcls @ rmsnorm(x, w.rms_final)


def fail(what, where, todo):
    """Ends the program with one line for the person at the keyboard."""
    sys.exit(f"error: {what} ({where}): {todo}")


def read_model(path):
    """The model in a file of llama2.c, version 0. The weights stay in the file, which is mapped into memory."""
    try:
        with open(path, "rb") as file:
            header, size = file.read(28), os.fstat(file.fileno()).st_size
    except OSError as error:
        fail("cannot read the model", f"{path}: {error.strerror}", "check the path")
    if header[:4] == b"24ka":
        fail("the model has version 1 or 2 of llama2.c", path, "export the model again with --version 0")
    if len(header) < 28:
        fail(f"the model has only {size} bytes", path, "copy or download the file again")
    C, H, L, NH, NKV, V, T = struct.unpack("<7i", header)
    shared, config = V > 0, Config(C, H, L, NH, NKV, abs(V), T)  # a negative V says that the file has a wcls of its own
    if min(vars(config).values()) < 1 or C % NH or NH % NKV or config.hs % 2:
        fail("impossible sizes in the header of the model", path, "give a model.bin of llama2.c, version 0")
    shapes = weight_shapes(config, shared)
    expected = 28 + 4 * sum(map(math.prod, shapes.values()))
    if size != expected:
        fail(f"the model has {size} bytes instead of {expected}", path, "copy or download the file again")
    memory, start, weights = np.memmap(path, "<f4", "r", 28).view(np.ndarray), 0, SimpleNamespace()
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        setattr(weights, name, memory[start:end].reshape(shape))
        start = end
    if shared:
        weights.wcls = weights.token_embedding
    return Llama(config, weights)


# ----------------------------------------------------------------------------------------------------------------------
# The tokenizer: byte pair encoding, the vocabulary of SentencePiece.

BOS = 1  # the beginning of a text; where the model writes BOS, the text has ended
FIRST_BYTE = 3  # tokens 3 ... 258 stand for the bytes 0 ... 255


class Tokenizer:
    """Pieces of text and their scores: token i is the text pieces[i] (bytes)."""

    def __init__(self, pieces, scores):
        self.pieces, self.scores = pieces, scores
        self.token_of = {piece: token for token, piece in reversed(list(enumerate(pieces)))}

    def encode(self, text):
        """Text -> tokens, BOS first.

        The text gets a space in front and becomes characters. A character that is not in the vocabulary becomes its
        UTF-8 bytes. Then the two neighbours whose joined piece has the highest score are merged, until none are left.
        """
        tokens = [BOS]
        for character in " " + text if text else "":
            piece = character.encode("utf-8", "surrogateescape")
            token = self.token_of.get(piece)
            tokens += [FIRST_BYTE + byte for byte in piece] if token is None else [token]
        while pairs := list(self.mergeable(tokens)):
            _, i, merged = max(pairs, key=lambda pair: pair[0])  # of equal scores, the first
            tokens[i : i + 2] = [merged]
        return tokens

    def mergeable(self, tokens):
        """Yields (score, i, merged) for all neighbours tokens[i], tokens[i + 1] that can become the token merged."""
        for i in range(len(tokens) - 1):
            merged = self.token_of.get(self.pieces[tokens[i]] + self.pieces[tokens[i + 1]])
            if merged is not None:
                yield self.scores[merged], i, merged

    def decode(self, previous, token):
        """The bytes to print for a token after the previous token. As in run.c, a byte is printed only if it is ASCII.

        After BOS, the space that encode puts in front of every text is dropped.
        """
        piece = self.pieces[token]
        if previous == BOS:
            piece = piece.removeprefix(b" ")
        if byte := re.match(rb"<0x([0-9a-fA-F]{2})", piece):
            piece = bytes([int(byte[1], 16)])
        hidden = len(piece) == 1 and not (32 <= piece[0] < 127 or piece.isspace())  # part of a character, for example
        return b"" if hidden else piece


def read_tokenizer(path, V):
    """The tokenizer with V tokens in a tokenizer.bin of llama2.c: for each token its score, length and bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        fail("cannot read the tokenizer", f"{path}: {error.strerror}", "give the path of a tokenizer.bin with -z")
    pieces, scores, start = [], [], 4  # the first 4 bytes are the length of the longest piece
    while start + 8 <= len(data):
        score, length = struct.unpack_from("<fi", data, start)
        end = start + 8 + length
        if not 0 <= length <= len(data) - start - 8:
            break
        pieces.append(data[start + 8 : end])
        scores.append(score)
        start = end
    if start != len(data):
        fail("the tokenizer is cut off or damaged", path, "give a tokenizer.bin of llama2.c with -z")
    if len(pieces) != V or V < FIRST_BYTE + 256:
        fail(f"the tokenizer has {len(pieces)} tokens, the model {V}", path, "give the tokenizer of this model with -z")
    return Tokenizer(pieces, scores)


# ----------------------------------------------------------------------------------------------------------------------
# Sampling, number for number as in run.c.


def xorshift(state):
    """Yields float32 numbers in [0, 1) without end: xorshift64* (Vigna 2016). state is an integer other than 0."""
    mask = 2**64 - 1
    while True:
        state ^= state >> 12
        state ^= state << 25 & mask
        state ^= state >> 27
        yield np.float32(((state * 0x2545F4914F6CDD1D & mask) >> 40) / 2**24)


def sample_mult(probs, coin):
    """probs [n], coin float32 -> the first index at which the running sum of probs exceeds the coin."""
    index = np.searchsorted(np.cumsum(probs), coin, side="right")
    return min(int(index), len(probs) - 1)  # rounding may leave the whole sum below the coin


def sample_topp(probs, topp, coin):
    """sample_mult among the likeliest tokens: the fewest whose probabilities exceed topp (Holtzman et al. 2019).

    Only tokens above the cutoff are sorted: the n - 1 others would not reach 1 - topp if all were below the cutoff.
    """
    cutoff = (1 - topp) / np.float32(len(probs) - 1)
    tokens = np.flatnonzero(probs >= cutoff)
    tokens = tokens[np.argsort(-probs[tokens], kind="stable")]  # descending; of equal probabilities, the lower token
    tokens = tokens[: sample_mult(probs[tokens], topp) + 1]
    total = np.cumsum(probs[tokens])[-1]
    return int(tokens[sample_mult(probs[tokens], coin * total)])


def sample(logits, temperature, topp, coins):
    """logits [V] -> a token. coins yields random numbers; temperature 0 takes none."""
    if temperature == 0:
        return int(np.argmax(logits))
    probs, coin = softmax(logits / temperature), next(coins)
    return sample_topp(probs, topp, coin) if 0 < topp < 1 else sample_mult(probs, coin)


# ----------------------------------------------------------------------------------------------------------------------
# Generation and the command line.


def generate(model, prompt, steps, temperature, topp, seed):
    """Yields at most steps tokens: the prompt without its BOS, then the tokens of the model, until the model ends."""
    token, coins = prompt[0], xorshift(seed)
    for pos in range(steps):
        logits = model.forward(token, pos)
        if pos + 1 < len(prompt):
            token = prompt[pos + 1]
        elif math.isfinite(logits.sum()):
            token = sample(logits, np.float32(temperature), np.float32(topp), coins)
        else:
            fail("the logits are not finite", f"position {pos}", "copy or download the model again")
        if token == BOS:
            break
        yield token


def main():
    """Parses the command line, writes the text to stdout as it comes, and the speed to stderr."""
    parser = argparse.ArgumentParser(description="Write text with a Llama 2 model, in NumPy.")
    parser.add_argument("model", help="weights: a model.bin of llama2.c, version 0")
    parser.add_argument("--temperature", "-t", type=float, default=1.0, help="0: the likeliest token (default: 1.0)")
    parser.add_argument("--top-p", "-p", type=float, default=0.9, help="0 or 1: among all tokens (default: 0.9)")
    parser.add_argument("--seed", "-s", type=int, default=0, help="of the random numbers (default: the time)")
    parser.add_argument("--steps", "-n", type=int, default=256, help="0: as many as possible (default: 256)")
    parser.add_argument("--prompt", "-i", default="", help="the beginning of the text")
    parser.add_argument("--tokenizer", "-z", default="tokenizer.bin", help="(default: %(default)s)")
    args = parser.parse_args()
    model = read_model(args.model)
    tokenizer = read_tokenizer(args.tokenizer, model.config.V)
    steps = args.steps if 0 < args.steps < model.config.T else model.config.T
    topp = args.top_p if 0 <= args.top_p <= 1 else 0.9
    seed = args.seed % 2**64 or int(time.time())
    previous, count, start = BOS, 0, 0.0
    for token in generate(model, tokenizer.encode(args.prompt), steps, max(args.temperature, 0.0), topp, seed):
        sys.stdout.buffer.write(tokenizer.decode(previous, token))
        sys.stdout.buffer.flush()
        previous, count = token, count + 1
        start = start or time.perf_counter()  # the first token also reads the weights from the disk
    print(flush=True)
    if count > 1:
        print(f"achieved tok/s: {(count - 1) / (time.perf_counter() - start):f}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:  # nobody reads on, as in `llama.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
