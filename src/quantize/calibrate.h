// Runs prompts through the unquantised model and notes how large the inputs of its linear layers become.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/result.h"
#include "ops/backend.h"
#include "quantize/input_ranges.h"
#include "quantize/plan.h"

namespace proa {

// Called after each prompt with the tokens that were done; an error ends the run.
using CalibrationProgress = std::function<Result<void>(int64_t tokens)>;

// `backend` shares the host's memory; every shard of the source is there. Experts see the tokens that chose them, as in
// use. Errors: as of opening the model; a prompt that is empty or has tokens outside the vocabulary.
Result<InputRanges> calibrate(const QuantizeSource& source, const QuantizePlan& plan, std::shared_ptr<Backend> backend,
                              std::span<const std::vector<int32_t>> prompts, const CalibrationProgress& progress);

}  // namespace proa
