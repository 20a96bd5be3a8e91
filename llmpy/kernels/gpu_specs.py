"""Peak FLOP/s and bandwidth of GPUs, by the names that NVIDIA's driver reports. MFU is a share of the peak.

TFLOP/s without sparsity, at boost clock, accumulating in float32; memory in GB/s. NVIDIA's data sheets give the matmul
speed of data-centre GPUs with sparsity: those figures are halved here. Sources, all of them NVIDIA's:

    H100 SXM, PCIe, NVL; H200     data sheets of H100 (2024) and H200 (2024); "Hopper Architecture" white paper
    B200, GB200                   "Blackwell Architecture" technical brief (2024), figures of one GPU
    A100 40 GB, 80 GB             A100 data sheet (2021)
    A10, A40, L4, L40S            their data sheets (2021, 2021, 2023, 2023)
    RTX 3090, RTX A6000           "Ampere GA102 Architecture" white paper, appendix A; RTX A6000 data sheet
    RTX 4090, RTX 6000 Ada        "Ada Architecture" white papers, GeForce and professional
    RTX 5090, RTX PRO 6000        "RTX Blackwell Architecture" white papers, GeForce and professional
    T4, V100                      their data sheets (2019, 2020); neither has bfloat16 or tf32

Names are compared whole: a laptop's, a part of a card (MIG) or a variant that is not listed is unknown, not guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of matmuls in bfloat16, tf32 and plain float32, GB/s of memory; None: the GPU has no such matmul."""

    bfloat16: float | None
    tf32: float | None
    float32: float
    bandwidth: float


_BY_NAME = {
    r"H100 80GB HBM3|H100 SXM5( 80GB)?": Peak(989.4, 494.7, 66.9, 3352),
    r"H100 PCIe": Peak(756, 378, 51.2, 2039),
    r"H100 NVL": Peak(835.5, 417.5, 60, 3900),
    r"H200": Peak(989.4, 494.7, 66.9, 4800),
    r"H200 NVL": Peak(835.5, 417.5, 60, 4800),
    r"B200": Peak(2250, 1100, 75, 7700),
    r"GB200": Peak(2500, 1250, 80, 8000),
    r"A100-SXM4-40GB|A100-PCIE-40GB": Peak(312, 156, 19.5, 1555),
    r"A100-SXM4-80GB": Peak(312, 156, 19.5, 2039),
    r"A100 80GB PCIe": Peak(312, 156, 19.5, 1935),
    r"A10": Peak(125, 62.5, 31.2, 600),
    r"A40": Peak(149.7, 74.8, 37.4, 696),
    r"L4": Peak(121, 60, 30.3, 300),
    r"L40S": Peak(362.05, 183, 91.6, 864),
    r"RTX 3090": Peak(71, 35.6, 35.6, 936),
    r"RTX A6000": Peak(154.8, 77.4, 38.7, 768),
    r"RTX 4090": Peak(165.2, 82.6, 82.6, 1008),
    r"RTX 6000 Ada Generation": Peak(364.2, 182.1, 91.1, 960),
    r"RTX 5090": Peak(209.5, 104.8, 104.8, 1792),
    r"RTX PRO 6000 Blackwell Workstation Edition": Peak(503.8, 251.9, 126.0, 1792),
    r"T4": Peak(None, None, 8.1, 320),
    r"V100-SXM2-(16|32)GB": Peak(None, None, 15.7, 900),
    r"V100-PCIE-(16|32)GB": Peak(None, None, 14.0, 900),
}


def peak(name: str) -> Peak | None:
    """The peak of the GPU with this name; None for an unknown GPU."""
    short = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name.strip())
    return next((figures for pattern, figures in _BY_NAME.items() if re.fullmatch(pattern, short)), None)


def peak_flops(name: str, precision: str) -> float | None:
    """The highest FLOP/s of a GPU in float32 or bfloat16; None for an unknown GPU."""
    figures = peak(name)
    teraflops = figures and (figures.bfloat16 if precision == "bfloat16" else figures.float32)
    return teraflops * 1e12 if teraflops else None
