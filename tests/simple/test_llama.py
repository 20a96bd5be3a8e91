"""simple/llama.py against the package and against numbers worked out by hand, and as a program."""

import ast
import importlib.util
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmpy

SOURCE = Path(__file__).parents[2] / "simple" / "llama.py"
C, H, L, NH, NKV, V, T = SIZES = (24, 40, 2, 6, 3, 263, 29)  # no two are equal
WORDS = [b" ", b"a", b"b", b"ab"]  # tokens 259 ... 262


def load_source():
    """The module, imported from its file: the folder simple/ is no package."""
    spec = importlib.util.spec_from_file_location("simple_llama", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


llama = load_source()


def model_bytes(shared=True, seed=11):
    """A random model.bin of version 0, written number by number as the format describes."""
    rng, hs = np.random.default_rng(seed), C // NH
    data = struct.pack("<7i", C, H, L, NH, NKV, V if shared else -V, T)
    kv = NKV * hs
    shapes = [
        (V, C),
        (L, C),
        (L, C, C),
        (L, kv, C),
        (L, kv, C),
        (L, C, C),
        (L, C),
        (L, H, C),
        (L, C, H),
        (L, H, C),
        (C,),
    ]
    shapes += [(T, hs // 2), (T, hs // 2)] + ([] if shared else [(V, C)])
    return data + b"".join((rng.standard_normal(shape) * 0.4).astype("<f4").tobytes() for shape in shapes)


def tokenizer_bytes(words=WORDS, scores=(0.0, 0.0, 0.0, -1.0)):
    """A tokenizer.bin: the three special tokens, the 256 bytes, and a few words."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), *words]
    scores = [0.0] * 259 + list(scores)
    entries = (struct.pack("<fi", score, len(p)) + p for score, p in zip(scores, pieces, strict=True))
    return struct.pack("<I", max(map(len, pieces))) + b"".join(entries)


def make_tokenizer(words, scores):
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), *words]
    return llama.Tokenizer(pieces, [0.0] * 259 + list(scores))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of a tiny model at the default paths; the program runs there."""
    (tmp_path / "model.bin").write_bytes(model_bytes())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stories(shared_data):
    """The model of 260 thousand parameters and its tokenizer."""
    return shared_data / "llama2c" / "stories260K.bin", shared_data / "llama2c" / "tok512.bin"


def package_tokens(path, prompt, steps, **settings):
    """The tokens that the package appends to a prompt, until BOS."""
    tokens = []
    engine = llmpy.Engine(llmpy.load(path), backend="reference")  # nothing is compiled
    for (token,) in engine.generate(prompt, steps + 1 - len(prompt), **settings):
        if token == llama.BOS:
            break
        tokens.append(token)
    return tokens


def our_tokens(path, prompt, steps, temperature=1.0, top_p=0.9, seed=42):
    model = llama.read_model(path)
    return list(llama.generate(model, prompt, steps, temperature, top_p, seed))


def run(*arguments):
    """Starts the program as a person does; NumPy's warnings are errors there, too."""
    return subprocess.run(
        [sys.executable, "-W", "error", SOURCE, *map(str, arguments)], capture_output=True, timeout=60
    )


# ---- the model


@pytest.mark.parametrize("shared", [True, False])
def test_logits_are_those_of_the_formulas_in_float64(tmp_path, shared):
    """Written anew over whole sequences, without a KV cache."""
    (tmp_path / "model.bin").write_bytes(model_bytes(shared))
    model = llama.read_model(tmp_path / "model.bin")
    tokens = np.random.default_rng(2).integers(0, V, T)
    w = {name: weight.astype(np.float64) for name, weight in vars(model.weights).items()}
    assert np.shares_memory(model.weights.wcls, model.weights.token_embedding) is shared

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    def rotated(x):
        out, hs = x.copy(), x.shape[-1]
        for pos in range(T):
            for i in range(hs // 2):
                angle = pos / 10000 ** (2 * i / hs)
                a, b = x[pos, :, 2 * i], x[pos, :, 2 * i + 1]
                out[pos, :, 2 * i] = a * np.cos(angle) - b * np.sin(angle)
                out[pos, :, 2 * i + 1] = a * np.sin(angle) + b * np.cos(angle)
        return out

    x = w["token_embedding"][tokens]
    for i in range(L):
        h = norm(x, w["rms_att"][i])
        q, k, v = (np.einsum("tc,oc->to", h, w[name][i]) for name in ("wq", "wk", "wv"))
        q = rotated(q.reshape(T, NH, -1))
        k, v = rotated(k.reshape(T, NKV, -1)), v.reshape(T, NKV, -1)
        heads = np.zeros_like(q)
        for head in range(NH):
            scores = q[:, head] @ k[:, head // (NH // NKV)].T / np.sqrt(C / NH)
            weights = np.tril(np.exp(scores))
            heads[:, head] = weights / weights.sum(1, keepdims=True) @ v[:, head // (NH // NKV)]
        x = x + heads.reshape(T, C) @ w["wo"][i].T
        h = norm(x, w["rms_ffn"][i])
        gate = h @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][i].T)) @ w["w2"][i].T
    expected = norm(x, w["rms_final"]) @ w["wcls"].T
    for pos in range(T):
        logits = model.forward(tokens[pos], pos)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[pos], rtol=1e-3, atol=1e-3)


def test_huge_activations_make_no_warning():
    h = np.array([-1000.0, 1000.0], np.float32)
    with np.errstate(over="ignore"):  # as forward does
        np.testing.assert_array_equal(llama.swiglu(h, np.ones(2, np.float32)), [-0.0, 1000.0])


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"seed": 3}, {"temperature": 0.7, "top_p": 0.5, "seed": 9}])
def test_tokens_are_those_of_the_package(folder, settings):
    prompt = [1, 259, 262, 5]
    ours = our_tokens(folder / "model.bin", prompt, T, **settings)
    assert ours[:3] == prompt[1:]
    assert ours[3:] == package_tokens(folder / "model.bin", prompt, T, **settings)
    assert len(ours) > 6


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"seed": 42}, {"top_p": 1.0, "seed": 7}, {"temperature": 0.8, "top_p": 0.5}]
)
def test_stories_are_those_of_the_package(stories, settings):
    path, _ = stories
    assert our_tokens(path, [1], 256, **settings) == package_tokens(path, [1], 256, **settings)


