// Goldens of whole models: what tools/goldens/*.py stored of the official implementations, and how far we are from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "backends/backends.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "core/mapped_file.h"
#include "engine/model_runner.h"
#include "engine/teacher_forcing.h"
#include "models/model.h"
#include "quant/formats.h"

namespace proa::golden {

// F32 activations, F32 KV cache: rms(ours - golden) / rms(golden). The official logits are exact to about 1e-6 (norms,
// softmax and scan of the official class are F32). Ours round every sum: u = 6e-8 grows with the square root of a few
// hundred terms to 1e-6 per product; a Mamba-2 layer has four products in a row, relu² doubles a relative error, and a
// mixer of up to 3 times the residual's RMS carries it on over six layers: some 1e-5. The tolerance leaves a factor of
// ten, and the smallest mistake that matters (SSM state in BF16) moves logits by 1.5e-2.
constexpr double kTolerance = 1e-4;

// Two runs of ours that differ in nothing but the order of sums (chunks, batches): each is within the 1e-5 above of the
// exact result, so they are within twice that of each other.
constexpr double kSameFunction = 2e-5;

// Of a step of these tests: what devices do with as many as fill an H100's tiles is buoy_logits_test's.
constexpr size_t kMostTokens = 64;

// A fact broken on purpose must be seen at least this far away.
constexpr double kVisible = 100 * kTolerance;

// The value, or a test failure with the error's message.
template <typename T>
T must(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message());
  return std::move(result).value();
}

struct Sequence {
  std::vector<int32_t> token_ids;
  std::vector<int32_t> rows;       // positions whose logits are stored
  std::vector<float> logits;       // [rows, vocab_size] the official model in F32 arithmetic or wider
  std::vector<float> logits_bf16;  // [rows, vocab_size] the same weights in BF16 arithmetic, or empty
  double bf16_bound = 0;           // how far from logits_bf16 an engine with F32 activations may be
};

struct Fact {
  int fact = 0;          // number in the model's reference
  std::string name;      // of the break
  size_t sequence = 0;   // where it shows best
  double deviation = 0;  // rms(broken - right) / rms(right), as the golden's maker measured it
};

struct Case {
  std::string name;
  std::string folder;  // the checkpoint
  std::vector<Sequence> sequences;
  std::vector<Fact> facts;

  std::string gguf() const { return folder + "/model.gguf"; }
  bool has_gguf() const { return std::filesystem::exists(gguf()); }
};

inline std::string goldens_folder() { return std::string(PROA_SOURCE_DIR) + "/tests/goldens/"; }

inline nlohmann::ordered_json read_json(const std::string& path) {
  const MappedFile file = must(MappedFile::open(path));
  const auto bytes = file.bytes();
  return must(parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path));
}

inline std::vector<float> floats(const Safetensors& file, const std::string& name) {
  const Tensor tensor = must(file.tensor(name));
  std::vector<float> values(static_cast<size_t>(tensor.shape.elements()));
  decode_row(tensor.format, tensor.data, tensor.shape.elements(), values.data());
  return values;
}

inline void must(Result<void> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message());
}

// `path` below tests/goldens: "nemotron_h/dense".
inline Case load(const std::string& path) {
  Case result{.name = path.substr(path.rfind('/') + 1), .folder = goldens_folder() + path};
  const auto json = read_json(result.folder + "/golden.json");
  const Safetensors tensors = must(Safetensors::open(result.folder + "/golden.safetensors"));
  for (const auto& entry : json.at("sequences")) {
    Sequence s{.token_ids = entry.at("token_ids").get<std::vector<int32_t>>(),
               .rows = entry.at("rows").get<std::vector<int32_t>>(),
               .logits = floats(tensors, entry.at("tensor").get<std::string>())};
    if (entry.contains("tensor_bf16")) {
      s.logits_bf16 = floats(tensors, entry.at("tensor_bf16").get<std::string>());
      s.bf16_bound = entry.at("bf16_bound").get<double>();
    }
    result.sequences.push_back(std::move(s));
  }
  for (const auto& entry : json.at("facts")) {
    result.facts.push_back({.fact = entry.at("fact").get<int>(),
                            .name = entry.at("break").get<std::string>(),
                            .sequence = entry.at("sequence").get<size_t>(),
                            .deviation = entry.at("deviation").get<double>()});
  }
  return result;
}

