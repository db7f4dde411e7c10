// Any known model at full size with dummy weights, in any known precision: the recipe of a checkpoint, to be laid into
// memory (Checkpoint::dummy) or written to disk.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/dummy_checkpoint.h"
#include "core/result.h"
#include "models/precision.h"

namespace proa {

struct DummyOptions {
  uint64_t seed = 0;
  bool gguf = false;  // where the precision exists in both kinds of file; where not, the kind that it has
  uint64_t max_shard_bytes = 5'000'000'000;
};

// `name` stands for the path; `config` is a config.json of Nemotron-H. Without MTP layers, which nobody loads without
// asking. Errors: a bad config; a vocabulary of less than 512 tokens.
Result<DummyCheckpoint> make_dummy(const std::string& name, const nlohmann::ordered_json& config,
                                   const Precision& precision, const DummyOptions& options = {});

// A smaller model of the same kind: the first `layers` layers (0: all), widths, heads and vocabulary divided by
// `divisor` and rounded to multiples of 64, experts as many as they are. Errors name the flag (--layers,
// --scale-down) or the field that is not what it must be.
Result<nlohmann::ordered_json> scale_config(nlohmann::ordered_json config, int64_t layers, int64_t divisor);

}  // namespace proa
