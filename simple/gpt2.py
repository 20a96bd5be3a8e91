"""GPT-2 in one file: every layer forward and backward, AdamW, the training loop and sampling, in NumPy.

    python gpt2.py                          trains a tiny model on this file's own text, then lets the model write
    python gpt2.py --model gpt2_124M.bin    trains GPT-2 124M on Tiny Shakespeare, as llm.c's train_gpt2.c does
    python gpt2.py --check gpt2_124M_debug_state.bin     compares with PyTorch's numbers, as llm.c's test_gpt2.c does

Read from top to bottom: layers, model, optimizer, files, sampling, training, checking, command line.

Sizes: B sequences of T tokens each, N = B*T rows, C channels, L layers, NH heads of size hs = C/NH, V tokens in the
vocabulary. All activations are rows: position t of sequence b is row b*T + t.

Two conventions hold everywhere. A function writes into its first arguments and allocates nothing large. A name that
begins with d is a gradient: dx is the derivative of the loss with respect to x, and has the shape of x.
"""

import argparse
import glob
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np

# ----------------------------------------------------------------------------------------------------------------------
# The layers. Each forward function has a backward function, which applies the chain rule to the same formula.


def embedding_forward(x, tokens, wte, wpe):
    """tokens [B, T], wte [V, C], wpe [maxT, C] -> x [N, C], the token's vector plus the position's vector."""
    B, T = tokens.shape
    np.take(wte, tokens.reshape(-1), axis=0, out=x, mode="clip")  # "clip" writes to x without a buffer in between
    x.reshape(B, T, -1)[:] += wpe[:T]


def embedding_backward(dwte, dwpe, dx, tokens):
    """dx [N, C] -> dwte [V, C] is accumulated (+=), since lm_head uses wte too; dwpe [maxT, C] is overwritten."""
    B, T = tokens.shape
    np.add.at(dwte, tokens.reshape(-1), dx)  # unlike dwte[tokens] += dx, adds every occurrence of a repeated token
    np.sum(dx.reshape(B, T, -1), axis=0, out=dwpe[:T])
    dwpe[T:] = 0


def layernorm_forward(y, norm, rstd, x, w, b):
    """x [N, C] -> y = norm * w + b; norm [N, C] is x with mean 0 and variance 1 in each row; rstd [N, 1] = 1/std."""
    np.subtract(x, x.mean(axis=1, keepdims=True), out=norm)
    variance = np.einsum("nc,nc->n", norm, norm) / x.shape[1]
    rstd[:, 0] = 1 / np.sqrt(variance + np.float32(1e-5))
    norm *= rstd
    np.multiply(norm, w, out=y)
    y += b


def layernorm_backward(dx, dw, db, dy, norm, rstd, w):
    """dy [N, C] -> dx [N, C] is accumulated (+=), dw [C] and db [C] are overwritten. dy is used up as scratch.

    A change of x also moves the mean and the variance of the row. So two parts of the gradient have no effect and are
    subtracted: the mean of the gradient (it would shift the row) and the part along norm (it would stretch the row).
    """
    np.einsum("nc,nc->c", dy, norm, out=dw)
    np.sum(dy, axis=0, out=db)
    dy *= w  # now the gradient of norm
    along = np.einsum("nc,nc->n", dy, norm)[:, None] / dy.shape[1]
    dy -= dy.mean(axis=1, keepdims=True)
    dy -= norm * along
    dy *= rstd
    dx += dy


def matmul_forward(y, x, w, b=None):
    """x [N, I], w [O, I], b [O] -> y [N, O] = x @ w.T + b"""
    np.matmul(x, w.T, out=y)
    if b is not None:
        y += b


def matmul_backward(dx, dw, db, dy, x, w):
    """dy [N, O] -> dx [N, I], dw [O, I], db [O] (None without a bias), all overwritten."""
    np.matmul(dy, w, out=dx)
    np.matmul(dy.T, x, out=dw)
    if db is not None:
        np.sum(dy, axis=0, out=db)


