"""Our safetensors against the original library's, and against damage."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.formats.huggingface.safetensors import DTYPES, SafetensorsFile, TensorToWrite, write
from tests.formats.damage import damaged, read_or_refuse

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3, dtype=np.int64),
    "none": np.zeros((0, 4), np.float16),
    "odd": np.arange(5, dtype=np.uint8),
}


def write_file(path, tensors, metadata=None):
    with open(path, "wb") as file:
        write(file, [TensorToWrite.of(name, array) for name, array in tensors.items()], metadata)
    return path


def assert_equal(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_the_library_reads_what_we_write(tmp_path):
    path = write_file(tmp_path / "x.safetensors", TENSORS, {"format": "pt", "step": "7"})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert_equal(file.get_tensor(name), tensor)


def test_we_read_what_the_library_writes(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "x.safetensors", {"who": "library"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"who": "library"}
    for name, tensor in TENSORS.items():
        assert_equal(file.tensor(name), tensor)


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_comes_back(name, tmp_path):
    array = np.array([[0, 1, 2]]).astype(DTYPES[name])
    file = SafetensorsFile(write_file(tmp_path / "x", {"t": array}))
    assert file.entries["t"].dtype == name
    assert_equal(file.tensor("t"), array)


def test_a_tensor_is_made_when_its_turn_comes(tmp_path):
    made = []

    def make(i):
        made.append(i)
        return np.full((3,), i, ml_dtypes.bfloat16)

    tensors = [TensorToWrite(str(i), np.dtype(ml_dtypes.bfloat16), (3,), lambda i=i: make(i)) for i in range(3)]
    with open(tmp_path / "x", "wb") as file:
        write(file, tensors)
    assert made == [0, 1, 2]
    with pytest.raises(ValueError, match="announced"), open(tmp_path / "y", "wb") as file:
        write(file, [TensorToWrite("t", np.dtype("f4"), (2,), lambda: np.zeros(3, "f4"))])


def header_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "cut off"),
        ({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1" * 9, "too long"),
        ({"t": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"1" * 8, "ask for 12"),
        ({"t": {"dtype": "Q4", "shape": [3], "data_offsets": [0, 8]}}, b"1" * 8, "'Q4'"),
        ({"t": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 8]}}, b"1" * 8, "no valid shape"),
        ({"t": {"dtype": "U8", "shape": [8], "data_offsets": [1, 9]}}, b"1" * 9, "gap"),
        ({"t": {"dtype": "U8", "shape": [8]}}, b"1" * 8, "data_offsets"),
        ({"__metadata__": {"x": 1}}, b"", "__metadata__"),
        (b'{"t": 1, "t": 2}', b"", "twice"),
        (b"[]", b"", "not a JSON object"),
        (b"\xff", b"", "damaged"),
        (b"[" * 100_000, b"", "damaged"),
    ],
)
def test_a_damaged_header_is_refused_in_one_line(header, data, why, tmp_path):
    with pytest.raises(UserError, match=why) as caught:
        SafetensorsFile(header_file(tmp_path / "x.safetensors", header, data))
    assert str(tmp_path / "x.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"1234567", (2**60).to_bytes(8, "little"), (3).to_bytes(8, "little") + b"{}"])
def test_a_cut_header_is_refused(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match="cut off"):
        SafetensorsFile(tmp_path / "x")


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            SafetensorsFile(path)


GOOD = safetensors.numpy.save({"a": TENSORS["a"], "b": TENSORS["odd"]})


@given(data=damaged(GOOD, len(GOOD) - 30))
def test_damage_is_refused_where_the_library_refuses_it(data, tmp_path):
    file = read_or_refuse(SafetensorsFile, tmp_path / "x.safetensors", data)
    if file is None:
        return
    for name in file.entries:
        assert file.tensor(name).shape == file.entries[name].shape
    safetensors.numpy.load(data)  # what we take, it takes


names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


@given(shapes=st.dictionaries(names, st.lists(st.integers(0, 4), max_size=3), max_size=5))
def test_any_names_and_shapes_come_back(shapes, tmp_path):
    tensors = {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items())}
    file = SafetensorsFile(write_file(tmp_path / "x", tensors))
    assert list(file.entries) == list(tensors)
    for name, tensor in tensors.items():
        assert_equal(file.tensor(name), tensor)
