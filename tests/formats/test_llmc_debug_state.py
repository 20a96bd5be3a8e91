"""The debug state: PyTorch's is ours, and ours is PyTorch's."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings

from llmpy.errors import UserError
from llmpy.formats.llmc import debug_state
from llmpy.formats.llmc import model as llmc
from tests.formats.damage import damaged, read_or_refuse
from tests.model_files import CONFIG, make_model

B, T = 2, 7  # shorter than the context, so that positions matter
X, Y = np.random.default_rng(3).integers(0, CONFIG.vocab_size, (2, B, T)).astype(np.int32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model and its state, written by us."""
    folder = tmp_path_factory.mktemp("state")
    model = make_model()
    sized = debug_state.GPT2(CONFIG, "reference", B, T)
    sized.parameters.flat[:] = model.parameters.flat
    llmc.write_model(folder / "model.bin", CONFIG, model.parameters)
    debug_state.write_debug_state(folder / "state.bin", debug_state.make_debug_state(sized, X, Y))
    return folder


@pytest.fixture(scope="module")
def from_torch(tmp_path_factory):
    """The same from PyTorch, and its functions."""
    torch = pytest.importorskip("torch")
    from tests.formats import torch_gpt2

    folder = tmp_path_factory.mktemp("torch")
    sizes = torch_gpt2.Sizes(CONFIG.vocab_size, CONFIG.context, CONFIG.layers, CONFIG.heads, CONFIG.channels)
    parameters = torch_gpt2.random_parameters(sizes)
    x, y = torch.from_numpy(X).long(), torch.from_numpy(Y).long()
    torch_gpt2.write_model(folder / "model.bin", parameters, sizes)
    torch_gpt2.write_debug_state(folder / "state.bin", parameters, sizes, x, y)
    return folder, torch_gpt2, sizes


def test_a_state_of_pytorch_passes(from_torch):
    folder, *_ = from_torch
    differences = debug_state.check_debug_state(folder / "model.bin", folder / "state.bin", "reference")
    assert [d.name for d in differences][:3] == ["logits", "loss", "dwte"]
    assert len(differences) == 2 + 16
    assert all(d.passed for d in differences), differences
    assert max(d.relative for d in differences) < 1e-5


def test_pytorch_reads_a_state_of_ours(from_torch, tmp_path):
    folder, torch_gpt2, sizes = from_torch
    model = debug_state.GPT2(CONFIG, "reference", B, T)
    llmc.read_parameters(folder / "model.bin", CONFIG, model.parameters)
    debug_state.write_debug_state(tmp_path / "ours.bin", debug_state.make_debug_state(model, X, Y))
    ours = torch_gpt2.read_debug_state(tmp_path / "ours.bin", sizes)
    theirs = torch_gpt2.read_debug_state(folder / "state.bin", sizes)
    assert (tmp_path / "ours.bin").stat().st_size == (folder / "state.bin").stat().st_size
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-3, atol=1e-5, err_msg=name)
    assert not ours["wte"][CONFIG.vocab_size :].any()


def test_a_state_comes_back_byte_for_byte(written, tmp_path):
    state = debug_state.read_debug_state(written / "state.bin", CONFIG)
    np.testing.assert_array_equal(state.x, X)
    np.testing.assert_array_equal(state.y, Y)
    assert state.logits.shape == (B, T, CONFIG.vocab_size)
    debug_state.write_debug_state(tmp_path / "again.bin", state)
    assert (tmp_path / "again.bin").read_bytes() == (written / "state.bin").read_bytes()


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_gradient_that_differs_is_found(value, written, tmp_path):
    state = debug_state.read_debug_state(written / "state.bin", CONFIG)
    state.gradients.fcb[1, 3] += np.float32(value)
    debug_state.write_debug_state(tmp_path / "wrong.bin", state)
    differences = debug_state.check_debug_state(written / "model.bin", tmp_path / "wrong.bin", "reference")
    assert [d.name for d in differences if not d.passed] == ["dfcb"]


def test_a_state_for_another_model_is_refused(written):
    other = debug_state.GPT2Config(61, 9, 3, 3, 12)
    with pytest.raises(UserError, match="cut off"):
        debug_state.read_debug_state(written / "state.bin", other)
    with pytest.raises(UserError, match="context of 4"):
        debug_state.read_debug_state(written / "state.bin", debug_state.GPT2Config(61, 4, 2, 3, 12))


@pytest.mark.parametrize(
    ("index", "value", "why"),
    [(0, 1, "not a debug state"), (1, 1, "version 1"), (2, 0, "damaged"), (3, -1, "damaged"), (2, 2**30, "cut off")],
)
def test_a_flipped_header_is_refused(index, value, why, written, tmp_path):
    data = bytearray((written / "state.bin").read_bytes())
    data[4 * index : 4 * index + 4] = struct.pack("<i", value)
    (tmp_path / "s.bin").write_bytes(data)
    with pytest.raises(UserError, match=why):
        debug_state.read_debug_state(tmp_path / "s.bin", CONFIG)


def test_damage_is_refused_or_is_a_state(written, tmp_path, small_memory):
    good = (written / "state.bin").read_bytes()
    small_memory(written / "state.bin")

    @settings(max_examples=200)
    @given(damaged(good, 1024 + 8 * B * T))
    def check(data):
        state = read_or_refuse(lambda path: debug_state.read_debug_state(path, CONFIG), tmp_path / "s.bin", data)
        assert state is None or (state.x.max() < CONFIG.vocab_size and state.logits.shape == (B, T, CONFIG.vocab_size))

    check()