def softmax(x):
    """x [..., n] -> exp(x) / sum(exp(x)) over the last axis, in place. Subtracting the maximum avoids overflow."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)


def split_heads(x, B, NH, parts):
    """x [N, parts*C] -> a view [parts, B, NH, T, hs]; with parts = 3, qkv becomes queries, keys and values."""
    N, channels = x.shape
    return x.reshape(B, N // B, parts, NH, channels // (parts * NH)).transpose(2, 0, 3, 1, 4)


def attention_forward(y, attn, qkv):
    """qkv [N, 3*C] -> y [N, C]; attn [B, NH, T, T]: row t holds the weights of positions up to t."""
    B, NH, T, _ = attn.shape
    q, k, v = split_heads(qkv, B, NH, 3)
    np.matmul(q, k.swapaxes(-1, -2), out=attn)
    attn *= 1 / math.sqrt(q.shape[-1])
    future = np.triu(np.ones((T, T), bool), 1)
    np.copyto(attn, -np.inf, where=future)  # causal mask: no position sees a later token
    softmax(attn)
    np.matmul(attn, v, out=split_heads(y, B, NH, 1)[0])


def attention_backward(dqkv, dattn, dy, qkv, attn):
    """dy [N, C] -> dqkv [N, 3*C], overwritten; dattn [B, NH, T, T] is scratch."""
    B, NH, _, _ = attn.shape
    q, k, v = split_heads(qkv, B, NH, 3)
    dq, dk, dv = split_heads(dqkv, B, NH, 3)
    dy = split_heads(dy, B, NH, 1)[0]
    np.matmul(attn.swapaxes(-1, -2), dy, out=dv)
    np.matmul(dy, v.swapaxes(-1, -2), out=dattn)
    # softmax backward: dscore = attn * (dattn - the mean of dattn, weighted by attn)
    dattn -= np.einsum("bhts,bhts->bht", dattn, attn)[..., None]
    dattn *= attn
    dattn *= 1 / math.sqrt(q.shape[-1])
    np.matmul(dattn, k, out=dq)
    np.matmul(dattn.swapaxes(-1, -2), q, out=dk)


GELU_SCALE = math.sqrt(2 / math.pi)


def gelu_forward(y, tanh, x):
    """x [N, 4*C] -> y = x/2 * (1 + tanh(u)) with u = sqrt(2/pi) * (x + 0.044715 * x^3); tanh [N, 4*C] is saved."""
    np.multiply(x, x, out=tanh)
    tanh *= 0.044715 * GELU_SCALE
    tanh += GELU_SCALE
    tanh *= x
    np.tanh(tanh, out=tanh)
    np.add(tanh, 1, out=y)
    y *= x
    y *= 0.5


def gelu_backward(dx, dy, x, tanh):
    """dy [N, 4*C] -> dx = dy * ((1 + tanh)/2 + x/2 * (1 - tanh^2) * du/dx), overwritten. tanh is used up as scratch."""
    np.multiply(x, x, out=dx)
    dx *= 3 * 0.044715 * GELU_SCALE
    dx += GELU_SCALE  # du/dx
    dx *= x
    np.subtract(1, tanh, out=tanh)
    dx *= tanh
    dx += 1
    np.subtract(2, tanh, out=tanh)  # 1 + tanh, since 1 - tanh^2 = (1 - tanh) * (1 + tanh)
    dx *= tanh
    dx *= 0.5
    dx *= dy


def residual_forward(y, x):
    """y [N, C] += x [N, C]. Backward is the identity for both: a block's gradient is accumulated into dresidual."""
    y += x


def crossentropy_forward(logits, targets):
    """logits [N, V], targets [N] -> the mean loss: -log of the probability of each target. logits become probs."""
    rows = max(1, 2**16 // logits.shape[1])  # work on as many rows as fit into the processor's cache
    for start in range(0, len(logits), rows):
        softmax(logits[start : start + rows])
    probs = logits[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(probs, np.finfo(np.float32).tiny)).mean())


def crossentropy_backward(probs, targets):
    """probs [N, V], targets [N] -> in place, the gradient of the mean loss: (probs - one_hot(targets)) / N"""
    N = len(targets)
    probs[np.arange(N), targets] -= 1
    probs *= 1 / N


# ----------------------------------------------------------------------------------------------------------------------
# The model: one array holds all parameters, another all activations. Each tensor is a view into one of the two.


@dataclass(frozen=True)
class Config:
    """The sizes of a model, as in the header of an llm.c file. The defaults are those of GPT-2 124M."""

    max_seq_len: int = 1024
    V: int = 50257
    L: int = 12
    NH: int = 12
    C: int = 768

    @property
    def padded_vocab(self):
        """The number of rows of wte: V rounded up to a multiple of 128. The rows after V stay zero."""
        return (self.V + 127) // 128 * 128


