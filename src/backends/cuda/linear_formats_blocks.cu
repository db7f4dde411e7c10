#include "backends/cuda/matmul.cuh"
#include "backends/cuda/matmul_stream.cuh"

namespace proa::cuda {

template void matmul::launch<IQ4_NL>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<IQ4_NL>(std::span<const MatMul>, const Launch&);
template void matmul::launch<IQ4_XS>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<IQ4_XS>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q2_K>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q2_K>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q3_K>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q3_K>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q4_K>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q4_K>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q5_K>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q5_K>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q6_K>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q6_K>(std::span<const MatMul>, const Launch&);

}  // namespace proa::cuda
