"""What keeps a GPU from being used, one part after the other, and what `auto` makes of it."""

import shutil
import sys
from importlib import metadata

import pytest

from llmpy import kernels
from llmpy.errors import UserError
from llmpy.kernels import gpu_detect, gpu_requirements
from llmpy.training.config import TrainConfig
from llmpy.utils import progress_bar

CARD = gpu_detect.Card(0, "NVIDIA H200", 141 * 10**9, (9, 0))
DRIVER = gpu_detect.Driver((13, 0), (CARD,))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that has everything; what is given goes wrong."""

    def lacking(driver=DRIVER, modules=(), programs=(), header=True, bindings="13.1.1"):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(gpu_detect, "ask", lambda: driver)
        monkeypatch.setattr(gpu_requirements, "_is_there", lambda name: name not in modules and "nvmath" not in name)
        monkeypatch.setattr(gpu_requirements, "_version", lambda name: bindings if name == "cuda-bindings" else "3.6.0")
        programs = {*programs, "dnf"}
        monkeypatch.setattr(shutil, "which", lambda name: None if name in programs else f"/usr/bin/{name}")
        if header:
            (tmp_path / "Python.h").touch()
        monkeypatch.setattr(gpu_requirements.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
        monkeypatch.setattr(gpu_requirements.os, "geteuid", lambda: 1000)
        gpu_requirements.missing.cache_clear()
        kernels.backend_of.cache_clear()

    yield lacking
    gpu_requirements.missing.cache_clear()
    kernels.backend_of.cache_clear()


PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
MISSING = [
    ({"driver": None}, "NVIDIA's driver (libcuda.so.1)", "sudo apt install nvidia-driver"),
    (
        {"driver": gpu_detect.Driver((12, 4), problem="system not yet initialized")},
        "driver",
        "'system not yet initialized'",
    ),
    ({"driver": gpu_detect.Driver((13, 0))}, "an NVIDIA GPU", "use --device cpu"),
    ({"modules": ("triton",)}, "Triton", gpu_requirements.install_extra("cuda")),
    ({"modules": ("cuda.core",)}, "cuda-core", gpu_requirements.install_extra("cuda")),
    ({"modules": ("cuda.bindings",)}, "cuda-bindings", gpu_requirements.install_extra("cuda")),
    (
        {"driver": gpu_detect.Driver((12, 8), (CARD,))},
        "cuda-bindings for CUDA 12 (there is 13.1.1)",
        gpu_requirements.install_extra("cuda12"),
    ),
    ({"programs": ("gcc", "clang")}, "a C compiler (gcc)", "sudo apt install gcc"),
    ({"header": False}, "Python.h", f"sudo apt install {PYTHON}-dev"),
]


@pytest.mark.parametrize(("lacks", "name", "remedy"), MISSING)
def test_each_part_that_is_missing_is_named_with_its_remedy(machine, lacks, name, remedy):
    machine(**lacks)
    with pytest.raises(UserError) as error:
        kernels.load("cuda")
    message = str(error.value)
    assert message.startswith("--device cuda: ")
    assert f"{name} is missing" in message or (name == "driver" and "NVIDIA's driver" in message)
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(("lacks", "name", "remedy"), MISSING)
def test_auto_takes_the_cpu_and_says_what_keeps_a_gpu_from_use(machine, capsys, monkeypatch, lacks, name, remedy):
    monkeypatch.setattr(progress_bar, "_told", set())
    machine(**lacks)
    assert TrainConfig().backend == "cpu"
    told = capsys.readouterr().err
    driver = lacks.get("driver", DRIVER)
    if driver is None or not driver.cards:
        assert told == ""
    else:
        assert told.startswith(f"llmpy: computing on the CPU: for the NVIDIA H200, {name} is missing: ")
        assert remedy in told


def test_auto_takes_a_gpu_that_lacks_nothing(machine, capsys):
    machine()
    assert kernels.backend_of("auto") == "cuda"
    assert [kernels.backend_of(name) for name in ("cpu", "cuda:1", "reference")] == ["cpu", "cuda:1", "reference"]
    assert capsys.readouterr().err == ""
    assert gpu_requirements.missing() is None
    assert [part.name for part in gpu_requirements.of_gpu() if not part.ok] == [gpu_requirements.of_gpu()[-1].name]


def test_where_the_interpreter_stands_in_for_a_gpu_auto_is_the_cpu(machine, monkeypatch):
    machine()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.backend_of("auto") == "cpu"
    monkeypatch.setattr(gpu_requirements, "_is_there", lambda name: False)
    with pytest.raises(UserError, match="Triton is missing"):
        kernels.load("cuda")


def test_a_compiler_may_be_named_by_cc(machine, monkeypatch):
    machine(programs=("gcc", "clang"))
    monkeypatch.setenv("CC", "tcc -O2")
    assert gpu_requirements.missing() is None
    machine(programs=("gcc", "clang", "tcc"))
    monkeypatch.setenv("CC", "tcc")
    assert gpu_requirements.missing().remedy == "sudo apt install gcc, or unset CC"


def test_without_a_driver_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(gpu_detect, "LIBRARY", "libno-such-driver.so.1")
    assert gpu_detect.ask() is None


def test_versions_come_from_the_packages_themselves():
    assert gpu_requirements._version("numpy") == metadata.version("numpy")
    assert gpu_requirements._version("no-such-package") == "of no known version"
    assert not gpu_requirements._is_there("no_such_package.module")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"])
def test_a_device_that_there_is_not_is_refused(name):
    with pytest.raises(UserError, match=f"no kernels for '{name}': use auto, reference, cpu, cuda, or cuda:N"):
        kernels.load(name)
    with pytest.raises(UserError, match=f"--device is auto, cpu, cuda, cuda:N or reference, not {name}"):
        TrainConfig(device=name)


def test_an_extra_is_added_to_the_clone_or_to_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_requirements, "CLONE", tmp_path)
    assert gpu_requirements.install_extra("cuda") == "pip install 'llm.py[cuda]'"
    (tmp_path / "pyproject.toml").touch()
    assert gpu_requirements.install_extra("cuda") == f"pip install -e '{tmp_path}[cuda]'"
