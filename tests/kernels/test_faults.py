"""Each fault of a table, planted in a kernel, is found: so a twin's agreement with its reference means something."""

import pytest
from compile import sources
from faults import END, FAULTS, Fault, changed, check, planted

from minitune.twins.cuda import emulation
from minitune.twins.cuda.kernel import Source

pytestmark = pytest.mark.usefixtures("gxx", "compiled")
pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
PLANTED = "test_a_planted_fault_is_found"


@pytest.fixture(scope="module")
def compiled(request, pool):
    """The kernels with the selected faults, compiled ahead on all cores, in the form that is tried first."""
    for item in request.session.items:
        if item.originalname == PLANTED:
            fault = item.callspec.params["fault"]
            source = sources()[fault.stem]
            text = Source(fault.stem, changed(fault)).text("cpu")
            pool.submit(emulation.build, fault.stem, text, list(source.kernels.values()), source.variants()[0])


@pytest.mark.parametrize("stem", sources())
def test_as_it_is_a_kernel_agrees_in_float32_and_bfloat16_in_two_orders(stem):
    check(stem)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.found != END], ids=str)
def test_a_planted_fault_is_found(fault):
    with planted(fault), pytest.raises((AssertionError, emulation.EmulationError)):
        check(fault.stem)


@pytest.mark.parametrize("stem", sources())
def test_every_file_of_kernels_has_two_faults_in_the_table(stem):
    assert len({fault.old for fault in FAULTS if fault.stem == stem}) >= 2


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_changes_the_text_in_one_place(fault):
    assert changed(fault) != sources()[fault.stem].text()


def test_a_fault_whose_place_is_gone_is_told():
    with pytest.raises(ValueError, match="its old text stands 0 times in kernels/softmax.cu: mend the table"):
        changed(Fault("softmax", "gone", "no such text", ""))


def test_after_a_fault_the_kernel_is_as_it_was():
    with pytest.raises(AssertionError), planted(next(fault for fault in FAULTS if fault.stem == "softmax")):
        check("softmax")
    check("softmax")
