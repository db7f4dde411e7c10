#include "checkpoint/scaled_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "checkpoint/checkpoint.h"
#include "checkpoint/differences.h"
#include "checkpoint/printable.h"
#include "quant/formats.h"

namespace proa {
namespace {

using Entries = std::map<std::string, TensorEntry, std::less<>>;

int64_t elements(const TensorEntry& entry) {  // readers have checked that it fits
  return std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
}

// The scales that stand beside one matrix. Names follow "X.weight"; for a stacked "experts.up_proj" there is no dot.
class Finder {
 public:
  Finder(const Entries& in, bool gguf, const QuantConfig& config, Entries& out) : in_(in), config_(config), out_(out) {
    for (const auto& [name, entry] : in_) {
      current_ = &entry;
      if (gguf) {
        add_gguf(name);
      } else {
        add(name);
      }
    }
  }

  std::map<const std::byte*, Scaling> found;
  std::map<std::string, float, std::less<>> kv_scales;
  Differences differences;

 private:
  void differ(const TensorEntry& entry, const std::string& text) {
    differences.add(printable(entry.name) + ": " + text);
  }

  // Takes the first name that is there out of the result.
  const TensorEntry* take(std::initializer_list<std::string> names) {
    for (const std::string& name : names) {
      const auto it = in_.find(name);
      if (it == in_.end()) continue;
      out_.erase(name);
      return &it->second;
    }
    return nullptr;
  }

  // Scales in F32 of one of the sizes given; empty after a difference.
  std::vector<float> values(const TensorEntry& entry, std::initializer_list<int64_t> sizes) {
    const int64_t count = elements(entry);
    const bool is_float =
        entry.format && (*entry.format == Format::F32 || *entry.format == Format::BF16 || *entry.format == Format::F16);
    if (!is_float || std::find(sizes.begin(), sizes.end(), count) == sizes.end()) {
      std::string wanted;
      for (int64_t size : sizes) {
        const std::string text = std::to_string(size);
        if (wanted.find(text) == wanted.npos) wanted += (wanted.empty() ? "" : " or ") + text;
      }
      differ(entry, "expected F32 of " + wanted + (wanted == "1" ? " value" : " values") + ", found " +
                        printable(entry.type) + " " + to_string(entry.shape));
      return {};
    }
    std::vector<float> scales(static_cast<size_t>(count));
    std::vector<float> bytes(scales.size());  // after tensors of single bytes, a scale need not be aligned
    std::memcpy(bytes.data(), entry.data, entry.bytes);
    decode_row(*entry.format, bytes.data(), count, scales.data());
    for (float scale : scales) {
      if (std::isfinite(scale) && scale >= 0) continue;
      differ(entry, "expected finite scales of at least 0, found " + std::to_string(scale));
      return {};
    }
    return scales;
  }

  void add_gguf(const std::string& name) {
    constexpr std::string_view kSuffix = ".weight";
    if (!name.ends_with(kSuffix) || current_->shape.size() < 2) return;
    const std::string stem = name.substr(0, name.size() - kSuffix.size());
    take({stem + ".input_scale", name + ".input_scale"});
    const TensorEntry* scale = take({stem + ".scale", name + ".scale"});
    if (!scale) return;
    const int64_t matrices = current_->shape.size() > 2 ? current_->shape.front() : 1;
    put({.scales = values(*scale, {1, matrices})});
  }

  void add(const std::string& name) {
    if (is_kv_scale(name)) add_kv_scale(name);
    if (name.ends_with("_scale") || name.ends_with("_scale_2")) return;
    const bool dotted = name.ends_with(".weight");
    const std::string module = dotted ? name.substr(0, name.size() - 7) : name;
    const TensorEntry& entry = *current_;
    QuantScheme scheme = QuantScheme::none;
    if (entry.type == "F8_E4M3") {
      scheme = QuantScheme::fp8;
    } else if (entry.type == "U8" && (dotted || find_scale(name, module))) {
      scheme = QuantScheme::nvfp4;
    }
    if (!config_.allows(module, scheme)) {
      differ(entry, "expected " + config_.says(module) + " after " + config_.where() + ", found " +
                        (scheme == QuantScheme::none ? printable(entry.type) : std::string(to_string(scheme))));
    }
    if (scheme == QuantScheme::none) return;

    const TensorEntry* scale = take({name + "_scale", module + "_weight_scale"});
    const TensorEntry* global = take({name + "_scale_2", module + "_weight_scale_2"});
    const TensorEntry* input = take({module + ".input_scale", module + "_input_scale"});
    if (!scale) return differ(entry, entry.type + " without " + printable(module) + ".weight_scale");
    if (entry.shape.size() < 2 || entry.shape.size() > 3) {
      return differ(entry, "expected a matrix or one per expert, found shape " + to_string(entry.shape));
    }
    if (scheme == QuantScheme::fp8) {
      if (global) differ(*global, "not expected beside FP8");
      add_fp8(*scale, input);
    } else if (!global) {
      differ(entry, "NVFP4 without " + printable(module) + ".weight_scale_2");
    } else {
      add_nvfp4(name, *scale, *global);
    }
  }

