#include "backends/cuda/matmul.cuh"

namespace proa::cuda {

template void matmul::launch<E2M1>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<MXFP4>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<NVFP4>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<F16>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<F32>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q4_1>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q5_1>(const MatMul&, int tiles, const Launch&);

}  // namespace proa::cuda