def parameter_shapes(config):
    """The 16 parameters of GPT-2 in the order of an llm.c file. A weight is stored as [outputs, inputs]."""
    L, C = config.L, config.C
    # fmt: off
    return {
        "wte": (config.padded_vocab, C),  # token embedding, and the weight of lm_head
        "wpe": (config.max_seq_len, C),  # position embedding
        "ln1w": (L, C), "ln1b": (L, C),
        "qkvw": (L, 3 * C, C), "qkvb": (L, 3 * C),
        "attprojw": (L, C, C), "attprojb": (L, C),
        "ln2w": (L, C), "ln2b": (L, C),
        "fcw": (L, 4 * C, C), "fcb": (L, 4 * C),  # the first matmul of the MLP
        "fcprojw": (L, C, 4 * C), "fcprojb": (L, C),  # the second matmul of the MLP
        "lnfw": (C,), "lnfb": (C,),
    }


def activation_shapes(config, B, T):
    """Saved activations in the order of forward, then the gradients of activations, which all layers share."""
    N, V, L, NH, C = B * T, config.V, config.L, config.NH, config.C
    # fmt: off
    return {
        "residual": (2 * L + 1, N, C),  # the embedding, then the sum after each attention and after each MLP
        "ln1": (L, N, C), "ln1_norm": (L, N, C), "ln1_rstd": (L, N, 1),
        "qkv": (L, N, 3 * C), "attn": (L, B, NH, T, T), "attn_out": (L, N, C),
        "ln2": (L, N, C), "ln2_norm": (L, N, C), "ln2_rstd": (L, N, 1),
        "mlp": (L, N, 4 * C), "mlp_tanh": (L, N, 4 * C), "mlp_gelu": (L, N, 4 * C),
        "lnf": (N, C), "lnf_norm": (N, C), "lnf_rstd": (N, 1),
        "logits": (N, V),  # then the probabilities, then dlogits
        "dresidual": (N, C), "dln": (N, C), "dqkv": (N, 3 * C), "dattn": (B, NH, T, T), "dattn_out": (N, C),
        "dmlp": (N, 4 * C), "dmlp_gelu": (N, 4 * C),
    }


def count(shapes):
    """The number of elements of all tensors together."""
    return sum(math.prod(shape) for shape in shapes.values())


def views(memory, shapes):
    """memory [count(shapes)] or longer -> a namespace of views, one after the other: result.wte, result.wpe, ..."""
    result, start = SimpleNamespace(), 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        setattr(result, name, memory[start:end].reshape(shape))
        start = end
    return result


BLOCK = 2**15  # elements that AdamW updates at a time