  const TensorEntry* find_scale(const std::string& name, const std::string& module) const {
    for (const std::string& beside : {name + "_scale", module + "_weight_scale"}) {
      if (const auto it = in_.find(beside); it != in_.end()) return &it->second;
    }
    return nullptr;
  }

  void add_kv_scale(const std::string& name) {
    out_.erase(name);
    if (!name.ends_with(".k_proj.k_scale") && !name.ends_with(".v_proj.v_scale")) return;  // whose would it be?
    const std::vector<float> scale = values(*current_, {1});
    if (scale.empty()) return;
    if (scale.front() > 0) {
      kv_scales[name] = scale.front();
    } else {
      differ(*current_, "expected a scale above 0, found 0");
    }
  }

  static bool is_kv_scale(std::string_view name) { return name.ends_with(".k_scale") || name.ends_with(".v_scale"); }

  // An expert that no token of the calibration chose may have anything for a scale.
  static float largest_scale(const TensorEntry& entry) {
    float largest = 0;
    if (entry.format != Format::F32) return largest;
    for (int64_t i = 0; i < elements(entry); ++i) {
      float scale = 0;
      std::memcpy(&scale, entry.data + i * static_cast<int64_t>(sizeof scale), sizeof scale);
      if (std::isfinite(scale)) largest = std::max(largest, scale);
    }
    return largest;
  }

  void add_fp8(const TensorEntry& scale, const TensorEntry* input) {
    const auto& shape = current_->shape;
    const int64_t matrices = shape.size() == 3 ? shape.front() : 1;
    const int64_t rows = shape[shape.size() - 2];
    // Readers have checked that a product over all of the shape fits.
    Scaling scaling{.scheme = QuantScheme::fp8, .scales = values(scale, {1, matrices, matrices * rows})};
    if (scaling.scales.empty()) return;
    if (input) scaling.input_scale = largest_scale(*input);
    const auto count = static_cast<int64_t>(scaling.scales.size());
    if (count != 1 && count != matrices) {
      scaling.row_scales = std::move(scaling.scales);
      scaling.scales = {1};
    }
    put(std::move(scaling));
  }

  void add_nvfp4(const std::string& name, const TensorEntry& scale, const TensorEntry& global) {
    std::vector<int64_t> shape = current_->shape;
    if (__builtin_mul_overflow(shape.back(), 2, &shape.back())) {
      return differ(*current_, "expected fewer columns, found shape " + to_string(current_->shape));
    }
    std::vector<int64_t> expected = shape;
    expected.back() /= 16;
    if (scale.type != "F8_E4M3" || scale.shape != expected || shape.back() % 16 != 0) {
      return differ(scale, "expected F8_E4M3 " + to_string(expected) + ", one for each 16 columns of " +
                               to_string(shape) + ", found " + printable(scale.type) + " " + to_string(scale.shape));
    }
    Scaling scaling{.scheme = QuantScheme::nvfp4,
                    .group_scales = scale,
                    .group = 16,
                    .scales = values(global, {1, shape.size() == 3 ? shape.front() : 1})};
    TensorEntry& entry = out_.at(name);
    entry.shape = std::move(shape);
    entry.format = Format::E2M1;
    entry.type = "NVFP4";
    put(std::move(scaling));
  }

  void put(Scaling scaled) {
    // An empty tensor shares its address with the next one.
    if (!scaled.scales.empty() && elements(*current_) > 0) found.insert_or_assign(current_->data, std::move(scaled));
  }

  const Entries& in_;
  const QuantConfig& config_;
  Entries& out_;
  const TensorEntry* current_ = nullptr;
};

}  // namespace

Result<ScaledTensors> scaled_tensors(const Entries& entries, bool gguf, const std::string& path,
                                     const QuantConfig& config) {
  ScaledTensors result{entries, {}};
  Finder finder(entries, gguf, config, result.entries);
  const auto& differences = finder.differences;
  if (!differences.any()) {
    result.scaling = std::move(finder.found);
    result.kv_scales = std::move(finder.kv_scales);
    return result;
  }
  return Error{.doing = "read quantised tensors", .where = path, .actual = differences.text()};
}

Result<ScaledTensors> scaled_tensors(const Checkpoint& checkpoint) {
  PROA_ASSIGN(const QuantConfig config, checkpoint.gguf() ? QuantConfig() : QuantConfig::read(checkpoint));
  return scaled_tensors(checkpoint.tensors(), checkpoint.gguf() != nullptr, checkpoint.path(), config);
}

}  // namespace proa
