// From a name or path and flags to a checkpoint: a file, a model of the cache, or dummy weights in memory.
#pragma once

#include <string>

#include "apps/open_engine.h"
#include "checkpoint/checkpoint.h"
#include "models/dummy.h"

namespace proa {

// What --load-format, --quantization and --seed ask for. Errors beside those of the readers: an unknown model or
// precision, with the known ones; dummy weights that do not fit in memory, with both sizes and a command that fits.
// Dummy weights for a device with memory of its own are left for it to make: none of them takes memory here.
Result<Checkpoint> open_checkpoint(const OpenOptions& options, bool for_device = false);

// The same with dummy weights by their headers alone: no byte of them is made, so any size can be looked at.
Result<Checkpoint> open_headers(const OpenOptions& options);

// A command with dummy weights, the most precise that take at most `available` bytes; "" where nothing does, or where
// the options ask for a checkpoint.
std::string dummy_that_fits(const OpenOptions& options, uint64_t available);

struct DummyRequest {
  std::string name;               // for people: the model's, or the folder's
  std::string published;          // of a known model its full name; empty: a folder
  nlohmann::ordered_json config;  // config.json
  const Precision* precision = nullptr;
};
// `model` is a known name (with or without organisation and precision) or a folder with a config.json; an empty
// quantization is that of the name, or bf16.
Result<DummyRequest> find_dummy(const std::string& model, const std::string& quantization);

// What the checkpoint is called: "NVIDIA-Nemotron-3-Nano-30B-A3B-q4_0-dummy".
std::string dummy_name(const DummyRequest& request);

}  // namespace proa
