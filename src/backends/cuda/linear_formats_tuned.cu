#include "backends/cuda/matmul.cuh"
#include "backends/cuda/matvec.cuh"

namespace proa::cuda {

template void matvec::launch<Q4_0>(const MatVec&, const Launch&);
template void matmul::launch<Q4_0>(const MatMul&, int tiles, const Launch&);
template void matvec::launch<Q8_0>(const MatVec&, const Launch&);
template void matmul::launch<Q8_0>(const MatMul&, int tiles, const Launch&);
template void matvec::launch<BF16>(const MatVec&, const Launch&);
template void matmul::launch<BF16>(const MatMul&, int tiles, const Launch&);
template void matvec::launch<Q5_0>(const MatVec&, const Launch&);
template void matmul::launch<Q5_0>(const MatMul&, int tiles, const Launch&);
template void matvec::launch<F8_E4M3>(const MatVec&, const Launch&);
template void matmul::launch<F8_E4M3>(const MatMul&, int tiles, const Launch&);

}  // namespace proa::cuda