# ---- the tokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", [1]),
        ("ab", [1, 259, 262]),
        ("a b", [1, 259, 260, 259, 261]),
        ("\n", [1, 259, 13]),
        ("é€", [1, 259, 3 + 0xC3, 3 + 0xA9, 3 + 0xE2, 3 + 0x82, 3 + 0xAC]),
        ("\udcff", [1, 259, 3 + 0xFF]),  # how Python passes on a byte that is not UTF-8
    ],
)
def test_encode(folder, text, tokens):
    assert llama.read_tokenizer("tokenizer.bin", V).encode(text) == tokens


def test_the_highest_score_merges_first_and_of_equal_ones_the_leftmost():
    words = [b" ", b"a", b"b", b"ab", b"ba", b"aa"]
    tokenizer = make_tokenizer(words, [0, 0, 0, -2.0, -1.0, -5.0])
    assert tokenizer.encode("aba") == [1, 259, 260, 263]  # ba before ab
    assert tokenizer.encode("aaa") == [1, 259, 264, 260]  # the first aa
    assert tokenizer.encode("abab") == [1, 259, 260, 263, 261]


@pytest.mark.parametrize(
    ("previous", "piece", "text"),
    [
        (1, b" word", b"word"),
        (5, b" word", b" word"),
        (1, b"  ", b" "),
        (5, b"<0x41>", b"A"),
        (5, b"<0x0A>", b"\n"),
        (5, b"<0xC3>", b""),
        (5, b"<0x07>", b""),
        (5, "é".encode(), "é".encode()),
    ],
)
def test_decode(previous, piece, text):
    assert llama.Tokenizer([piece], [0.0]).decode(previous, 0) == text


def test_stories_are_encoded_as_by_the_package(stories):
    path, tokenizer = stories
    theirs = llmpy.load(path).tokenizer or llmpy.Tokenizer.load(tokenizer)
    ours = llama.read_tokenizer(tokenizer, 512)
    for text in ("Once upon a time", "Zoë said: “Hé!” 🙂", "  two  spaces ", "x" * 40):
        assert [t for t in ours.encode(text) if t != 1] == [t for t in theirs.encode(text).tolist() if t != 1]


# ---- sampling


