"""A stand-in for CuPy, so that what only a GPU takes is walked without one.

Its arrays lie in ordinary memory, its kernels run on the emulation, its cuBLAS multiplies column by column from raw addresses.
Where NumPy is lenient it is as strict as CuPy 14: no implicit conversion, no NumPy array as an operand or index, reductions
give arrays without axes, only names that CuPy has. And it notes what makes the host wait for the device (`waits`).
"""

from __future__ import annotations

import ctypes
import operator
import sys
from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np

from minitune.twins import cuda
from minitune.twins.cuda import emulation
from minitune.twins.cuda.kernel import Source

waits: list[str] = []           # what made the host wait, in order
memory: list[tuple[int, int]] | None = None     # (start, stop) of all that was given room, where that is watched

METHODS = """all any argmax argmin argsort astype clip copy cumsum dot fill flatten max mean min prod ravel repeat reshape
round searchsorted sort squeeze std sum swapaxes take transpose var view""".split()
FUNCTIONS = """abs add any all arange argmax argsort ascontiguousarray broadcast_to clip concatenate cos cumsum divide
empty_like exp full full_like isfinite isnan lexsort log log1p logaddexp matmul maximum mean minimum multiply ones ones_like pad
power searchsorted sign sin sort sqrt stack subtract sum take tanh unique vdot where zeros zeros_like""".split()
UNARY = ["neg", "abs", "invert"]
BINARY = "add sub mul truediv floordiv mod pow matmul lshift rshift and or xor eq ne lt le gt ge".split()


class ndarray:
    """An array that pretends to lie on a GPU."""

    __array_ufunc__ = None

    def __init__(self, host):
        self._host = host
        if memory is not None:
            while isinstance(host.base, np.ndarray):
                host = host.base
            memory.append((host.ctypes.data, host.ctypes.data + host.nbytes))

    shape, dtype, ndim, size = (property(lambda self, n=n: getattr(self._host, n)) for n in ("shape", "dtype", "ndim", "size"))
    nbytes, itemsize, strides, flags = (property(lambda self, n=n: getattr(self._host, n))
                                        for n in ("nbytes", "itemsize", "strides", "flags"))
    T = property(lambda self: ndarray(self._host.T))
    base = property(lambda self: None if self._host.base is None else ndarray(self._host.base))
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))
    device = SimpleNamespace(id=99)             # no GPU has this number: what is kept for it meets no real one

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        if any(getattr(part, "dtype", None) == np.bool_ for part in (index if isinstance(index, tuple) else (index,))):
            _wait("boolean index")
        return _wrapped(self._host[_index(index)])

    def __setitem__(self, index, value):
        self._host[_index(index)] = _host(value)

    def get(self):
        _wait("get")
        return self._host.copy()

    def item(self):
        _wait("item")
        return self._host.item()

    def tolist(self):
        _wait("tolist")
        return self._host.tolist()

    def nonzero(self):
        _wait("nonzero")
        return tuple(map(ndarray, self._host.nonzero()))

    def __bool__(self):
        _wait("bool")
        return bool(self._host)

    def __int__(self):
        _wait("int")
        return int(self._host)

    def __float__(self):
        _wait("float")
        return float(self._host)

    __index__ = __int__
    __hash__ = None


ndarray.__module__ = "cupy"


def _method(name):
    return lambda self, *given, **named: _wrapped(getattr(self._host, name)(*map(_host, given), **_hosts(named)))


def _unary(name):
    return lambda self: _wrapped(getattr(operator, name)(self._host))


def _binary(name, reflected=False):
    def compute(self, other):
        pair = self._host, _host(other)
        return _wrapped(getattr(operator, f"{name}_" if name in ("and", "or") else name)(*(pair[::-1] if reflected else pair)))
    return compute


def _in_place(name):
    def compute(self, other):
        self._host = getattr(operator, f"i{name}")(self._host, _host(other))
        return self
    return compute


for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in UNARY:
    setattr(ndarray, f"__{_name}__", _unary(_name))
for _name in BINARY:
    setattr(ndarray, f"__{_name}__", _binary(_name))
    if _name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__r{_name}__", _binary(_name, reflected=True))
for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(ndarray, f"__i{_name}__", _in_place(_name))


def _wait(what):
    frame = sys._getframe(2)
    waits.append(f"{what}, {frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")


