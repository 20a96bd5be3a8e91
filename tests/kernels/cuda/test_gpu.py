"""The device on cuda-core itself, over a driver that has no GPU and does nothing until it must."""

from pathlib import Path

import pytest

from tests.kernels.cuda import fake_gpu

SESSION = Path(__file__).with_name("gpu_session.py")
IN_A_GRAPH = "while a graph is captured: it would happen once, and not with the graph"
ANSWERS = {
    "what_it_is": ["NVIDIA H200", [9, 0], 2**37, False],
    "arrays_come_back_as_they_went": [True] * 5,
    "views_are_copied_by_their_strides": [
        [18, 19, 20, 21, 22, 23], [6, 7, 9, 9, 9, 11], [12, 13, 9, 9, 9, 17], [18, 19, 20, 21, 22, 23]
    ],
    "small_arrays_share_a_piece": [True, 512, True],
    "memory_goes_back_with_its_arrays": [0, 1],
    "a_number_is_read_as_it_was_when_asked_for": [False, 0.0, 2.5, True, 2.5],
    "numbers_of_other_types_are_read": [-7.0, 0.1, 200.0],
    "many_numbers_may_be_on_their_way": [True, 0],
    "lots_go_ahead_and_are_delivered_in_order": [[True, n / 2] for n in range(1, 7)],
    "a_lot_is_waited_for_where_it_is_delivered": list(range(8)),
    "a_lot_is_not_overwritten_before_it_is_delivered": list(range(9)),
    "a_lot_of_a_wrong_size_is_refused": [
        "ValueError: 2 batches wait already: deliver one before the next is put",
        "ValueError: 1 addresses for a batch of 2 arrays",
        "ValueError: no batch waits to be delivered",
        "ValueError: a batch of 768 bytes where 512 were planned",
    ],
    "a_graph_does_what_the_function_did": [[[0.0, *[float(i + n) for i in range(1, 6)]] for n in range(4)], 2, 3],
    "a_failed_capture_leaves_the_stream_usable": [
        f"memory is taken {IN_A_GRAPH}", [[5.0, 6.0, 7.0]] * 2, [0.0, 1.0, 1.0], True
    ],
    "what_a_graph_could_not_repeat_is_refused": [
        f"RuntimeError: an array is copied from the host {IN_A_GRAPH}",
        f"RuntimeError: an array is copied to the host {IN_A_GRAPH}",
        f"RuntimeError: a number is read {IN_A_GRAPH}",
    ],
    "kernels_start_on_our_stream": [3, True],
    "time_between_two_moments": 0.0015,
}  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return fake_gpu.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def session(driver):
    return fake_gpu.told(driver, SESSION.read_text(encoding="utf-8"), FAKE_CUDA_LOG=str(driver / "log"))


@pytest.mark.parametrize("question", ANSWERS)
def test_the_gpu_does(session, question):
    assert session[question] == ANSWERS[question]


def test_every_question_has_an_answer(session):
    assert session.keys() == ANSWERS.keys()


OPEN = "from llmpy.kernels.cuda import device; device.current()"


@pytest.mark.parametrize(
    ("script", "environment", "message"),
    [
        (OPEN, {"LLMPY_CUDA_DEVICE": "3", "FAKE_CUDA_COUNT": "2"},
         "there is no GPU 3: this machine has 2, so give 0 to 1"),
        (OPEN, {"LLMPY_CUDA_DEVICE": "1"}, "there is no GPU 1: this machine has 1, so give 0 alone"),
        (OPEN, {"LLMPY_CUDA_DEVICE": "first"}, "LLMPY_CUDA_DEVICE=first is no number of a GPU: give 0, 1, ..."),
        (
            f"{OPEN}; device.current().take(2 * 10**9)", {"FAKE_CUDA_MEMORY": "1000000000"},
            "the NVIDIA H200 refused 2.00 GB of memory, 1.00 GB are free: end what else computes on it (nvidia-smi "
            "shows it), or lower --batch-size",
        ),
        (
            f"{OPEN}; device.choose(0); device.choose(1)", {"FAKE_CUDA_COUNT": "2"},
            "this process computes on GPU 0 already: use cuda:1 in another one",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(driver, script, environment, message):
    done = fake_gpu.run(driver, script, **environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"llmpy.errors.UserError: {message}"


def test_another_gpu_is_chosen_by_the_name_of_the_backend(driver, tmp_path):
    script = "from llmpy import kernels; import json; print(json.dumps(kernels.load('cuda:1').device_name()))"
    assert fake_gpu.told(driver, script, FAKE_CUDA_COUNT="2", FAKE_CUDA_LOG=str(tmp_path / "log")) == "NVIDIA H200"
    opened = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("context")]
    assert set(opened) == {"context 1 0"}


def test_pytorch_in_the_same_process_is_not_asked(driver, tmp_path):
    pytest.importorskip("torch")
    script = f"import torch\n{SESSION.read_text(encoding='utf-8').partition('if __name__')[0]}"
    script += "print(json.dumps(kernels_start_on_our_stream()))"
    assert fake_gpu.told(driver, script, FAKE_CUDA_LOG=str(tmp_path / "log")) == [3, True]


def test_a_run_that_does_not_fit_is_told_the_largest_batch_that_does(driver):
    script = """
import json
from dataclasses import replace
from llmpy.errors import UserError
from llmpy.models.presets import shape_of
from llmpy.training.config import TrainConfig
from llmpy.training.setup import check_memory
config = TrainConfig(device="cuda", model="d12", batch_size=64, sequence_length=1024, precision="float32")
def said(config):
    try:
        check_memory(shape_of("d12", 50257, 1024), config)
    except UserError as error:
        return str(error)
first = said(config)
fits = int(first.rpartition("--batch-size ")[2].split()[0])
print(json.dumps([first, said(replace(config, batch_size=fits)), said(replace(config, batch_size=fits + 1)) is None]))
"""
    first, at_most, more = fake_gpu.told(driver, script, FAKE_CUDA_MEMORY=str(12 * 10**9))
    assert "GB of memory on the NVIDIA H200, and 11.5 GB are free: --batch-size" in first
    assert at_most is None
    assert not more


def test_the_driver_itself_says_what_cards_there_are(driver):
    script = "import json; from dataclasses import asdict; from llmpy.kernels import gpu_detect; "
    script += "print(json.dumps(asdict(gpu_detect.ask())))"
    card = {"name": "NVIDIA L4", "memory": 2**37, "capability": [9, 0]}
    cards = [{"ordinal": 0, **card}, {"ordinal": 1, **card}]
    found = fake_gpu.told(driver, script, FAKE_CUDA_COUNT="2", FAKE_CUDA_NAME="NVIDIA L4", FAKE_CUDA_VERSION="12080")
    assert found == {"cuda": [12, 8], "cards": cards, "problem": None}
    assert fake_gpu.told(driver, script, FAKE_CUDA_INIT="100") == {"cuda": [13, 0], "cards": [], "problem": None}
    broken = fake_gpu.told(driver, script, FAKE_CUDA_INIT="803")
    assert (broken["cards"], broken["problem"]) == ([], "CUDA_ERROR_X")
