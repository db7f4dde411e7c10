#include "quantize/calibrate.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/teacher_forcing.h"
#include "models/model.h"
#include "ops/forwarding_backend.h"

namespace proa {
namespace {

// The backend as it is, with an eye on what goes into matrices. Matrices are known by the address of their bytes, since
// weights are used where the file has them.
class Watcher final : public ForwardingBackend {
 public:
  Watcher(std::shared_ptr<Backend> inner, std::map<const std::byte*, std::string> modules, InputRanges& ranges)
      : ForwardingBackend(std::move(inner)), modules_(std::move(modules)), ranges_(ranges) {}

  void norm_linear(const NormLinear& op) override {
    if (!counting()) {
      const float most = largest(normed(op.num_tokens, op.hidden_size, op.x, op.norm, op.eps));
      for (const LinearOutput& output : op.outputs) note(output.weight, most);
      if (op.outputs.size() == 3) key_ = op.outputs[1].weight.data, value_ = op.outputs[2].weight.data;
    }
    ForwardingBackend::norm_linear(op);
  }
  void linear_residual(const LinearResidual& op) override {
    if (!counting()) note(op.weight, largest({op.x, static_cast<size_t>(op.num_tokens * op.weight.cols)}));
    ForwardingBackend::linear_residual(op);
  }
  void attend(const Attend& op) override {
    if (!counting()) {
      const auto count = static_cast<size_t>(int64_t{op.batch->num_tokens} * op.num_kv_heads * op.head_dim);
      note(key_, largest({op.k, count}), ranges_.keys_values);
      note(value_, largest({op.v, count}), ranges_.keys_values);
    }
    ForwardingBackend::attend(op);
  }
  void gated_norm_linear_residual(const GatedNormLinearResidual& op) override {
    if (!counting()) {
      float most = 0;
      const int group = op.inner / op.n_groups;
      std::vector<float> gated(static_cast<size_t>(group));
      for (int t = 0; t < op.num_tokens; ++t) {
        for (int g = 0; g < op.n_groups; ++g) {
          const float* y = op.y + int64_t{t} * op.inner + g * group;
          const float* z = op.z + t * op.z_stride + g * group;
          double squares = 0;
          for (int i = 0; i < group; ++i) {
            gated[static_cast<size_t>(i)] = y[i] * activate(Activation::silu, z[i]);
            squares += double{gated[static_cast<size_t>(i)]} * gated[static_cast<size_t>(i)];
          }
          const double factor = 1 / std::sqrt(squares / group + op.eps);
          for (int i = 0; i < group; ++i) {
            const double value = gated[static_cast<size_t>(i)] * factor * op.norm[g * group + i];
            most = std::max(most, static_cast<float>(std::fabs(value)));
          }
        }
      }
      note(op.weight, most);
    }
    ForwardingBackend::gated_norm_linear_residual(op);
  }
  void mlp(const Mlp& op) override {
    if (!counting()) {
      const auto u = normed(op.num_tokens, op.hidden_size, op.x, op.norm, op.eps);
      two_halves(op.up, op.down, op.activation, op.num_tokens, u.data());
    }
    ForwardingBackend::mlp(op);
  }
  void moe(const Moe& op) override {
    if (!counting()) watch(op);
    ForwardingBackend::moe(op);
  }

 private:
  static float largest(std::span<const float> values) {
    float most = 0;
    for (const float value : values) most = std::max(most, std::fabs(value));
    return most;
  }

  static std::vector<float> normed(int num_tokens, int hidden_size, const float* x, const float* norm, float eps) {
    std::vector<float> out(static_cast<size_t>(num_tokens) * static_cast<size_t>(hidden_size));
    for (int t = 0; t < num_tokens; ++t) {
      const float* row = x + int64_t{t} * hidden_size;
      double squares = 0;
      for (int i = 0; i < hidden_size; ++i) squares += double{row[i]} * row[i];
      const double factor = 1 / std::sqrt(squares / hidden_size + eps);
      for (int i = 0; i < hidden_size; ++i) {
        out[static_cast<size_t>(int64_t{t} * hidden_size + i)] = static_cast<float>(row[i] * factor * norm[i]);
      }
    }
    return out;
  }

  void note(const std::byte* data, float most, std::map<std::string, float, std::less<>>& where) {
    const auto module = modules_.find(data);
    if (module == modules_.end()) return;
    float& known = where[module->second];
    known = std::max(known, most);
  }
  void note(const Weight& weight, float most) { note(weight.data, most, ranges_.inputs); }

