"""The table of GPUs."""

import pytest

from llmpy.kernels.gpu_specs import peak, peak_flops

NAMES = """
NVIDIA H100 80GB HBM3:989.4:3352
NVIDIA H100 PCIe:756:2039
NVIDIA H100 NVL:835.5:3900
NVIDIA H200:989.4:4800
NVIDIA B200:2250:7700
NVIDIA GB200:2500:8000
NVIDIA A100-SXM4-40GB:312:1555
NVIDIA A100-SXM4-80GB:312:2039
NVIDIA A100 80GB PCIe:312:1935
NVIDIA A100-PCIE-40GB:312:1555
NVIDIA A10:125:600
NVIDIA A40:149.7:696
NVIDIA L4:121:300
NVIDIA L40S:362.05:864
NVIDIA GeForce RTX 3090:71:936
NVIDIA GeForce RTX 4090:165.2:1008
NVIDIA GeForce RTX 5090:209.5:1792
NVIDIA RTX A6000:154.8:768
NVIDIA RTX 6000 Ada Generation:364.2:960
NVIDIA RTX PRO 6000 Blackwell Workstation Edition:503.8:1792
""".strip().split("\n")


@pytest.mark.parametrize("line", NAMES)
def test_the_drivers_name_finds_the_card(line):
    name, bfloat16, bandwidth = line.split(":")
    assert (peak(name).bfloat16, peak(name).bandwidth) == (float(bfloat16), float(bandwidth))
    assert peak_flops(name, "bfloat16") == float(bfloat16) * 1e12
    # products of tensor cores: at least twice as many in bfloat16 as in tf32, but for rounding
    assert peak(name).bfloat16 / peak(name).tf32 == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("name", ["Tesla T4", "Tesla V100-SXM2-16GB", "Tesla V100-PCIE-32GB", "NVIDIA T4"])
def test_a_card_without_bfloat16_has_no_peak_in_it(name):
    assert peak_flops(name, "bfloat16") is None
    assert peak_flops(name, "float32") > 8e12


@pytest.mark.parametrize(
    "name",
    ["", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti",
     "NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 5090 D", "NVIDIA A100-SXM-64GB", "AMD Instinct MI300X"],
)  # fmt: skip
def test_what_is_not_in_the_table_is_unknown_and_not_guessed(name):
    assert peak(name) is None
    assert peak_flops(name, "bfloat16") is None
