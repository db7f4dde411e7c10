#include "models/weight_loader.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>
#include <numeric>

namespace proa {
namespace {

void count(const TensorEntry& entry, const std::string& what, std::vector<UnusedTensors>& unused) {
  const auto is = [&](const UnusedTensors& group) { return group.what == what; };
  auto group = std::find_if(unused.begin(), unused.end(), is);
  if (group == unused.end()) group = unused.insert(unused.end(), {.what = what});
  ++group->count;
  group->parameters += std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
  group->bytes += static_cast<int64_t>(entry.bytes);
}

}  // namespace

Result<CheckedTensors> checked_tensors(const Checkpoint& checkpoint, std::span<const TensorSpec> table,
                                       std::span<const Ignored> ignored) {
  CheckedTensors checked;
  PROA_ASSIGN(ScaledTensors stored, scaled_tensors(checkpoint));
  std::vector<std::string> patterns;
  for (const Ignored& each : ignored) patterns.push_back(each.pattern);
  PROA_ASSIGN(checked.tensors, check_tensors(stored.entries, checkpoint.path(), table, patterns));
  checked.scaling = std::move(stored.scaling);
  checked.kv_scales = std::move(stored.kv_scales);
  checked.dummy = checkpoint.dummy();

  for (const auto& [name, entry] : checkpoint.tensors()) {
    const auto covers = [&](const Ignored& each) { return is_ignored(each.pattern, name); };
    const auto found = std::find_if(ignored.begin(), ignored.end(), covers);
    if (found != ignored.end()) {
      count(entry, found->what, checked.unused);
    } else if (name.ends_with(".k_scale") || name.ends_with(".v_scale")) {
      count(entry, "scales of an FP8 KV cache", checked.unused);  // by all other caches
    } else if (name.ends_with("input_scale")) {
      count(entry, "scales of quantised activations", checked.unused);
    }
  }
  return checked;
}

const Tensor* WeightLoader::find(const std::string& name, [[maybe_unused]] bool optional) {
  const auto it = tensors_.find(name);
  assert((it != tensors_.end() || optional) && "a tensor was asked for that the table does not name");
  return it == tensors_.end() ? nullptr : &it->second;
}

void WeightLoader::fail(Error error) {
  if (status_.ok()) status_ = std::move(error);
}

std::optional<DummyIndex::Place> WeightLoader::missing(const Tensor& tensor) const {
  auto place = dummy_ ? dummy_->find(tensor.data) : std::nullopt;
  assert((!place || place->bytes >= tensor.bytes) && "a tensor is a part of one of the checkpoint's");
  if (place && place->on_host) place.reset();
  return place;
}

Weight WeightLoader::place(const Tensor& tensor) {
  // Where the host's memory is the device's, what the checkpoint left out is not wanted: sizes are being asked for.
  const auto dummy = backend_.shares_memory() ? std::nullopt : missing(tensor);
  auto placed = dummy ? backend_.place_dummy(tensor, dummy->fill, dummy->begin) : backend_.place(tensor);
  if (!placed.ok()) return fail(placed.error()), Weight{};
  if (placed->memory.data()) buffers_.push_back(placed->memory);
  return placed->weight;
}

std::vector<Weight> WeightLoader::place_each(const Tensor& tensor, bool stacked) {
  if (!stacked) return {place(tensor)};
  const int64_t count = tensor.shape.front();
  Weight all = place(tensor);
  all.rows /= count;
  std::vector<Weight> result(static_cast<size_t>(count), all);
  for (size_t i = 1; all && i < result.size(); ++i) {
    result[i].data = result[i - 1].data + static_cast<size_t>(all.rows) * all.row_stride;
  }
  return result;
}

std::vector<Weight> WeightLoader::matrices(const Tensor& tensor, WeightUse& use) {
  use.format = tensor.format;
  use.stored = info(tensor.format).name;
  use.parameters += tensor.shape.elements();
  use.bytes += static_cast<int64_t>(tensor.bytes);
  const bool stacked = tensor.shape.size() == 3;
  std::vector<Weight> result = place_each(tensor, stacked);
  const auto found = scaling_.find(tensor.data);
  if (found == scaling_.end()) return result;

  const Scaling& scaling = found->second;
  if (scaling.scales.size() != 1 && scaling.scales.size() != result.size()) {
    fail({.doing = "load matrix",
          .where = "of shape " + to_string(tensor.shape),
          .expected = std::to_string(result.size()) + " scales",
          .actual = std::to_string(scaling.scales.size())});
    return result;
  }
  const float* row_scales = scaling.row_scales.empty() ? nullptr : copy(scaling.row_scales);
  if (tensor.format == Format::E2M1) use.stored = "NVFP4";
  use.bytes += static_cast<int64_t>(scaling.group_scales.bytes + scaling.row_scales.size() * sizeof(float) +
                                    scaling.scales.size() * sizeof(float));
  std::vector<Weight> group_scales;
  if (scaling.group_scales.format) {
    auto scales = to_tensor(scaling.group_scales);
    if (!scales.ok()) return fail(scales.error()), result;
    group_scales = place_each(*scales, stacked);
  }
  for (size_t i = 0; i < result.size(); ++i) {
    Weight& weight = result[i];
    weight.scale = scaling.scales[scaling.scales.size() == 1 ? 0 : i];
    weight.input_scale = scaling.input_scale;
    if (!group_scales.empty()) {
      const Weight& scales = group_scales[i];
      weight.scales = {scales.data, scales.row_stride, scales.format, scaling.group};
    } else if (row_scales) {
      weight.scales = {reinterpret_cast<const std::byte*>(row_scales + static_cast<int64_t>(i) * weight.rows),
                       sizeof(float), Format::F32, weight.cols};
    }
  }
  return result;
}

Weight WeightLoader::matrix(WeightKind kind, const std::string& name, bool optional) {
  const Tensor* tensor = find(name, optional);
  return tensor ? matrices(*tensor, uses_.emplace_back(WeightUse{.name = name, .kind = kind})).front() : Weight{};
}

const float* WeightLoader::vector(const std::string& name, bool optional) {
  const std::vector<float> decoded = values(name, optional);
  return decoded.empty() ? nullptr : copy(decoded);
}

std::vector<float> WeightLoader::values(const std::string& name, bool optional) {
  const Tensor* tensor = find(name, optional);
  if (!tensor) return {};
  if (scaling_.contains(tensor->data)) {
    fail({.doing = "load vector", .where = name, .expected = "no scale", .actual = "one beside it"});
  }
  uses_.push_back({.name = name,
                   .kind = WeightKind::vector,
                   .format = Format::F32,
                   .stored = std::string(info(tensor->format).name),
                   .parameters = tensor->shape.elements(),
                   .bytes = tensor->shape.elements() * static_cast<int64_t>(sizeof(float))});
  std::vector<float> decoded(static_cast<size_t>(tensor->shape.elements()));
  std::vector<std::byte> made;
  if (const auto dummy = missing(*tensor)) {
    made.resize(tensor->bytes);
    fill_dummy(dummy->fill, dummy->begin, made);
  }
  decode_row(tensor->format, made.empty() ? tensor->data : made.data(), tensor->shape.elements(), decoded.data());
  return decoded;
}

float WeightLoader::kv_scale(const std::string& projection, const std::string& scale) const {
  const auto found = kv_scales_.find(projection.substr(0, projection.rfind('.') + 1) + scale);
  return found == kv_scales_.end() ? 1 : found->second;
}

const void* WeightLoader::copy_bytes(std::span<const std::byte> bytes) {
  auto buffer = backend_.allocate(bytes.size());
  if (!buffer.ok()) return fail(buffer.error()), nullptr;
  backend_.upload(buffer->data(), bytes.data(), bytes.size());
  buffers_.push_back(*buffer);
  return buffer->data();
}

ExpertWeights WeightLoader::assign(const std::vector<Weight>& experts, ExpertTables& tables, const std::string& name) {
  for (size_t e = 0; e < experts.size(); ++e) {
    if (alike(experts[e], experts.front())) continue;
    fail({.doing = "load experts",
          .where = name,
          .expected = "format " + std::string(info(experts.front().format).name) + " and scales as expert 0 has",
          .actual = std::string(info(experts[e].format).name) + " in expert " + std::to_string(e)});
    return {};
  }
  ExpertWeights weights = tables.assign(experts);
  if (!backend_.shares_memory()) {
    weights.data = copy(tables.data);
    if (weights.scales_data) weights.scales_data = copy(tables.scales);
    if (weights.scale) weights.scale = copy(tables.scale);
  }
  return weights;
}

ExpertWeights WeightLoader::experts(const std::string& stacked_name, int per_token, ExpertTables& tables) {
  const Tensor* stacked = find(stacked_name, false);
  if (!stacked) return {};
  WeightUse& use = uses_.emplace_back(WeightUse{.name = stacked_name, .kind = WeightKind::expert});
  use.num_experts = static_cast<int>(stacked->shape.front());
  use.experts_per_token = per_token;
  return assign(matrices(*stacked, use), tables, stacked_name);
}

ExpertWeights WeightLoader::experts(std::span<const std::string> names, int per_token, ExpertTables& tables) {
  const std::string first = names.empty() ? "" : names.front();
  WeightUse use = {.name = first, .kind = WeightKind::expert};
  use.num_experts = static_cast<int>(names.size());
  use.experts_per_token = per_token;
  std::vector<Weight> experts;
  for (const std::string& name : names) {
    const Tensor* tensor = find(name, false);
    experts.push_back(tensor ? matrices(*tensor, use).front() : Weight{});
  }
  uses_.push_back(std::move(use));
  return assign(experts, tables, first);
}

}  // namespace proa
