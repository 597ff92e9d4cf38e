// swiglu: y = gate s up with s = 1 / (1 + e^-gate), for gate, up and y (N,).
//
// Both kernels: one thread a pack of 16 bytes, 256 threads a block, grid ceil(N / (256 PACK)). forward moves 3 numbers an
// element; backward, which makes s again, 5: grad_gate = grad up s (1 + gate (1 - s)), grad_up = grad gate s.
// Deterministic. Reference: minitune/ops/swiglu.py.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) swiglu_forward(const real* gate, const real* up, real* y, long long N) {
    long long i = first_of_thread();
    Pack p = load_pack(gate, i, N), q = load_pack(up, i, N);
    for (int k = 0; k < PACK; k++) {
        float g = to_float(p.at[k]), e = expf(-fabsf(g));                   // cannot overflow
        p.at[k] = to_real(g * ((g < 0 ? e : 1) / (1 + e)) * to_float(q.at[k]));
    }
    store_pack(y, i, N, p);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    const real* grad, const real* gate, const real* up, real* grad_gate, real* grad_up, long long N) {
    long long i = first_of_thread();
    Pack along = load_pack(grad, i, N), p = load_pack(gate, i, N), q = load_pack(up, i, N);
    for (int k = 0; k < PACK; k++) {
        float a = to_float(along.at[k]), g = to_float(p.at[k]), e = expf(-fabsf(g)), larger = 1 / (1 + e), smaller = e * larger;
        float s = g < 0 ? smaller : larger, rest = g < 0 ? larger : smaller;    // rest = 1 - s, no digit of it lost
        p.at[k] = to_real(a * to_float(q.at[k]) * s * (1 + g * rest));
        q.at[k] = to_real(a * g * s);
    }
    store_pack(grad_gate, i, N, p);
    store_pack(grad_up, i, N, q);
}