class GPT2:
    """A model with its gradients, the two moments of AdamW, and activations for at most B sequences of T tokens."""

    def __init__(self, config, B, T):
        self.config, self.B, self.T = config, B, T
        shapes = parameter_shapes(config)
        self.memory = np.zeros(count(shapes), np.float32)
        self.grad_memory, self.m, self.v = (np.zeros_like(self.memory) for _ in range(3))
        self.params, self.grads = views(self.memory, shapes), views(self.grad_memory, shapes)
        self.act_memory = np.zeros(count(activation_shapes(config, B, T)), np.float32)
        self.tokens = self.acts = None

    def forward(self, tokens):
        """tokens int [b, t] with b <= B and t <= T -> logits [b*t, V]. A smaller batch uses the start of the memory."""
        self.tokens = tokens
        self.acts = a = views(self.act_memory, activation_shapes(self.config, *tokens.shape))
        p = self.params
        embedding_forward(a.residual[0], tokens, p.wte, p.wpe)
        for i in range(self.config.L):
            x, middle, out = a.residual[2 * i : 2 * i + 3]
            layernorm_forward(a.ln1[i], a.ln1_norm[i], a.ln1_rstd[i], x, p.ln1w[i], p.ln1b[i])
            matmul_forward(a.qkv[i], a.ln1[i], p.qkvw[i], p.qkvb[i])
            attention_forward(a.attn_out[i], a.attn[i], a.qkv[i])
            matmul_forward(middle, a.attn_out[i], p.attprojw[i], p.attprojb[i])
            residual_forward(middle, x)
            layernorm_forward(a.ln2[i], a.ln2_norm[i], a.ln2_rstd[i], middle, p.ln2w[i], p.ln2b[i])
            matmul_forward(a.mlp[i], a.ln2[i], p.fcw[i], p.fcb[i])
            gelu_forward(a.mlp_gelu[i], a.mlp_tanh[i], a.mlp[i])
            matmul_forward(out, a.mlp_gelu[i], p.fcprojw[i], p.fcprojb[i])
            residual_forward(out, middle)
        layernorm_forward(a.lnf, a.lnf_norm, a.lnf_rstd, a.residual[-1], p.lnfw, p.lnfb)
        matmul_forward(a.logits, a.lnf, p.wte[: self.config.V])  # lm_head
        return a.logits

    def loss(self, tokens, targets):
        """tokens, targets int [b, t] -> the mean loss in nats."""
        return crossentropy_forward(self.forward(tokens), targets.reshape(-1))

    def backward(self, targets):
        """Overwrites all gradients: the layers of forward in reverse order. Call loss(tokens, targets) before."""
        a, p, g = self.acts, self.params, self.grads
        V, tokens = self.config.V, self.tokens
        crossentropy_backward(a.logits, targets.reshape(-1))
        matmul_backward(a.dln, g.wte[:V], None, a.logits, a.lnf, p.wte[:V])
        a.dresidual[:] = 0
        layernorm_backward(a.dresidual, g.lnfw, g.lnfb, a.dln, a.lnf_norm, a.lnf_rstd, p.lnfw)
        for i in reversed(range(self.config.L)):
            matmul_backward(a.dmlp_gelu, g.fcprojw[i], g.fcprojb[i], a.dresidual, a.mlp_gelu[i], p.fcprojw[i])
            gelu_backward(a.dmlp, a.dmlp_gelu, a.mlp[i], a.mlp_tanh[i])
            matmul_backward(a.dln, g.fcw[i], g.fcb[i], a.dmlp, a.ln2[i], p.fcw[i])
            layernorm_backward(a.dresidual, g.ln2w[i], g.ln2b[i], a.dln, a.ln2_norm[i], a.ln2_rstd[i], p.ln2w[i])
            matmul_backward(a.dattn_out, g.attprojw[i], g.attprojb[i], a.dresidual, a.attn_out[i], p.attprojw[i])
            attention_backward(a.dqkv, a.dattn, a.dattn_out, a.qkv[i], a.attn[i])
            matmul_backward(a.dln, g.qkvw[i], g.qkvb[i], a.dqkv, a.ln1[i], p.qkvw[i])
            layernorm_backward(a.dresidual, g.ln1w[i], g.ln1b[i], a.dln, a.ln1_norm[i], a.ln1_rstd[i], p.ln1w[i])
        embedding_backward(g.wte, g.wpe, a.dresidual, tokens)

    def update(self, step, learning_rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        """One AdamW step on all parameters, step = 1, 2, ... (Loshchilov and Hutter 2017).

        m and v are running means of the gradient and of its square. Both start at zero, and dividing by 1 - beta^step
        corrects for that. Each line of the formula would read and write half a gigabyte, so the work goes through the
        arrays in blocks that fit into the processor's cache; one thread per core takes every n-th block.
        The gradients are used up as scratch.
        """
        m_scale, v_scale = learning_rate / (1 - beta1**step), 1 / (1 - beta2**step)
        decay, workers = 1 - learning_rate * weight_decay, os.cpu_count()

        def update_blocks(first):
            for start in range(first, self.memory.size, workers * BLOCK):
                block = slice(start, start + BLOCK)
                p, g, m, v = self.memory[block], self.grad_memory[block], self.m[block], self.v[block]
                m *= beta1
                m += g * (1 - beta1)
                v *= beta2
                v += np.square(g, out=g) * (1 - beta2)
                change = np.sqrt(v * v_scale)
                change += eps
                np.divide(m, change, out=change)
                change *= m_scale
                p *= decay
                p -= change

        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(update_blocks, range(0, workers * BLOCK, BLOCK)))


# ----------------------------------------------------------------------------------------------------------------------
# Files, as llm.c writes them: a header of 256 int32, then the data, all little-endian.

