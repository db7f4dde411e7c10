#include "backends/cuda/gemm.cuh"

namespace proa::cuda {

template void gemm::launch<Q4_0>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q8_0>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<BF16>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<F8_E4M3>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<E2M1>(const Gemm&, int tiles, const Launch&);

}  // namespace proa::cuda
