#include "backends/cuda/gemm.cuh"

namespace proa::cuda {

template void gemm::launch<MXFP4>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<NVFP4>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<F16>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q4_1>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q5_0>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q5_1>(const Gemm&, int tiles, const Launch&);

// Never asked for: its rows do not fit.
template <>
void gemm::launch<F32>(const Gemm&, int, const Launch&) {}

}  // namespace proa::cuda
