// Writes what a plan says: streaming, on several threads, in a few megabytes of memory beside the mapped source; a run
// that ends early is taken up again by the next one with the same source, plan and ranges.
#pragma once

#include <functional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "core/result.h"
#include "quantize/input_ranges.h"
#include "quantize/plan.h"

namespace proa {

struct QuantizeOptions {
  int threads = 0;       // 0: one per core
  bool replace = false;  // what has the output's name
  bool restart = false;  // forget what an earlier run left
};

struct QuantizeSummary {
  bool whole = false;         // the output is there under its name; otherwise shards are still to come
  uint64_t items = 0;         // done by this run
  uint64_t items_before = 0;  // done by earlier ones
  uint64_t items_left = 0;
  uint64_t bytes = 0;  // of the output
};

// Called with bytes of the source that were done since the last call; an error ends the run.
using QuantizeProgress = std::function<Result<void>(uint64_t bytes)>;

// The output is written as OUTPUT.partial, with a journal beside it, and gets its name when it is whole. Items whose
// shard is absent are left for a later run. Errors: no room on the disk, before anything is written; a module without a
// range; a value that is not finite, with tensor and row; a journal of something else. OUTPUT.partial then stays, to be
// taken up again or removed.
Result<QuantizeSummary> write_quantized(const QuantizeSource& source, const QuantizePlan& plan,
                                        const InputRanges& ranges, const std::string& output,
                                        const QuantizeOptions& options, const QuantizeProgress& progress);

// The same as a checkpoint that is on no disk: a plan without input scales, of a source without absent shards.
// `headers_alone`: weights are zeros that take no memory, for looking at sizes.
Result<Checkpoint> quantized_in_memory(const QuantizeSource& source, const QuantizePlan& plan, bool headers_alone,
                                       int threads, const QuantizeProgress& progress);

// Gives its memory back once a device has copies of the weights: whole pages of tensors read as zeros from then on.
void discard_weights(const Checkpoint& quantized);

// Removes what an earlier run left of this output.
void discard_partial(const std::string& output);

}  // namespace proa
