"""Every kernel as a GPU would run it: no spills, memory within what the card has, and its tensor cores at work."""

import pytest

pytest.importorskip("triton")

from tests.kernels.cuda import compiling

CASES = compiling.all_cases()


@pytest.fixture(scope="module")
def reports(request):
    """Of the cases that this run has chosen, compiled together."""
    chosen = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    return compiling.compile_apart(chosen)


@pytest.mark.parametrize("name", CASES)
def test_compiles_well(reports, name):
    case, capability = CASES[name]
    report = reports[name]
    assert "error" not in report, report["error"]
    assert report["spills"] == 0, f"{report['spills']} moves of spilled registers"
    assert report["shared"] <= compiling.SHARED_LIMIT[capability]
    assert report["tensor_memory"] <= compiling.TENSOR_MEMORY_LIMIT
    if case.tensor_cores:
        named = isinstance(case.tensor_cores, str)
        wanted = (case.tensor_cores,) if named else compiling.TENSOR_CORES[capability]
        assert any(report["sass"].get(name) for name in wanted), f"no {' or '.join(wanted)} among its instructions"