def _host(value):
    """What NumPy computes with; NumPy's own arrays are refused, as CuPy refuses them."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return type(value)(map(_host, value)) if type(value) in (tuple, list) else value


def _hosts(named):
    return {name: _host(value) for name, value in named.items()}


def _index(index):
    return tuple(map(_host, index)) if isinstance(index, tuple) else _host(index)


def _wrapped(result):
    if isinstance(result, (tuple, list)):
        return type(result)(map(_wrapped, result))
    return ndarray(np.asarray(result)) if isinstance(result, (np.ndarray, np.generic)) else result


def _function(name):
    function = getattr(np, name)
    return lambda *given, **named: _wrapped(function(*map(_host, given), **_hosts(named)))


def asarray(a, dtype=None):
    """NumPy arrays are copied to the device here, and in `array`, alone."""
    if isinstance(a, ndarray):
        return a if dtype in (None, a.dtype) else a.astype(dtype)
    return ndarray(np.array(a, dtype))


# ---- cuBLAS ----------------------------------------------------------------------------------------------------------

TYPES = {0: np.dtype(np.float32), 14: np.dtype(ml_dtypes.bfloat16)}        # cudaDataType_t
HANDLE = 7
mode = 0                        # cublasMath_t of the handle


def set_math_mode(handle, wanted):
    global mode
    assert handle == HANDLE
    mode = wanted


def gemm_ex(handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algo):
    """C = alpha op(A) op(B) + beta C, as cuBLAS defines cublasGemmEx; parameters as CuPy's cublas.gemmEx has them."""
    assert handle == HANDLE and min(m, n, k) > 0 and (compute, algo) == (68, -1)
    assert mode & 16, "cuBLAS may round parts of a sum to the dtype of the result"
    assert (a_type, b_type, c_type) in {(14, 14, 14), (14, 14, 0), (0, 0, 0)}, "cuBLAS has no such product"
    left = _by_columns(a, k, m, lda, a_type).T if transa else _by_columns(a, m, k, lda, a_type)
    right = _by_columns(b, n, k, ldb, b_type).T if transb else _by_columns(b, k, n, ldb, b_type)
    result, scales = _by_columns(c, m, n, ldc, c_type), [ctypes.c_float.from_address(x).value for x in (alpha, beta)]
    y = scales[0] * (left.astype(np.float32) @ right.astype(np.float32))
    result[...] = (y + scales[1] * result.astype(np.float32) if scales[1] else y).astype(result.dtype)


def _by_columns(address, rows, columns, step, kind):
    """The matrix that cuBLAS sees at an address: element (i, j) is number i + j step."""
    assert step >= max(1, rows), "cuBLAS refuses a leading dimension shorter than a column"
    dtype = TYPES[kind]
    size = (step * (columns - 1) + rows) * dtype.itemsize
    assert memory is None or any(start <= address and address + size <= stop for start, stop in memory), "outside of all arrays"
    numbers = np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8).view(dtype)
    return np.lib.stride_tricks.as_strided(numbers, (rows, columns), (dtype.itemsize, step * dtype.itemsize))


# ---- Kernels ---------------------------------------------------------------------------------------------------------

class RawModule:
    """Finds the Source whose text it was given and runs that on the emulation."""

    def __init__(self, code, options=()):
        modules = [import_module(f"{cuda.__name__}.{module.name}") for module in iter_modules(cuda.__path__)]
        (self.source,) = {found for module in modules for found in vars(module).values()
                          if isinstance(found, Source) and found.text() == code}
        self.defines = tuple(option.removeprefix("-D") for option in options)

    def get_function(self, name):
        kernel = self.source.kernels[name]
        return RawKernel(kernel, self.source.function(name, np.empty(0), self.defines))


class RawKernel:
    def __init__(self, kernel, function):
        self.kernel, self.function, self.max_dynamic_shared_size_bytes = kernel, function, 48 << 10

    def __call__(self, grid, block, arguments, shared_mem=0):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        for p, a in zip(self.kernel.parameters, arguments, strict=True):
            assert p.dims is not None or isinstance(a, np.generic), f"{p.name}: a Python number would be passed with 8 bytes"
            assert p.dims is None or isinstance(a, ndarray) or a == np.uint64(0), f"{p.name}: null is 8 bytes of zeros"
        given = [None if p.dims is not None and isinstance(a, np.generic) else _host(a)
                 for p, a in zip(self.kernel.parameters, arguments, strict=True)]
        emulation.run(self.kernel, self.function, grid, block, given, shared_mem)


# ---- The module ------------------------------------------------------------------------------------------------------

def _empty(shape, dtype=float):
    """What nobody wrote is NaN, and shows."""
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8)[...] = 0xFF
    return ndarray(host)


def module() -> ModuleType:
    """What `import cupy` gives."""
    cupy = ModuleType("cupy")
    for name in FUNCTIONS:
        setattr(cupy, name, _function(name))
    cupy.empty, cupy.ndarray, cupy.asarray, cupy.array = _empty, ndarray, asarray, _array
    cupy.inf, cupy.RawModule = np.inf, RawModule
    cupy.add.at = lambda a, index, values: np.add.at(a._host, _index(index), _host(values))
    cupy.add.reduceat = lambda a, starts, axis=0: _wrapped(np.add.reduceat(_host(a), _host(starts), axis))
    cublas = SimpleNamespace(gemmEx=gemm_ex, getMathMode=lambda handle: mode, setMathMode=set_math_mode)
    cupy.cuda = SimpleNamespace(is_available=lambda: True, cublas=cublas,
                                device=SimpleNamespace(get_cublas_handle=lambda: HANDLE))
    return cupy


def _array(a, dtype=None, copy=True, order="K"):
    return ndarray(np.array(a._host if isinstance(a, ndarray) else a, dtype, order=order))


@contextmanager
def installed(watched=False):
    """Inside this block `import cupy` gives the stand-in, and `waits` begins anew; `watched`: cuBLAS may read arrays alone."""
    global memory, mode
    before, memory, mode = sys.modules.get("cupy"), [] if watched else None, 0
    sys.modules["cupy"] = module()
    waits.clear()
    try:
        yield sys.modules["cupy"]
    finally:
        memory = None
        sys.modules.pop("cupy")
        if before is not None:
            sys.modules["cupy"] = before
