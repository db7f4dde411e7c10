#include "backends/cuda/matmul.cuh"
#include "backends/cuda/matmul_stream.cuh"

namespace proa::cuda {

template void matmul::launch<E2M1>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<E2M1>(std::span<const MatMul>, const Launch&);
template void matmul::launch<MXFP4>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<MXFP4>(std::span<const MatMul>, const Launch&);
template void matmul::launch<NVFP4>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<NVFP4>(std::span<const MatMul>, const Launch&);
template void matmul::launch<F16>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<F16>(std::span<const MatMul>, const Launch&);
template void matmul::launch<F32>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<F32>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q4_1>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q4_1>(std::span<const MatMul>, const Launch&);
template void matmul::launch<Q5_1>(std::span<const MatMul>, const Launch&);
template void matmul_stream::launch<Q5_1>(std::span<const MatMul>, const Launch&);

}  // namespace proa::cuda
