#include "backends/cuda/step.cuh"

namespace proa::cuda {

template bool launch_step<AnyFormat>(const Stage*, const std::vector<Stage>&, const StepPlaces&, StepMemory,
                                     const Launch&);

}  // namespace proa::cuda