HEADER_BYTES = 1024
MODEL, STATE, SHARD, TOKENIZER = 20240326, 20240327, 20240520, 20240328  # the first number of each kind of file


def fail(what, where, todo):
    """Ends the program with one line for the person at the keyboard."""
    sys.exit(f"error: {what} ({where}): {todo}")


def read_header(path, magic, version, kind):
    """The 256 numbers at the start of the file, checked; ends the program if the file is missing or another kind."""
    try:
        header = np.fromfile(path, "<i4", 256)
    except OSError as error:
        fail(f"cannot read the {kind}", f"{path}: {error.strerror}", "check the path")
    if len(header) == 0 or header[0] != magic:
        fail(f"not a {kind}", path, f"give a file of llm.c that begins with {magic}")
    if len(header) < 256:
        fail(f"the {kind} is cut off", path, "copy or write the file again")
    if header[1] != version:
        fail(f"unknown version {header[1]} of a {kind}", path, f"write the file again as version {version}")
    return [int(number) for number in header]


def check_size(path, expected, kind):
    """Ends the program if the file is shorter or longer than its header promises."""
    size = os.path.getsize(path)
    if size != expected:
        fail(f"the {kind} has {size} bytes instead of {expected}", path, "copy or write the file again")


def read_config(path):
    """The sizes of the model in an llm.c file."""
    maxT, V, L, NH, C, Vp = read_header(path, MODEL, 3, "float32 GPT-2 model")[2:8]
    config = Config(maxT, V, L, NH, C)
    if min(maxT, V, L, NH, C) < 1 or C % NH or Vp != config.padded_vocab:
        fail("impossible sizes in the header of the model", path, "copy or write the file again")
    check_size(path, HEADER_BYTES + 4 * count(parameter_shapes(config)), "model")
    return config


def read_model(path, config, B, T):
    """The model in an llm.c file, with memory for B sequences of T tokens."""
    model = GPT2(config, B, T)
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        file.readinto(model.memory.view(np.uint8))
    return model


def open_shards(pattern, B, T):
    """The token files that match a pattern, as {path: uint16 [n]}, read from the disk only where a batch needs them."""
    shards = {}
    for path in sorted(glob.glob(pattern)):
        n = read_header(path, SHARD, 1, "shard of GPT-2 tokens")[2]
        check_size(path, HEADER_BYTES + 2 * n, "shard")
        if n < B * T + 1:
            fail(f"{n} tokens do not fill a batch of {B} x {T}", path, "choose a smaller batch")
        shards[path] = np.memmap(path, "<u2", "r", HEADER_BYTES)
    if not shards:
        fail("no file with tokens", pattern, "check the path, or write the shards with `llmpy prepare`")
    return shards


def token_batches(shards, V, B, T, shuffle):
    """Yields (tokens, targets), int64 [B, T] each, without end, in the order of llm.c.

    A batch is B*T consecutive tokens; the targets are the same tokens one position later. With shuffle, each epoch
    permutes the shards, and each shard permutes its batches, with the random numbers of llm.c (Mersenne Twister, 42).
    """
    rng, paths = np.random.RandomState(42), list(shards)

    def permute(items):  # Fisher-Yates, in place
        for i in range(len(items) - 1, 0, -1):
            j = int(rng.randint(0, 2**32, dtype=np.uint32)) % (i + 1)
            items[i], items[j] = items[j], items[i]

    while True:
        if shuffle:
            permute(paths)
        for path in paths:
            starts = list(range(0, len(shards[path]) - B * T, B * T))
            if shuffle:
                permute(starts)
            for start in starts:
                chunk = shards[path][start : start + B * T + 1].astype(np.int64)
                if chunk.max() >= V:
                    fail(f"token {chunk.max()} outside of the vocabulary of {V}", path, "give shards for this model")
                yield chunk[:-1].reshape(B, T), chunk[1:].reshape(B, T)


def read_tokenizer(path, V):
    """(end-of-text token, function from a token to its bytes). Without the file: tiktoken, or else plain numbers."""
    if os.path.exists(path):
        header = read_header(path, TOKENIZER, 2, "tokenizer")
        data, start, table = Path(path).read_bytes(), HEADER_BYTES, []
        for _ in range(header[2]):  # each token is a byte with its length, then its bytes
            if start >= len(data) or start + 1 + data[start] > len(data):
                fail("the tokenizer is cut off", path, "copy or write the file again")
            table.append(data[start + 1 : start + 1 + data[start]])
            start += 1 + data[start]
        if len(table) == V:
            return header[3], table.__getitem__
    elif V == Config.V:
        try:
            import tiktoken  # knows the same tokens

            return V - 1, tiktoken.get_encoding("gpt2").decode_single_token_bytes
        except Exception:  # tiktoken is not installed, or cannot fetch its file
            pass
    return V - 1, lambda token: b"%d " % token


