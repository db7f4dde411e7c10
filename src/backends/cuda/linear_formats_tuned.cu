#include "backends/cuda/matmul.cuh"

namespace proa::cuda {

template void matmul::launch<Q4_0>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q8_0>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<BF16>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q5_0>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<F8_E4M3>(const MatMul&, int tiles, const Launch&);

}  // namespace proa::cuda
