"""The precisions by name."""

import ml_dtypes
import numpy as np
import pytest

from llmpy import UserError
from llmpy.kernels import cpu
from llmpy.models.precision import CHOICES, dtype, full_name, resolve

NAMES = {"fp32": "float32", "bf16": "bfloat16"} | {name: name for name in CHOICES}


@pytest.mark.parametrize("given", NAMES)
def test_names_and_short_ones(given):
    assert full_name(given) == NAMES[given]


@pytest.mark.parametrize("name", ["fp16", "float64", "", "BF16"])
def test_another_name_is_one_clear_line(name):
    with pytest.raises(UserError, match=rf"^there is no precision {name}: use float32, bfloat16, auto, fp32, bf16$"):
        resolve(name)


@pytest.mark.parametrize(("faster", "name"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_what_the_processor_multiplies_faster(monkeypatch, faster, name):
    monkeypatch.setattr(cpu, "bfloat16_is_faster", lambda: faster)
    assert resolve("auto") == name
    assert resolve("auto", "reference") == "float32"


def test_a_backend_without_bfloat16_is_one_clear_line():
    assert resolve("bf16", "cpu") == "bfloat16"
    assert resolve("fp32", "reference") == "float32"
    with pytest.raises(UserError, match=r"^the reference kernels compute in float32: leave out --precision bfloat16$"):
        resolve("bf16", "reference")


def test_the_numbers_of_each():
    assert dtype("float32") is np.float32
    assert dtype("bfloat16") is ml_dtypes.bfloat16
