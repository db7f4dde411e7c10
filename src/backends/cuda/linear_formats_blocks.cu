#include "backends/cuda/matmul.cuh"

namespace proa::cuda {

template void matmul::launch<IQ4_NL>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<IQ4_XS>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q2_K>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q3_K>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q4_K>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q5_K>(const MatMul&, int tiles, const Launch&);
template void matmul::launch<Q6_K>(const MatMul&, int tiles, const Launch&);

}  // namespace proa::cuda