inline std::unique_ptr<Model> open(const std::string& path, Backend& backend) {
  return must(open_model(std::make_shared<const Checkpoint>(must(Checkpoint::open(path))), backend));
}

inline std::vector<float> logits(const Model& model, Backend& backend, const Sequence& sequence,
                                 const ForcingOptions& options = {}) {
  return must(forced_logits(model, backend, sequence.token_ids, sequence.rows, options));
}

inline double rms(std::span<const float> x) {
  double squares = 0;
  for (float value : x) squares += double{value} * value;
  return std::sqrt(squares / static_cast<double>(x.size()));
}

// rms(a - b) / rms(scale), where scale is b unless given. NaN and unequal sizes are infinitely far.
inline double deviation(std::span<const float> a, std::span<const float> b, std::span<const float> scale = {}) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  const double result = std::sqrt(squares / static_cast<double>(a.size())) / rms(scale.empty() ? b : scale);
  return std::isnan(result) ? INFINITY : result;
}

// Backend::product_rounding() of the weights that a model holds, in steps of so many tokens.
inline double product_rounding(const Model& model, const Backend& backend, size_t num_tokens = kMostTokens) {
  double rounding = 0;
  for (const WeightUse& weight : model.weights()) {
    for (const size_t some : {size_t{1}, num_tokens}) {
      rounding = std::max(rounding, backend.product_rounding(weight.format, static_cast<int>(some)));
    }
  }
  return rounding;
}

// deviation() of the row in the middle. Where inputs are rounded, of two experts that all but tie the other may be
// chosen, which moves a row by much, and only some rows.
inline double middle_deviation(std::span<const float> a, std::span<const float> b, size_t num_rows) {
  const size_t size = a.size() / num_rows;
  std::vector<double> rows;
  for (size_t r = 0; r < num_rows; ++r) rows.push_back(deviation(a.subspan(r * size, size), b.subspan(r * size, size)));
  std::sort(rows.begin(), rows.end());
  return rows[num_rows / 2];
}

// How far logits may be from right ones: rounded inputs of products add up over layers.
inline double tolerance(const Model& model, const Backend& backend, size_t num_tokens = kMostTokens) {
  return kTolerance + 4 * product_rounding(model, backend, num_tokens);
}
// How far two runs may be apart that cut the same tokens into steps differently: where a device rounds by how many come
// at once, each is so far from the exact result.
inline double same_function(const Model& model, const Backend& backend) {
  return kSameFunction + (backend.same_bits_in_any_batch() ? 0 : 8 * product_rounding(model, backend));
}

// Mean KL(expected || actual) of rows, nats.
inline double mean_kl(std::span<const float> actual, std::span<const float> expected, size_t num_rows) {
  const size_t size = expected.size() / num_rows;
  double sum = 0;
  for (size_t r = 0; r < num_rows; ++r) {
    const auto p = expected.subspan(r * size, size), q = actual.subspan(r * size, size);
    double total_p = 0, total_q = 0;
    for (size_t i = 0; i < size; ++i) total_p += std::exp(p[i]), total_q += std::exp(q[i]);
    for (size_t i = 0; i < size; ++i) {
      sum += std::exp(p[i]) / total_p * (p[i] - std::log(total_p) - (q[i] - std::log(total_q)));
    }
  }
  return sum / static_cast<double>(num_rows);
}

inline double max_difference(std::span<const float> a, std::span<const float> b) {
  double result = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    result = std::max(result, std::abs(double{a[i]} - b[i]));
  }
  return result;
}