# ----------------------------------------------------------------------------------------------------------------------
# Sampling.


def xorshift(seed):
    """Yields float32 in [0, 1) without end: xorshift64* (Vigna 2016), the random numbers that llm.c samples with."""
    s, mask = seed, 2**64 - 1
    while True:
        s ^= s >> 12
        s ^= (s << 25) & mask
        s ^= s >> 27
        yield np.float32(((s * 0x2545F4914F6CDD1D) & mask) >> 40) / np.float32(2**24)


def sample_mult(probs, coin):
    """probs [V], coin in [0, 1) -> the first token at which the running sum of probs exceeds coin."""
    running_sum = np.cumsum(probs, dtype=np.float32)
    return min(int(np.searchsorted(running_sum, coin, side="right")), len(probs) - 1)


def generate(model, rng, start, length):
    """Yields `length` tokens that the model writes after the token `start`, each sampled from its probabilities.

    For every token, forward runs over all earlier ones, at most the last T. A KV cache would avoid that work.
    """
    tokens = [start]
    for _ in range(length):
        logits = model.forward(np.array([tokens[-model.T :]]))
        probs = logits[-1]
        softmax(probs)
        tokens.append(sample_mult(probs, next(rng)))
        yield tokens[-1]


def show(piece):
    """Writes the bytes of a token to the terminal at once, except single bytes that are control characters."""
    if len(piece) > 1 or piece in b"\t\n\v\f\r" or b" " <= piece <= b"~":
        sys.stdout.flush()
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


# ----------------------------------------------------------------------------------------------------------------------
# Training.


def describe(model):
    """Prints the sizes of a model."""
    c = model.config
    print(f"[GPT-2]\nmax_seq_len: {c.max_seq_len}\nvocab_size: {c.V}\npadded_vocab_size: {c.padded_vocab}")
    print(f"num_layers: {c.L}\nnum_heads: {c.NH}\nchannels: {c.C}\nnum_parameters: {model.memory.size}")


def train(model, batches, val_batches, eot, decode, steps, learning_rate, every=10, length=63, log=1):
    """Trains on `batches` (an iterator) from step 0 to `steps`; prints the loss each `log` steps.

    Each `every` steps: the loss on the first five of val_batches() (a function, so that it can start over). Half as
    often: `length` tokens written by the model, which starts from the token eot; decode(token) gives bytes.
    """
    rng = xorshift(1337)
    for step in range(steps + 1):
        if step % every == 0:
            val_loss = np.mean([model.loss(*batch) for batch in islice(val_batches(), 5)])
            print(f"val loss {val_loss:f}")
        if step > 0 and step % (2 * every) == 0:
            print("generating:\n---")
            for token in generate(model, rng, eot, length):
                show(decode(token))
            print("\n---")
        start = time.perf_counter()
        tokens, targets = next(batches)
        loss = model.loss(tokens, targets)
        model.backward(targets)
        model.update(step + 1, learning_rate)
        elapsed = time.perf_counter() - start
        if step % log == 0:
            print(f"step {step}: train loss {loss:f} (took {elapsed * 1000:f} ms)", flush=True)


def train_llmc(args):
    """Continues the training of a model in an llm.c file, as llm.c's train_gpt2.c does."""
    config, B, T = read_config(args.model), args.batch_size, args.seq_len
    if B < 1 or not 1 <= T <= config.max_seq_len:
        fail(f"impossible batch of {B} x {T} tokens", args.model, f"choose B >= 1 and T from 1 to {config.max_seq_len}")
    train_shards, val_shards = (open_shards(pattern, B, T) for pattern in (args.train_data, args.val_data))
    eot, decode = read_tokenizer(args.tokenizer, config.V)
    model = read_model(args.model, config, B, T)
    describe(model)
    print(f"train dataset num_batches: {sum(map(len, train_shards.values())) // (B * T)}")
    print(f"val dataset num_batches: {sum(map(len, val_shards.values())) // (B * T)}")
    print(f"num_activations: {model.act_memory.size}")
    batches = token_batches(train_shards, config.V, B, T, shuffle=True)
    val_batches = partial(token_batches, val_shards, config.V, B, T, shuffle=False)
    train(model, batches, val_batches, eot, decode, args.steps, args.learning_rate)


