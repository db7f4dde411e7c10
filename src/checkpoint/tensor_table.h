// The tensors a model wants, compared with those a checkpoint has: all differences in one error, before anything runs.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_entry.h"
#include "core/result.h"
#include "core/tensor.h"

namespace proa {

class Checkpoint;

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // PyTorch order, at most four sizes
  bool optional = false;
  std::vector<Format> formats;       // allowed ones; empty: any
  std::vector<std::string> aliases;  // other spellings; the first that is there counts
  double low = 0, high = 0;          // range that random values of it are drawn from, where a model states one
};

// By TensorSpec::name. An optional tensor that is not there has no entry. Each Tensor carries the shape of its spec.
using TensorMap = std::map<std::string, Tensor, std::less<>>;

// Sizes of 1 do not matter when shapes are compared: {1, 64} serves for [64], [6144, 4] for [6144, 1, 4].
//
// `ignored` names tensors that may be there and are not used. `*` stands for any text, and a pattern need only match
// the beginning of a name: "mtp." covers everything below it, "model.layers.*.rotary_emb.inv_freq" one in each layer.
//
// One Error lists what is missing, of another shape, of a format that is unknown or not allowed, or there without being
// expected; at most 20 lines, then "... and N more".
Result<TensorMap> check_tensors(const Checkpoint& checkpoint, std::span<const TensorSpec> specs,
                                std::span<const std::string> ignored = {});

// The same on a bare list of entries; `path` is for messages.
Result<TensorMap> check_tensors(const std::map<std::string, TensorEntry, std::less<>>& entries, const std::string& path,
                                std::span<const TensorSpec> specs, std::span<const std::string> ignored = {});

// Whether a pattern of `ignored` covers this name.
bool is_ignored(std::string_view pattern, std::string_view name);

}  // namespace proa