def test_xorshift_numbers():
    """Worked out in uint64, which wraps as in C."""
    numbers, state = llama.xorshift(42), np.uint64(42)
    for _ in range(5):
        with np.errstate(over="ignore"):
            state ^= state >> np.uint64(12)
            state ^= state << np.uint64(25)
            state ^= state >> np.uint64(27)
            u32 = (state * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(32)
        number = next(numbers)
        assert number.dtype == np.float32
        assert number == (int(u32) >> 8) / 2**24


def test_sample_mult_takes_the_first_token_whose_running_sum_exceeds_the_coin():
    probs = np.array([0.25, 0.0, 0.5, 0.125], np.float32)
    coins = {0.0: 0, 0.2499: 0, 0.25: 2, 0.7499: 2, 0.75: 3, 0.99: 3}
    assert {coin: llama.sample_mult(probs, np.float32(coin)) for coin in coins} == coins


# Sorted: token 3 (0.5), 1 and 4 (0.125 each, in this order), 0, 2, 5. Of topp 0.6, the first two make 0.625.
PROBS = np.array([0.0625, 0.125, 0.0625, 0.5, 0.125, 0.125], np.float32)


@pytest.mark.parametrize(
    ("topp", "coin", "token"),
    [
        (0.6, 0.0, 3),
        (0.6, 0.7999, 3),  # 0.7999 * 0.625 < 0.5
        (0.6, 0.8, 1),
        (0.6, 0.9999, 1),
        (0.625, 0.9999, 4),  # the sum must exceed topp
        (0.4, 0.9999, 3),  # one token
        (0.99, 0.9999, 2),  # all tokens: the last of two equal ones
        (0.3, 0.5, 3),  # the cutoff 0.14 leaves one token
    ],
)
def test_sample_topp(topp, coin, token):
    assert llama.sample_topp(PROBS, np.float32(topp), np.float32(coin)) == token


def test_sample_topp_computes_the_cutoff_in_float32():
    """Token 1 lies exactly on the cutoff of float32, which is not that of float64, and is kept."""
    topp = np.float32(0.9)
    cutoff = (np.float32(1) - topp) / np.float32(2)
    assert cutoff != np.float32((1 - 0.9) / 2)
    probs = np.array([0.5, cutoff, 0.3], np.float32)  # the sums never exceed topp: all candidates stay
    assert llama.sample_topp(probs, topp, np.float32(1 - 2**-24)) == 1
    probs[1] = np.nextafter(cutoff, np.float32(0))
    assert llama.sample_topp(probs, topp, np.float32(1 - 2**-24)) == 2


def test_sample():
    logits = np.log(PROBS)
    one = np.float32(1)
    assert llama.sample(logits, np.float32(0), one, iter(())) == 3  # draws nothing
    assert llama.sample(np.zeros(4, np.float32), np.float32(0), one, iter(())) == 0  # the first of equal ones
    coins = iter([np.float32(0.1), np.float32(0.1), np.float32(0.9)])
    assert llama.sample(logits, one, one, coins) == 1  # 0.0625 <= 0.1 < 0.1875
    assert llama.sample(logits, one, np.float32(0), coins) == 1  # topp 0 is all tokens, as 1
    assert llama.sample(logits, one, np.float32(0.6), coins) == 1
    hot = [llama.sample(logits, np.float32(0.01), one, iter([np.float32(coin)])) for coin in (0.0, 0.5, 0.999)]
    assert hot == [3, 3, 3]


# ---- the program


def test_the_program_writes_the_text_and_its_speed(folder):
    result = run("model.bin", "-t", 0, "-n", 9, "-i", "ab a")
    assert result.returncode == 0, result.stderr
    tokenizer = llama.read_tokenizer("tokenizer.bin", V)
    tokens = our_tokens("model.bin", tokenizer.encode("ab a"), 9, temperature=0.0)
    pieces = [tokenizer.decode(previous, token) for previous, token in zip([1, *tokens], tokens, strict=False)]
    assert result.stdout == b"".join(pieces) + b"\n"
    assert result.stdout.startswith(b"ab a")
    assert re.fullmatch(rb"achieved tok/s: \d+\.\d{6}\n", result.stderr)


def test_the_greedy_story_of_the_program(stories):
    path, tokenizer = stories
    result = run(path, "-z", tokenizer, "-t", 0, "-n", 30)
    assert result.stdout.startswith(b"Once upon a time, there was a little girl named Lily. She loved to")


@pytest.mark.parametrize(
    ("arguments", "same_as"),
    [
        (["-n", "0"], ["-n", str(T)]),
        (["-n", "-3"], ["-n", "9999"]),
        (["-p", "7"], ["-p", "0.9"]),
        (["-t", "-1"], ["-t", "0"]),
        (["-s", "5", "--top-p", "1", "--temperature", "2"], ["--seed", "5", "-p", "0", "-t", "2.0"]),
    ],
)
def test_settings_out_of_range_become_those_of_run_c(folder, monkeypatch, capfdbinary, arguments, same_as):
    texts = []
    for extra in (arguments, same_as):
        monkeypatch.setattr(sys, "argv", ["llama.py", "model.bin", "-s", "8", *extra])
        llama.main()
        texts.append(capfdbinary.readouterr().out)
    assert texts[0] == texts[1] != b""


def damage(folder, how):
    """Spoils a file; returns what the message must name."""
    model, tokenizer = folder / "model.bin", folder / "tokenizer.bin"
    match how:
        case "no model":
            model.unlink()
            return "model.bin: No such file"
        case "empty model":
            model.write_bytes(b"")
            return "0 bytes"
        case "header cut":
            model.write_bytes(model.read_bytes()[:20])
            return "20 bytes"
        case "model cut":
            model.write_bytes(model.read_bytes()[:-4])
            return f"{len(model_bytes()) - 4} bytes instead of {len(model_bytes())}"
        case "model too long":
            model.write_bytes(model.read_bytes() + b"\0")
            return "model.bin"
        case "version 1":
            model.write_bytes(struct.pack("<Ii", 0x616B3432, 1) + bytes(300))
            return "--version 0"
        case "sizes":
            model.write_bytes(struct.pack("<7i", C, H, L, 5, NKV, V, T) + model.read_bytes()[28:])
            return "sizes"
        case "no heads":
            model.write_bytes(struct.pack("<7i", C, H, L, 0, NKV, V, T) + model.read_bytes()[28:])
            return "sizes"
        case "not finite":
            data = bytearray(model.read_bytes())
            struct.pack_into("<f", data, 28 + 4 * V * C, float("nan"))  # the first weight after the embedding
            model.write_bytes(data)
            return "position 0"
        case "no tokenizer":
            tokenizer.unlink()
            return "tokenizer.bin: No such file"
        case "empty tokenizer":
            tokenizer.write_bytes(b"")
            return "tokenizer.bin"
        case "tokenizer cut":
            tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
            return "tokenizer.bin"
        case "tokenizer damaged":
            tokenizer.write_bytes(struct.pack("<Ifi", 7, 0.0, -5) + tokenizer.read_bytes())
            return "tokenizer.bin"
        case "other tokenizer":
            tokenizer.write_bytes(tokenizer_bytes([*WORDS, b"c"], [0.0] * 5))
            return f"264 tokens, the model {V}"


MISTAKES = ["no model", "empty model", "header cut", "model cut", "model too long", "version 1", "sizes", "no heads"]
MISTAKES += ["not finite", "no tokenizer", "empty tokenizer", "tokenizer cut", "tokenizer damaged", "other tokenizer"]


@pytest.mark.parametrize("how", MISTAKES)
def test_a_mistake_gets_one_line(folder, monkeypatch, how):
    named = damage(folder, how)
    monkeypatch.setattr(sys, "argv", ["llama.py", "model.bin"])
    with pytest.raises(SystemExit) as ended:
        llama.main()
    message = ended.value.code
    assert re.fullmatch(r"error: .+ \(.+\): .+", message), message  # "." matches no line break
    assert named in message


def test_an_error_is_one_line_of_stderr(folder):
    result = run("absent.bin")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.count(b"\n") == 1
    assert result.stderr.startswith(b"error: ")


# ---- the file


def test_the_file_is_short_and_needs_numpy_alone():
    text = SOURCE.read_text()
    assert len(text.splitlines()) <= 350
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split(".")[0])
    assert modules - set(sys.stdlib_module_names) == {"numpy"}


def test_every_function_has_a_docstring():
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "__init__":
            assert ast.get_docstring(node), node.name
