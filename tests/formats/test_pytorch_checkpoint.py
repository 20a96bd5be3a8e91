"""Files of torch.save: read without PyTorch, and without running a word of what they hold."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.formats.pytorch import safe_pickle
from llmpy.formats.pytorch.checkpoint import read_torch_file
from tests.formats.damage import check_one_line, damaged, read_or_refuse


class _Storage:
    """Stands for a storage when `save` pickles; in the file it is the tuple that PyTorch writes."""

    def __init__(self, kind, key, count):
        self.description = ("storage", kind, key, "cpu", count)


class _Pickler(pickle._Pickler):  # in Python, so that names may be written that do not exist here
    def persistent_id(self, value):
        return value.description if isinstance(value, _Storage) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named):
            module, _, attribute = value.name.rpartition(".")
            self.write(f"c{module}\n{attribute}\n".encode())
        elif isinstance(value, Call):
            self.save(Named(value.name))
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, save_persistent_id)


class Named:
    def __init__(self, name):
        self.name = name


class Call:
    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


def tensor(array, key="0", offset=0, shape=None, strides=None, count=None, kind="torch.FloatStorage"):
    """As PyTorch pickles a tensor; what is not given is that of `array`."""
    shape = array.shape if shape is None else shape
    strides = tuple(n // array.itemsize for n in array.strides) if strides is None else strides
    storage = _Storage(Named(kind), key, array.size if count is None else count)
    return Call(
        "torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, Call("collections.OrderedDict")
    )


def save(path: Path, value, arrays=(), protocol=2, compression=zipfile.ZIP_STORED, **entries) -> Path:
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
        for i, array in enumerate(arrays):
            archive.writestr(f"archive/data/{i}", array.tobytes())
    return path


X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_containers_and_tensors(protocol, tmp_path):
    plain = {
        "n": 5,
        "big": 10**12,
        "none": None,
        "yes": True,
        "text": "naïve",
        "list": [1, (2, 3, 4, 5), ()],
        7: {},
        "x": 0.5,
    }
    path = save(tmp_path / "a.pt", {**plain, "w": tensor(X), "same": tensor(X)}, [X], protocol)
    found = read_torch_file(path)
    np.testing.assert_array_equal(found.pop("w"), X)
    np.testing.assert_array_equal(found.pop("same"), X)
    assert found == plain


def test_views_of_a_storage(tmp_path):
    part = tensor(X, offset=1, shape=(4, 2), strides=(1, 4))
    found = read_torch_file(save(tmp_path / "a.pt", part, [X]))
    np.testing.assert_array_equal(found, X.T[:, :2] + 1)
    assert not found.flags.writeable


def test_what_pytorch_saves(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    tensors = {str(kind): torch.tensor([[0, 1, 1], [1, 0, 1]]).to(kind).t() for kind in kinds}
    others = {"best": torch.tensor(3.25), "args": {"dim": 3}, "dtype": torch.float32, "device": torch.device("cpu")}
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **others, **tensors}, tmp_path / "a.pt"
    )
    found = read_torch_file(tmp_path / "a.pt")
    assert found["best"] == 3.25
    assert found["args"] == {"dim": 3}
    assert found["device"] == "cpu"
    for name, expected in model.state_dict().items():
        np.testing.assert_array_equal(found["model"][name], expected)
    for name in tensors:
        np.testing.assert_array_equal(found[name].astype(np.float64), np.array([[0, 1], [1, 0], [1, 1]]))
    assert found["torch.bfloat16"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        found["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_malicious_pickle_is_refused_and_not_run(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Evil()}, protocol))
    with pytest.raises(UserError, match=r"a\.pt asks for \w+\.system: only tensors") as caught:
        read_torch_file(Path("a.pt"))
    check_one_line(str(caught.value))
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "value",
    [
        Named("builtins.eval"),
        Call("torch.FloatStorage", 3),
        Call("torch.load", "x"),
        Named("torch.nn.Linear"),
        {1},
        object(),
        Path("x"),
        np.float64(3),
    ],
)
def test_everything_but_plain_data_is_refused(value, tmp_path):
    with pytest.raises(UserError, match="asks for"):
        read_torch_file(save(tmp_path / "a.pt", {"model": value}))


@pytest.mark.parametrize(
    "value",
    [
        tensor(X, key="1"),
        tensor(X, key="../data.pkl"),
        tensor(X, count=13),
        tensor(X, offset=1),
        tensor(X, offset=-1, shape=(1,), strides=(1,)),
        tensor(X, shape=(10**9, 10**9), strides=(0, 0)),
        tensor(X, shape=(12,), strides=(2,)),
        tensor(X, shape=(3, 4), strides=(4,)),
        tensor(X, shape=(2**62, 2**62)),
        tensor(X, kind="torch.float32"),
        tensor(X, shape=(True, 4)),
        Call("torch._utils._rebuild_tensor_v2", "storage", 0, (1,), (1,)),
        Call("torch._utils._rebuild_tensor_v2"),
        {(("a",) * 2,): 1},
    ],
)
def test_a_tensor_that_is_not_in_the_file(value, tmp_path):
    with pytest.raises(UserError, match="damaged") as caught:
        read_torch_file(save(tmp_path / "a.pt", value, [X]))
    check_one_line(str(caught.value))


def test_a_thousand_times_the_file_is_not_unpacked(tmp_path):
    zeros = np.zeros(10**6, np.float32)
    with pytest.raises(UserError, match="is compressed"):
        read_torch_file(save(tmp_path / "a.pt", tensor(zeros), [zeros], compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="big-endian"):
        read_torch_file(save(tmp_path / "a.pt", {}, byteorder=b"big"))


def test_a_place_in_the_memo_far_away_takes_no_memory(tmp_path):
    far = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
    assert safe_pickle.read_pickle(far, tmp_path, {}, frozenset(), lambda _: None) == {}


def test_what_is_no_archive_of_pytorch(tmp_path):
    path = tmp_path / "a.pt"
    for data, why in ((b"", "cannot read"), (pickle.dumps({}, 2), "before PyTorch 1.6"), (b"PK\3\4", "damaged")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=why):
            read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read_torch_file(path)
    with pytest.raises(UserError, match="cannot read"):
        read_torch_file(tmp_path / "missing.pt")


def test_damage_is_refused_or_leaves_arrays(tmp_path):
    path = save(tmp_path / "a.pt", OrderedDict(w=tensor(X), b=tensor(X, shape=(4,), strides=(1,)), n={"dim": 3}), [X])
    good = path.read_bytes()

    @settings(max_examples=300)
    @given(damaged(good, good.index(b"archive/data/0")))
    def check(data):
        found = read_or_refuse(read_torch_file, path, data)
        assert found is None or len(found["w"].tobytes()) == 48

    check()


OPCODES = st.sampled_from([bytes([opcode]) for opcode in b"(.0]}l\x85\x86\x87)tdaseubqh\x88NKJR\x93\x94Q"])


@given(st.lists(st.one_of(OPCODES, st.binary(max_size=3)), max_size=40))
@settings(max_examples=300)
def test_any_program_is_refused_or_is_data(parts):
    try:
        safe_pickle.read_pickle(b"".join(parts) + b".", Path("x"), {}, frozenset(), lambda value: value)
    except UserError as error:
        check_one_line(str(error))
