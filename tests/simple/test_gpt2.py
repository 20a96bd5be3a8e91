"""simple/gpt2.py against the package, and its programs as a person starts them."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmpy

SOURCE = Path(__file__).parents[2] / "simple" / "gpt2.py"
SIZES = {"max_seq_len": 12, "V": 61, "L": 2, "NH": 3, "C": 24}  # no size is round, and no two are equal
B, T = 3, 7


def load_source():
    """The module, imported from its file: the folder simple/ is no package."""
    spec = importlib.util.spec_from_file_location("simple_gpt2", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpt2 = load_source()


def make_model(batch=B, length=T, **sizes):
    """A model whose 16 parameters are all random, so that no gradient is zero by accident."""
    model = gpt2.GPT2(gpt2.Config(**(SIZES | sizes)), batch, length)
    rng = np.random.default_rng(7)
    for name, p in vars(model.params).items():
        p[:] = 0.2 * rng.standard_normal(p.shape) + (name in ("ln1w", "ln2w", "lnfw"))
    model.params.wte[model.config.V :] = 0
    return model


def header(*numbers):
    values = np.zeros(256, "<i4")
    values[: len(numbers)] = numbers
    return values.tobytes()


def write_model(path, model):
    c = model.config
    sizes = header(20240326, 3, c.max_seq_len, c.V, c.L, c.NH, c.C, c.padded_vocab)
    path.write_bytes(sizes + model.memory.astype("<f4").tobytes())


def write_shard(path, tokens):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header(20240520, 1, len(tokens)) + np.asarray(tokens, "<u2").tobytes())


def make_batch(seed=3):
    return np.random.default_rng(seed).integers(0, SIZES["V"], (2, B, T))


def package_model(path):
    """The package's model with the weights of an llm.c file."""
    loaded = llmpy.load(path)
    model = llmpy.GPT2(loaded.config, "reference", B, T)
    model.parameters.flat[:] = loaded.parameters.flat
    return model


