"""Each fault of a table, planted in a kernel, is found: so a twin's agreement with its reference means something."""

from concurrent.futures import wait

import pytest
from compile import sources
from faults import FAULTS, Fault, changed, check, planted

from minitune.twins.cuda import emulation
from minitune.twins.cuda.kernel import Source

pytestmark = pytest.mark.usefixtures("gxx")
pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")


@pytest.fixture(scope="module")
def compiled(request, pool):
    """What the selected tests compile, begun at once on all cores: by stem, and by fault in the form that is tried first."""
    chosen = [item.callspec.params for item in request.session.items
              if item.path == request.path and "compiled" in getattr(item, "fixturenames", ())]
    return {one: built(pool, one) for params in chosen for one in params.values()}


def built(pool, one):
    """The compilation of a file of kernels as it is, or with a fault."""
    stem, text = (one.stem, changed(one)) if isinstance(one, Fault) else (one, None)
    source = sources()[stem]
    forms = [defines for defines in source.variants() if set(defines) <= {"BF16", *first_sizes(source)}]
    text = Source(stem, text).text("cpu")
    return [pool.submit(emulation.build, stem, text, list(source.kernels.values()), defines)
            for defines in (forms[:1] if isinstance(one, Fault) else forms)]


def first_sizes(source):
    return [f"{name}={values[0]}" for name, values in source.choices.items()]


@pytest.mark.parametrize("stem", sources())
def test_as_it_is_a_kernel_agrees_in_float32_and_bfloat16_in_two_orders(stem, compiled):
    wait(compiled[stem])
    check(stem)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.beyond], ids=str)
def test_a_planted_fault_is_found(fault, compiled):
    wait(compiled[fault])
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
