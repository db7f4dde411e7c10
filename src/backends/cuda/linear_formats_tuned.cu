#include "backends/cuda/matmul.cuh"
#include "backends/cuda/matmul_stream.cuh"

namespace proa::cuda {

template void matmul::launch<Q4_0>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q4_0>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q8_0>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q8_0>(std::span<const MatMul>, const Launch&);
template void matmul::launch<BF16>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<BF16>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q5_0>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q5_0>(std::span<const MatMul>, const Launch&);
template void matmul::launch<F8_E4M3>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<F8_E4M3>(std::span<const MatMul>, const Launch&);

}  // namespace proa::cuda