def run(folder, *arguments):
    """Starts the program in a folder, as a person does, except that NumPy's warnings are errors.

    One thread: matmuls this small gain nothing from more, and wait long for each other where the cores are busy.
    """
    command = [sys.executable, "-W", "error", SOURCE, *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as llm.c's programs expect: a model, its shards at the default paths, and a debug state."""
    place = tmp_path_factory.mktemp("llmc")
    model = make_model()
    write_model(place / "gpt2_124M.bin", model)
    rng = np.random.default_rng(5)
    for split, n in (("train", 900), ("val", 300)):
        write_shard(place / f"dev/data/tinyshakespeare/tiny_shakespeare_{split}.bin", rng.integers(0, SIZES["V"], n))
    tokens, targets = make_batch()
    package = package_model(place / "gpt2_124M.bin")
    logits = package.logits(tokens.astype(np.int32)).copy()
    loss = package.loss_and_gradients(tokens.astype(np.int32), targets.astype(np.int32))
    parts = [tokens.astype("<i4"), targets.astype("<i4"), logits.astype("<f4"), np.array(loss, "<f4")]
    data = b"".join(part.tobytes() for part in [*parts, package.gradients.flat.astype("<f4")])
    (place / "state.bin").write_bytes(header(20240327, 2, B, T) + data)
    return place


# ---- the numbers


def test_logits_loss_and_gradients_are_those_of_the_package(folder):
    ours, theirs = make_model(), package_model(folder / "gpt2_124M.bin")
    tokens, targets = make_batch()
    x, y = tokens.astype(np.int32), targets.astype(np.int32)
    np.testing.assert_allclose(ours.forward(tokens), theirs.logits(x).reshape(B * T, -1), rtol=1e-4, atol=1e-5)
    loss = ours.loss(tokens, targets)
    ours.backward(targets)
    assert loss == pytest.approx(float(theirs.loss_and_gradients(x, y)), rel=1e-5)
    for name, gradient in vars(ours.grads).items():
        expected = theirs.gradients[name]
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_backward_overwrites_the_gradients_of_the_step_before():
    model = make_model()
    model.grad_memory[:] = np.nan
    model.grads.wte[SIZES["V"] :] = 0  # the padding is never written
    tokens, targets = make_batch()
    model.loss(tokens, targets)
    model.backward(targets)
    first = model.grad_memory.copy()
    model.loss(tokens, targets)
    model.backward(targets)
    np.testing.assert_array_equal(model.grad_memory, first)
    assert np.isfinite(first).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_the_formula_in_float64(weight_decay):
    model = make_model(C=48)
    assert model.memory.size > gpt2.BLOCK  # several blocks, the last one not full
    p, m, v = model.memory.astype(np.float64), 0.0, 0.0
    for step in range(1, 6):
        tokens, targets = make_batch(step)
        model.loss(tokens, targets)
        model.backward(targets)
        g = model.grad_memory.astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        corrected = np.sqrt(v / (1 - 0.999**step)) + 1e-8
        p = p - 1e-2 * (m / (1 - 0.9**step) / corrected + weight_decay * p)
        model.update(step, 1e-2, weight_decay=weight_decay)
        np.testing.assert_allclose(model.memory, p, rtol=1e-4, atol=1e-5)
        model.memory[:] = p


def test_a_smaller_batch_gives_the_same_logits():
    model = make_model()
    tokens, _ = make_batch()
    whole = model.forward(tokens).reshape(B, T, -1).copy()
    np.testing.assert_allclose(model.forward(tokens[1:2, :4]), whole[1, :4], rtol=1e-4, atol=1e-5)


def test_all_tensors_are_views_into_one_array():
    model = make_model()
    model.forward(make_batch()[0])
    for memory, tensors in ((model.memory, model.params), (model.grad_memory, model.grads)):
        assert all(np.shares_memory(memory, tensor) for tensor in vars(tensors).values())
        assert sum(tensor.size for tensor in vars(tensors).values()) == memory.size
    assert all(np.shares_memory(model.act_memory, tensor) for tensor in vars(model.acts).values())
    assert sum(tensor.size for tensor in vars(model.acts).values()) == model.act_memory.size


def test_xorshift_numbers():
    numbers = gpt2.xorshift(1337)
    state, expected = 1337, []
    for _ in range(5):  # in uint64, which wraps as in C
        with np.errstate(over="ignore"):
            s = np.uint64(state)
            s ^= s >> np.uint64(12)
            s ^= s << np.uint64(25)
            s ^= s >> np.uint64(27)
            state = int(s)
            u32 = (s * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(32)
        expected.append(np.float32((int(u32) >> 8) / 2**24))
    assert [next(numbers) for _ in range(5)] == expected


def test_sample_mult_takes_the_first_token_whose_running_sum_exceeds_the_coin():
    probs = np.array([0.25, 0.0, 0.5, 0.125], np.float32)
    coins = {0.0: 0, 0.2499: 0, 0.25: 2, 0.7499: 2, 0.75: 3, 0.99: 3}
    assert {coin: gpt2.sample_mult(probs, coin) for coin in coins} == coins


def test_batches_are_shuffled_as_in_llm_c(tmp_path):
    """Torch draws the same Mersenne Twister numbers; the first one for the seed 42 is 1608637542."""
    write_shard(tmp_path / "a.bin", np.arange(0, 51))
    shards = gpt2.open_shards(str(tmp_path / "*.bin"), 2, 5)
    rng, order = np.random.RandomState(42), list(range(5))
    draws = [int(n) for n in rng.randint(0, 2**32, size=8, dtype=np.uint32)]
    assert draws[0] == 1608637542
    for i in range(4, 0, -1):
        j = draws.pop(0) % (i + 1)
        order[i], order[j] = order[j], order[i]
    batches = gpt2.token_batches(shards, 61, 2, 5, shuffle=True)
    found = [next(batches) for _ in range(5)]
    assert [tokens[0, 0] // 10 for tokens, _ in found] == order
    assert all((targets == tokens + 1).all() for tokens, targets in found)
    plain = gpt2.token_batches(shards, 61, 2, 5, shuffle=False)
    assert [next(plain)[0][0, 0] for _ in range(6)] == [0, 10, 20, 30, 40, 0]


# ---- the programs


def test_training_prints_the_lines_of_llm_c(folder):
    result = run(folder, "--batch-size", 2, "--seq-len", 8, "--steps", 20)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[:7] == [
        "[GPT-2]",
        "max_seq_len: 12",
        "vocab_size: 61",
        "padded_vocab_size: 128",
        "num_layers: 2",
        "num_heads: 3",
        "channels: 24",
    ]
    assert lines[7] == f"num_parameters: {make_model().memory.size}"
    assert lines[8:10] == ["train dataset num_batches: 56", "val dataset num_batches: 18"]
    assert re.fullmatch(r"num_activations: \d+", lines[10])
    assert re.fullmatch(r"val loss \d\.\d{6}", lines[11])
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 21
    form = r"step (\d+): train loss \d\.\d{6} \(took \d+\.\d{6} ms\)"
    assert [int(re.fullmatch(form, line)[1]) for line in steps] == list(range(21))
    assert sum(line.startswith("val loss") for line in lines) == 3
    at = lines.index("generating:")
    assert (lines[at + 1], lines[at + 3]) == ("---", "---")
    assert len(lines[at + 2].split()) == 63


def test_the_tokenizer_of_llm_c_shows_text(folder, tmp_path):
    pieces = b"".join(bytes([2]) + b"%c " % (48 + token) for token in range(SIZES["V"]))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(header(20240328, 2, SIZES["V"], 1) + pieces)
    result = run(tmp_path, "-b", 2, "-t", 8, "-x", 20)
    assert (result.returncode, result.stderr) == (0, "")
    written = result.stdout.split("---\n")[1].split()
    assert len(written) == 63
    assert all(48 <= ord(piece) < 48 + SIZES["V"] for piece in written)


def test_check_passes_on_a_good_state(folder):
    result = run(folder, "--check", "state.bin")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[-1] == "overall okay: 1"
    assert sum(line.startswith("TENSOR OK, maxdiff = ") for line in lines) == 16
    assert sum(line.startswith("OK (LOGITS), max_diff = ") for line in lines) == 1
    assert sum(line.startswith("LOSS OK: ") for line in lines) == 1
    assert sum(bool(re.fullmatch(r"step \d: loss \d\.\d{6} \(took .* ms\) OK = 1", line)) for line in lines) == 10
    for name in ("dwte", "dqkvw", "dattprojb", "dlnfb"):
        assert name in lines


@pytest.mark.parametrize(
    ("place", "line"),
    [("logits", "NOT OK (LOGITS)"), ("loss", "LOSS MISMATCH"), ("gradient", "TENSOR NOT OK")],
)
def test_check_fails_on_an_altered_state(folder, tmp_path, place, line):
    data = np.fromfile(folder / "state.bin", "<f4")
    logits = 256 + 2 * B * T
    at = {"logits": logits + 9, "loss": logits + B * T * SIZES["V"], "gradient": len(data) - 3}[place]
    data[at] += 1
    data.tofile(tmp_path / "altered.bin")
    result = run(folder, "--check", tmp_path / "altered.bin")
    assert result.returncode == 1
    assert line in result.stdout
    assert result.stdout.endswith("overall okay: 0\n")


def test_without_arguments_and_files_it_learns_its_own_text(tmp_path):
    result = run(tmp_path, "--steps", 40)
    assert (result.returncode, result.stderr) == (0, "")
    losses = [float(loss) for loss in re.findall(r"val loss (\S+)", result.stdout)]
    assert len(losses) == 5
    assert losses[0] == pytest.approx(np.log(256), abs=0.2)
    assert losses[-1] < losses[0] - 1
    assert "generating:\n---\n" in result.stdout


# ---- errors


def damage(place, how):
    """Spoils one file of a folder, or asks for too much; returns the arguments and what the message must name."""
    model, train = place / "gpt2_124M.bin", place / "dev/data/tinyshakespeare/tiny_shakespeare_train.bin"
    sizes = ["-b", 2, "-t", 8, "-x", 0]
    match how:
        case "no model":
            return ["--model", "absent.bin"], "absent.bin"
        case "another kind of file":
            return ["--model", train], train.name
        case "model cut":
            model.write_bytes(model.read_bytes()[:-5])
            return sizes, model.name
        case "header cut":
            model.write_bytes(model.read_bytes()[:100])
            return sizes, model.name
        case "version":
            model.write_bytes(header(20240326, 5))
            return sizes, "version 5"
        case "sizes":
            model.write_bytes(header(20240326, 3, 12, 61, 2, 0, 24, 128))
            return sizes, model.name
        case "no shards":
            train.unlink()
            return sizes, "TinyStories_train.bin"
        case "shard cut":
            train.write_bytes(train.read_bytes()[:-1])
            return sizes, train.name
        case "foreign tokens":
            write_shard(train, [70] * 100)
            return sizes, "token 70"
        case "tokenizer cut":
            (place / "gpt2_tokenizer.bin").write_bytes(header(20240328, 2, 61, 1) + b"\x05ab")
            return sizes, "gpt2_tokenizer.bin"
        case "too long":
            return ["-t", 13], "13"
        case "empty batch":
            return ["-b", 0], "0"
        case "big batch":
            return ["-b", 500, "-t", 8], "900 tokens"
        case "no state":
            return ["--check", "absent.bin"], "absent.bin"
        case "state cut":
            (place / "state.bin").write_bytes((place / "state.bin").read_bytes()[:-4])
            return ["--check", "state.bin"], "state.bin"


MISTAKES = ["no model", "another kind of file", "model cut", "header cut", "version", "sizes", "no shards", "shard cut"]
MISTAKES += ["foreign tokens", "tokenizer cut", "too long", "empty batch", "big batch", "no state", "state cut"]


@pytest.mark.parametrize("how", MISTAKES)
def test_a_mistake_gets_one_line(folder, tmp_path, monkeypatch, capsys, how):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    arguments, named = damage(tmp_path, how)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpt2.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        gpt2.main()
    message = ended.value.code
    assert re.fullmatch(r"error: .+ \(.+\): .+", message), message  # "." matches no line break
    assert named in message


def test_an_error_is_one_line_of_stderr(tmp_path):
    result = run(tmp_path, "--model", "absent.bin")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")


# ---- the file


def test_the_file_is_short_and_needs_numpy_alone():
    text = SOURCE.read_text()
    assert len(text.splitlines()) <= 700
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split(".")[0])
    assert modules - set(sys.stdlib_module_names) == {"numpy", "tiktoken"}
    at_the_top = [node for node in ast.parse(text).body if isinstance(node, ast.Import)]
    assert "tiktoken" not in {alias.name for node in at_the_top for alias in node.names}


def test_every_function_has_a_docstring():
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in (
            "__init__",
            "permute",
            "update_blocks",
        ):
            assert ast.get_docstring(node), node.name