def text_batches(text, B, T):
    """text (bytes) -> yields (tokens, targets), int64 [B, T] each, without end: random places, one token per byte."""
    data, rng = np.frombuffer(text, np.uint8), np.random.default_rng(42)
    while True:
        starts = rng.integers(len(data) - T, size=B)
        rows = data[starts[:, None] + np.arange(T + 1)].astype(np.int64)
        yield rows[:, :-1], rows[:, 1:]


def initialize(model, seed):
    """Initial weights of GPT-2: normal with deviation 0.02, less for the two projections that end in the residual."""
    rng = np.random.default_rng(seed)
    for name, p in vars(model.params).items():
        if name in ("ln1w", "ln2w", "lnfw"):
            p[:] = 1
        elif name.endswith("w") or name in ("wte", "wpe"):
            deviation = 0.02 / math.sqrt(2 * model.config.L) if "proj" in name else 0.02
            p[:] = deviation * rng.standard_normal(p.shape, np.float32)
    model.params.wte[model.config.V :] = 0


def train_tiny(steps):
    """Trains a tiny GPT-2 on the text of this file, from random weights, and lets the model write Python."""
    source = Path(__file__).read_bytes()
    split = len(source) * 9 // 10
    print(f"No gpt2_124M.bin here: training a tiny model on the {len(source)} bytes of {Path(__file__).name}.")
    model = GPT2(Config(max_seq_len=32, V=256, L=2, NH=4, C=128), B=16, T=32)
    initialize(model, seed=1337)
    describe(model)
    batches, val_batches = (partial(text_batches, text, model.B, model.T) for text in (source[:split], source[split:]))
    decode, newline, every = (lambda token: bytes([token])), ord("\n"), max(1, steps // 4)
    train(model, batches(), val_batches, newline, decode, steps, 1e-3, every=every, length=400, log=50)


# ----------------------------------------------------------------------------------------------------------------------
# Checking against a debug state: a batch with the logits, the loss and the gradients that PyTorch found for the batch.

# Losses of GPT-2 124M while it learns the batch of llm.c's debug state by heart.
GPT2_124M_LOSSES = [5.270007, 4.059707, 3.375123, 2.800783, 2.315382, 1.849029, 1.394656, 0.999147, 0.624080, 0.376511]


def check_tensor(name, ours, expected, tolerance=2e-2):
    """Prints the first five elements and the largest difference; True if no element differs by more than tolerance."""
    ours, expected = ours.reshape(-1), expected.reshape(-1)
    print(name)
    for a, b in zip(ours[:5], expected[:5], strict=True):
        print(f"{'OK' if abs(a - b) <= tolerance else 'NOT OK'} {a:f} {b:f}")
    difference = np.abs(ours - expected).max()
    ok = bool(difference <= tolerance)
    print(f"TENSOR {'OK' if ok else 'NOT OK'}, maxdiff = {difference:e}")
    return ok


def read_state(path, config):
    """A debug state: tokens and targets int32 [B, T], logits float32 [B*T, V], loss, gradients (a namespace)."""
    B, T = read_header(path, STATE, 2, "debug state")[2:4]
    if B < 1 or not 1 <= T <= config.max_seq_len:
        fail(f"impossible batch of {B} x {T} tokens", path, "give the debug state of this model")
    shapes = {"tokens": (B, T), "targets": (B, T), "logits": (B * T, config.V), "loss": (1,)}
    shapes |= parameter_shapes(config)
    check_size(path, HEADER_BYTES + 4 * count(shapes), "debug state of this model")
    state = views(np.memmap(path, "<f4", "r", HEADER_BYTES), shapes)
    tokens, targets = state.tokens.view("<i4"), state.targets.view("<i4")
    if min(tokens.min(), targets.min()) < 0 or max(tokens.max(), targets.max()) >= config.V:
        fail(f"tokens outside of the vocabulary of {config.V}", path, "give the debug state of this model")
    return tokens, targets, state.logits, float(state.loss[0]), state


def check(args):
    """Compares logits, loss, all gradients and ten AdamW steps with a debug state; True if everything agrees.

    The ten losses are known for GPT-2 124M only. For another model, each loss must be lower than the first loss.
    """
    config = read_config(args.model)
    tokens, targets, expected_logits, expected_loss, expected_grads = read_state(args.check, config)
    model = read_model(args.model, config, *tokens.shape)
    describe(model)
    print(f"[State]\nbatch_size: {model.B}\nseq_len: {model.T}\nnum_activations: {model.act_memory.size}")

    logits = model.forward(tokens)
    for ours, expected in zip(logits[0, :10], expected_logits[0, :10], strict=True):
        print(f"{expected:f}, {ours:f}")
    difference = np.abs(logits - expected_logits).max()
    all_ok = bool(difference < 1e-2)
    print(f"{'' if all_ok else 'NOT '}OK (LOGITS), max_diff = {difference:e}")

    losses = []
    for step in range(10):
        start = time.perf_counter()
        losses.append(model.loss(tokens, targets))
        model.backward(targets)
        elapsed = time.perf_counter() - start
        if step == 0:
            loss_ok = abs(losses[-1] - expected_loss) < 1e-2
            print(f"LOSS {'OK' if loss_ok else 'MISMATCH'}: {losses[-1]:f} {expected_loss:f}")
            names = parameter_shapes(config)
            grads_ok = [check_tensor(f"d{n}", getattr(model.grads, n), getattr(expected_grads, n)) for n in names]
            all_ok = all_ok and loss_ok and all(grads_ok)
        model.update(step + 1, 1e-4, weight_decay=0.01)
        if abs(expected_loss - GPT2_124M_LOSSES[0]) < 1e-3:
            step_ok = abs(losses[-1] - GPT2_124M_LOSSES[step]) < 1e-2
        else:
            step_ok = step == 0 or losses[-1] < losses[0]
        all_ok = all_ok and step_ok
        print(f"step {step}: loss {losses[-1]:f} (took {elapsed * 1000:f} ms) OK = {int(step_ok)}", flush=True)
    print(f"overall okay: {int(all_ok)}")
    return all_ok


# ----------------------------------------------------------------------------------------------------------------------
# The command line. The defaults are the files and settings of llm.c's programs.


def main():
    """Parses the command line and runs one of train_llmc, train_tiny and check."""
    has_shakespeare = os.path.exists("dev/data/tinyshakespeare/tiny_shakespeare_train.bin")
    data = "dev/data/" + ("tinyshakespeare/tiny_shakespeare" if has_shakespeare else "tinystories/TinyStories")
    parser = argparse.ArgumentParser(description="Train GPT-2 in NumPy.")
    parser.add_argument("--model", "-e", help="weights, an llm.c file (default: gpt2_124M.bin; a tiny model without)")
    parser.add_argument("--train-data", "-i", default=f"{data}_train.bin", help="pattern (default: %(default)s)")
    parser.add_argument("--val-data", "-j", default=f"{data}_val.bin", help="pattern (default: %(default)s)")
    parser.add_argument("--tokenizer", default="gpt2_tokenizer.bin", help="tokenizer file (default: %(default)s)")
    parser.add_argument("--batch-size", "-b", type=int, default=4, help="sequences in a batch, B (default: 4)")
    parser.add_argument("--seq-len", "-t", type=int, default=64, help="tokens in a sequence, T (default: 64)")
    parser.add_argument("--steps", "-x", type=int, help="number of the last step (default: 40; tiny model: 1500)")
    parser.add_argument("--learning-rate", "-l", type=float, default=1e-4, help="(default: 1e-4)")
    parser.add_argument("--check", metavar="STATE", help="compare the model with a debug state, and exit")
    args = parser.parse_args()
    tiny = args.model is None and args.check is None and not os.path.exists("gpt2_124M.bin")
    args.model = args.model or "gpt2_124M.bin"
    if args.steps is None:
        args.steps = 1500 if tiny else 40
    if args.check:
        sys.exit(0 if check(args) else 1)
    elif tiny:
        train_tiny(args.steps)
    else:
        train_llmc(args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except MemoryError as error:
        fail("not enough memory", str(error), "choose a smaller --batch-size or --seq-len")
