"""bfloat16 in the benchmarks: what the peer computes, and what ours is asked for."""

import ml_dtypes
import numpy as np
import pytest

from llmpy import UserError
from llmpy.bench import attention, matmul, train
from llmpy.models.gpt2 import GPT2Config

torch = pytest.importorskip("torch")

from llmpy.bench.torch_peer.model import as_tensor, autocast  # noqa: E402  (where there is PyTorch)

TINY = GPT2Config(61, 8, 1, 2, 16)


@pytest.fixture(autouse=True)
def _threads():
    """PyTorch's number of threads is afterwards what it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_autocast_is_on_for_bfloat16_alone():
    for precision, expected in (("bfloat16", True), ("float32", False)):
        with autocast(precision):
            assert torch.is_autocast_enabled("cpu") is expected
    assert not torch.is_autocast_enabled("cpu")


def test_a_tensor_shares_the_memory_of_an_array_of_either_type():
    for dtype, kind in ((np.float32, torch.float32), (ml_dtypes.bfloat16, torch.bfloat16)):
        array = np.array([[1, -2.5], [0, 3]], dtype)
        tensor = as_tensor(array)
        assert tensor.dtype == kind
        np.testing.assert_array_equal(tensor.float().numpy(), array.astype(np.float32))
        tensor[0, 0] = 7
        assert array[0, 0] == 7


def test_a_step_of_the_peer_in_bfloat16_learns_what_it_learns_in_float32():
    losses = {}
    for precision in ("float32", "bfloat16"):
        step = vars(train.Step(TINY, 2, 8, 1, clip=1.0, precision=precision)) | {"config": vars(TINY)}
        run = train.pytorch_step(step, compiled=False)
        losses[precision] = [run() for _ in range(3)]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)
    assert losses["bfloat16"] != losses["float32"]


def test_products_of_the_peer_in_bfloat16_are_rounded_ones():
    for product in matmul.products(TINY, [7], "bfloat16"):
        found = matmul.pytorch_product(vars(product), 1)()
        assert found.dtype == torch.bfloat16
        x, w, dy = (array.astype(np.float32) for array in product.operands())
        a, b = {"forward": (x, w.T), "dx": (dy, w), "dw": (dy.T, x)}[product.kind]
        np.testing.assert_allclose(found.float().numpy(), a @ b, rtol=0.01, atol=0.02)


def test_gradients_of_weights_are_ours_in_float32():
    product = matmul.Product("fc", "dw", 3, 64, 16, "bfloat16")
    _, w, _ = product.operands()
    assert w.dtype == ml_dtypes.bfloat16
    assert product.gradient(w).dtype == np.float32
    assert product.gradient(w).shape == w.shape
    wide = np.zeros((64, 16), np.float32)
    assert product.gradient(wide) is wide


def test_attention_of_the_peer_in_bfloat16():
    heads = attention.Heads(1, 8, 2, 4, 2, "bfloat16")
    assert heads.qkv().dtype == ml_dtypes.bfloat16
    attention.pytorch_attention(vars(heads), 1)()


def test_products_in_bfloat16_need_pytorch_beside_them():
    with pytest.raises(UserError, match=r"NumPy has no bfloat16: add --against torch, or take --precision float32"):
        matmul.bench(TINY, [5], 1, 1, against_torch=False, precision="bfloat16")
