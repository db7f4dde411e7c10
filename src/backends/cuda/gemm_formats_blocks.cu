#include "backends/cuda/gemm.cuh"

namespace proa::cuda {

template void gemm::launch<IQ4_NL>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<IQ4_XS>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q2_K>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q3_K>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q4_K>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q5_K>(const Gemm&, int tiles, const Launch&);
template void gemm::launch<Q6_K>(const Gemm&, int tiles, const Launch&);

}  // namespace proa::cuda