  // y [n, rows] = W · x, on the backend itself.
  std::vector<float> multiply(const Weight& weight, int n, const float* x) {
    std::vector<float> y(static_cast<size_t>(n) * static_cast<size_t>(weight.rows), 0.f);
    inner().linear_residual({n, x, weight, y.data()});
    return y;
  }

  // Notes both halves and returns what goes into the second.
  std::vector<float> two_halves(const Weight& up, const Weight& down, Activation activation, int n, const float* x) {
    note(up, largest({x, static_cast<size_t>(n * up.cols)}));
    std::vector<float> hidden = multiply(up, n, x);
    for (float& value : hidden) value = activate(activation, value);
    note(down, largest(hidden));
    return hidden;
  }

  void watch(const Moe& op) {
    const std::vector<float> u = normed(op.num_tokens, op.hidden_size, op.x, op.norm, op.eps);
    if (op.shared_up) two_halves(op.shared_up, op.shared_down, op.activation, op.num_tokens, u.data());
    std::vector<float> latent, sum;
    if (op.latent_in) {
      note(op.latent_in, largest(u));
      latent = multiply(op.latent_in, op.num_tokens, u.data());
      sum.assign(latent.size(), 0.f);
    }
    const std::vector<float>& z = op.latent_in ? latent : u;
    const auto width = static_cast<size_t>(op.up.cols);
    for (int e = 0; e < op.n_routed_experts; ++e) {
      std::vector<float> x, factors;
      std::vector<int> tokens;
      for (int t = 0; t < op.num_tokens; ++t) {
        for (int k = 0; k < op.num_experts_per_tok; ++k) {
          if (op.topk_ids[t * op.num_experts_per_tok + k] != e) continue;
          const auto row = z.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(t) * width);
          x.insert(x.end(), row, row + static_cast<ptrdiff_t>(width));
          tokens.push_back(t);
          factors.push_back(op.topk_weights[t * op.num_experts_per_tok + k]);
        }
      }
      if (tokens.empty()) continue;
      const int n = static_cast<int>(tokens.size());
      const auto hidden = two_halves(op.up.expert(e), op.down.expert(e), op.activation, n, x.data());
      if (!op.latent_out) continue;
      const auto out = multiply(op.down.expert(e), n, hidden.data());
      for (size_t i = 0; i < out.size(); ++i) {
        sum[static_cast<size_t>(tokens[i / width]) * width + i % width] += factors[i / width] * out[i];
      }
    }
    if (op.latent_out) note(op.latent_out, largest(sum));
  }

  std::map<const std::byte*, std::string> modules_;
  InputRanges& ranges_;
  const std::byte *key_ = nullptr, *value_ = nullptr;
};

}  // namespace

Result<InputRanges> calibrate(const QuantizeSource& source, const QuantizePlan& plan, std::shared_ptr<Backend> backend,
                              std::span<const std::vector<int32_t>> prompts, const CalibrationProgress& progress) {
  if (!backend->shares_memory()) {
    return Error{"calibrate", std::string(backend->name()), "a device that shares the host's memory", "another",
                 "--device cpu"};
  }
  std::map<const std::byte*, std::string> modules;
  for (const QuantizeItem& item : plan.items) {
    const TensorEntry& entry = source.tensors.find(item.source)->second;
    if (item.module.empty() || !entry.data) continue;
    const size_t part = item.slice < 0 ? 0 : entry.bytes / static_cast<size_t>(source.model.n_routed_experts);
    modules[entry.data + part * static_cast<size_t>(std::max<int64_t>(item.slice, 0))] = item.module;
  }
  InputRanges ranges;
  Watcher watcher(std::move(backend), std::move(modules), ranges);
  PROA_ASSIGN(
      const auto model,
      open_model(std::make_shared<const Checkpoint>(Checkpoint::in_memory(source.path, source.config, source.tensors)),
                 watcher));
  for (const std::vector<int32_t>& prompt : prompts) {
    const int32_t last[] = {static_cast<int32_t>(prompt.size()) - 1};
    PROA_ASSIGN(const auto logits, forced_logits(*model, watcher, prompt, last, {.chunks = {512}}));
    ranges.tokens += static_cast<int64_t>(prompt.size());
    PROA_TRY(progress(static_cast<int64_t>(prompt.size())));
  }
  return ranges;
}

}  // namespace proa