// The logits of every sequence's rows, computed side by side: sequence i joins at step i with three chunks of i + 4
// tokens, goes on with twelve single tokens as generation does, then with chunks again. So steps mix sequences that
// decode, prefill, begin and have ended, in blocks and slots out of order.
inline std::vector<std::vector<float>> logits_together(const Model& model, Backend& backend,
                                                       std::span<const Sequence> sequences) {
  struct Running {
    const Sequence* sequence;
    int join, chunk;
    std::vector<int32_t> blocks;
    int32_t slot;
    size_t done = 0;
    std::vector<float> logits;
  };
  constexpr int kBlockSize = 4;
  std::vector<Running> all;
  int num_blocks = 0, num_tokens = 0;
  for (const Sequence& s : sequences) {
    const int i = static_cast<int>(all.size());
    all.push_back({.sequence = &s, .join = i, .chunk = i + 4, .slot = static_cast<int32_t>(sequences.size()) - i});
    num_blocks += static_cast<int>(s.token_ids.size()) / kBlockSize + 1;
    num_tokens += i + 4;
  }
  int32_t next = 0;  // blocks are dealt out in turn, from the last one down
  for (bool dealt = true; dealt;) {
    dealt = false;
    for (Running& r : all) {
      if (r.blocks.size() > r.sequence->token_ids.size() / kBlockSize) continue;
      r.blocks.push_back(num_blocks - 1 - next++);
      dealt = true;
    }
  }
  RunnerLimits limits;
  limits.max_num_seqs = static_cast<int>(all.size());
  limits.max_num_batched_tokens = limits.max_num_logit_rows = num_tokens;
  limits.num_blocks = limits.max_blocks_per_seq = num_blocks;
  limits.block_size = kBlockSize;
  limits.num_slots = static_cast<int>(all.size()) + 1;
  const auto runner = must(ModelRunner::create(model, backend, limits));
  const size_t reserved = backend.memory().scratch;

  const auto vocab_size = static_cast<size_t>(model.info().vocab_size);
  for (int step = 0;; ++step) {
    runner->begin();
    std::vector<Running*> order;
    bool waiting = false;
    for (Running& r : all) {
      if (r.done == r.sequence->token_ids.size()) continue;
      if (r.join > step) {
        waiting = true;
      } else {
        order.push_back(&r);
      }
    }
    if (order.empty() && !waiting) break;
    if (order.empty()) continue;
    const auto decodes = [](const Running* r) {
      const size_t first = 3 * static_cast<size_t>(r->chunk);
      return r->done >= first && r->done < first + 12;
    };
    std::stable_partition(order.begin(), order.end(), decodes);
    std::vector<std::pair<Running*, size_t>> wanted;  // per logits row: whose, which of its rows
    for (Running* r : order) {
      const auto& ids = r->sequence->token_ids;
      const size_t count = decodes(r) ? 1 : std::min<size_t>(static_cast<size_t>(r->chunk), ids.size() - r->done);
      runner->add({.token_ids = std::span(ids).subspan(r->done, count),
                   .num_computed = static_cast<int>(r->done),
                   .blocks = r->blocks,
                   .state_slot = r->slot,
                   .decode = decodes(r)});
      for (size_t i = 0; i < r->sequence->rows.size(); ++i) {
        const auto row = static_cast<size_t>(r->sequence->rows[i]);
        if (row < r->done || row >= r->done + count) continue;
        runner->want_logits(static_cast<int>(row - r->done), nullptr);
        wanted.emplace_back(r, i);
      }
      r->done += count;
    }
    must(runner->forward());
    const float* logits = must(runner->logits());
    for (size_t i = 0; i < wanted.size(); ++i) {
      auto& [r, row] = wanted[i];
      r->logits.resize(r->sequence->rows.size() * vocab_size);
      std::copy_n(logits + i * vocab_size, vocab_size, r->logits.begin() + static_cast<ptrdiff_t>(row * vocab_size));
    }
  }
  EXPECT_EQ(backend.memory().scratch, reserved) << "a step allocates nothing";
  std::vector<std::vector<float>> result;
  for (Running& r : all) result.push_back(std::move(r.logits));
  return result;
}

}  // namespace proa::golden
