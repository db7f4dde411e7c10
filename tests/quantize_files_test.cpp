// What proa quantize writes is read back by the ordinary readers as the weights that were meant: every precision, made
// in one go, after interruptions, and shard by shard.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "checkpoint/safetensors.h"
#include "core/output_path.h"
#include "golden.h"
#include "models/dummy.h"
#include "models/family.h"
#include "models/published.h"
#include "quant/minifloat.h"
#include "quantize/calibrate.h"
#include "quantize/write.h"

namespace proa::golden {
namespace {

namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "proa-quantize-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~Folder() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Nano in small as it is published: BF16, experts one by one; weights uniform within a reach.
DummyCheckpoint small_bf16(uint64_t max_shard_bytes = 1u << 30,
                           const nlohmann::ordered_json& changes = nlohmann::ordered_json::object()) {
  auto config = nlohmann::ordered_json::parse(find_known_model("NVIDIA-Nemotron-3-Nano-30B-A3B")->model->config);
  config = must(scale_config(config, 7, 32));
  config.update(changes);
  return must(make_dummy("small", config, *must(find_precision("bf16")), {.max_shard_bytes = max_shard_bytes}));
}

void write_file_of(const DummyFile& file, const std::string& folder) {
  OutputFile out = must(OutputFile::create(folder + "/" + file.name));
  must(stream_dummy(file, 1, [&](std::span<const std::byte> piece) { return out.write(piece); }));
  must(out.close());
}

void write_texts(const DummyCheckpoint& dummy, const std::string& folder) {
  fs::create_directories(folder);
  for (const auto& [name, text] : dummy.texts) std::ofstream(folder + "/" + name) << text;
}

std::string write_source(const DummyCheckpoint& dummy, const std::string& folder) {
  write_texts(dummy, folder);
  for (const DummyFile& file : dummy.files) write_file_of(file, folder);
  return folder;
}

std::string write_source(const Folder& folder, uint64_t max_shard_bytes = 1u << 30) {
  return write_source(small_bf16(max_shard_bytes), folder / "source");
}

const QuantizeProgress kGoOn = [](uint64_t) -> Result<void> { return {}; };

QuantizePlan plan_of(const QuantizeSource& source, const std::string& precision) {
  return must(plan_quantize(source, *must(find_quantize_precision(precision)),
                            {.max_shard_bytes = 2'000'000, .name = "small"}));
}

InputRanges ranges_of(const QuantizePlan& plan) {
  InputRanges ranges;
  if (plan.scales_activations) ranges.fallback = 8;
  return ranges;
}

std::vector<std::byte> bytes_of(const std::string& path) {
  const MappedFile file = must(MappedFile::open(path));
  return {file.bytes().begin(), file.bytes().end()};
}

// Everything in a file or folder, by name.
std::map<std::string, std::vector<std::byte>> contents(const std::string& path) {
  std::map<std::string, std::vector<std::byte>> all;
  if (!fs::is_directory(path)) return {{"", bytes_of(path)}};
  for (const auto& entry : fs::directory_iterator(path)) all[entry.path().filename()] = bytes_of(entry.path());
  return all;
}

// The values of an item as the output holds them, by the definition of each format.
std::vector<float> decoded(const QuantizeItem& item, const QuantizePlan& plan, const std::string& output) {
  const auto at = [&](const Place& place) {
    static std::map<std::string, MappedFile> files;
    const std::string& name = plan.files[place.file].name;
    const std::string path = name.empty() ? output : output + "/" + name;
    auto found = files.find(path);
    if (found == files.end()) found = files.emplace(path, must(MappedFile::open(path))).first;
    return found->second.bytes().data() + place.offset;
  };
  const auto count = static_cast<size_t>(item.rows() * item.cols());
  std::vector<float> values(count);
  float scale = 1;
  if (item.scale) std::memcpy(&scale, at(item.scale), sizeof scale);
  const auto* bytes = reinterpret_cast<const uint8_t*>(at(item.data));
  if (item.recipe == Recipe::fp8) {
    for (size_t i = 0; i < count; ++i) values[i] = e4m3_to_float(bytes[i]) * scale;
  } else if (item.recipe == Recipe::nvfp4) {
    const auto* groups = reinterpret_cast<const uint8_t*>(at(item.group_scales));
    for (size_t i = 0; i < count; ++i) {
      const int code = bytes[i / 2] >> (4 * (i % 2)) & 15;
      values[i] = 0.5f * static_cast<float>(e2m1_doubled(code)) * e4m3_to_float(groups[i / 16]) * scale;
    }
  } else {
    const uint64_t row = row_bytes(item.format, item.cols());
    for (int64_t r = 0; r < item.rows(); ++r) {
      decode_row(item.format, bytes + static_cast<uint64_t>(r) * row, item.cols(), values.data() + r * item.cols());
    }
    if (item.recipe == Recipe::neg_exp) {
      for (float& value : values) value = std::log(-value);
    }
  }
  return values;
}

std::vector<float> original(const QuantizeItem& item, const QuantizeSource& source) {
  const TensorEntry& entry = source.tensors.find(item.source)->second;
  std::vector<float> values(static_cast<size_t>(item.rows() * item.cols()));
  decode_row(*entry.format, entry.data, static_cast<int64_t>(values.size()), values.data());
  return values;
}

class QuantizeFiles : public testing::Test {
 protected:
  Folder folder_;
};

// Relative error of a matrix of values uniform within +-r, whose steps are that wide: step / sqrt(12) over r / sqrt(3).
// Floats have a step in proportion: 2^-4 of the value at most for E4M3 and three times that on average less; E2M1 is
// steps of 0.5 to 2 of 6.
TEST_F(QuantizeFiles, EveryPrecisionIsTheWeightsThatWereMeant) {
  const struct {
    const char* precision;
    double error;  // relative, of matrices that are quantised
  } rows[] = {
      {"f32", 0},           {"bf16", 0},        {"f16", 4e-7},      {"q8_0", 1.0 / 127 / 2},
      {"q5_1", 1.0 / 31},   {"q5_0", 1.0 / 32}, {"q4_1", 1.0 / 15}, {"q4_0", 1.0 / 16},
      {"iq4_nl", 1.0 / 15}, {"mxfp4", 0.13},    {"nvfp4", 0.11},    {"fp8", 0.028},
  };
  const QuantizeSource source = must(open_quantize_source(write_source(folder_), false));
  const auto backend = must(make_backend("cpu", {.num_threads = 1}));
  std::vector<int32_t> ids;
  for (int i = 0; i < 24; ++i) ids.push_back(20 + i * 53 % 900);
  const Sequence sequence{.token_ids = ids, .rows = {0, 11, 23}, .logits = {}, .logits_bf16 = {}};
  for (const auto& row : rows) {
    SCOPED_TRACE(row.precision);
    const QuantizePlan plan = plan_of(source, row.precision);
    const std::string output = folder_ / (std::string(row.precision) + (plan.gguf ? ".gguf" : ""));
    const auto summary = must(write_quantized(source, plan, ranges_of(plan), output, {.threads = 2}, kGoOn));
    EXPECT_TRUE(summary.whole);
    EXPECT_EQ(summary.items, plan.items.size());
    EXPECT_FALSE(fs::exists(output + ".partial"));
    EXPECT_FALSE(fs::exists(output + ".partial.journal"));

    std::vector<std::vector<float>> values;
    std::map<std::string, TensorEntry, std::less<>> entries;
    int quantised = 0;
    double worst = 0;
    for (const QuantizeItem& item : plan.items) {
      values.push_back(decoded(item, plan, output));
      const auto from = original(item, source);
      const double off = deviation(values.back(), from);
      const bool kept = item.recipe == Recipe::encode &&
                        (item.format == Format::F32 || item.format == Format::BF16 || item.format == Format::F16);
      if (item.recipe == Recipe::neg_exp) {
        EXPECT_LE(max_difference(values.back(), from), 1e-6) << item.source;
      } else if (kept && item.format != Format::F16) {
        EXPECT_EQ(values.back(), from) << item.source;
      } else {
        ++quantised;
        // A few values in a row may lie badly: 12 % above the average of many.
        EXPECT_LE(off, 1.12 * row.error) << item.source;
        worst = std::max(worst, off);
      }
      const std::string name = item.source;
      entries[name] = {.name = name,
                       .shape = item.shape,
                       .type = "F32",
                       .format = Format::F32,
                       .data = reinterpret_cast<const std::byte*>(values.back().data()),
                       .bytes = values.back().size() * sizeof(float),
                       .file = "memory"};
    }
    if (row.error > 0) {
      EXPECT_GT(quantised, 700);
      EXPECT_GE(worst, 0.3 * row.error) << "otherwise the bound is of no use";
    }
    const auto meant = must(open_model(
        std::make_shared<const Checkpoint>(Checkpoint::in_memory("meant", source.config, entries)), *backend));
    const auto file = open(output, *backend);
    // The same function with scales applied in another order.
    EXPECT_LE(deviation(logits(*file, *backend, sequence), logits(*meant, *backend, sequence)), kTolerance);
  }
}

// The names, shapes and types of the tensors in a folder or file.
std::set<std::string> listing(const Checkpoint& checkpoint) {
  std::set<std::string> out;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    std::string text = name + " " + entry.type + " [";
    for (const int64_t size : entry.shape) text += std::to_string(size) + ",";
    out.insert(text + "]");
  }
  return out;
}

// Dummy checkpoints are checked against the published lists, at full size (dummy_test); so are these by way of them.
TEST_F(QuantizeFiles, InMemoryTheyAreTheSame) {
  const QuantizeSource source = must(open_quantize_source(write_source(folder_), false));
  for (const char* precision : {"fp8", "nvfp4", "q4_0"}) {
    const QuantizePlan plan =
        must(plan_quantize(source, *must(find_quantize_precision(precision)),
                           {.max_shard_bytes = 2'000'000, .name = "small", .input_scales = false}));
    const std::string output = folder_ / (std::string(precision) + (plan.gguf ? ".gguf" : ""));
    must(write_quantized(source, plan, {}, output, {.threads = 1}, kGoOn));
    const Checkpoint written = must(Checkpoint::open(output));
    const Checkpoint held = must(quantized_in_memory(source, plan, false, 2, kGoOn));
    const Checkpoint headers = must(quantized_in_memory(source, plan, true, 2, kGoOn));
    EXPECT_EQ(held.config(), written.config());
    EXPECT_EQ(held.has_file("tokenizer.json"), written.has_file("tokenizer.json"));
    ASSERT_EQ(held.tensors().size(), written.tensors().size());
    for (const auto& [name, entry] : written.tensors()) {
      const TensorEntry *same = held.find(name), *bare = headers.find(name);
      ASSERT_TRUE(same && bare) << name;
      EXPECT_EQ(bare->bytes, entry.bytes) << name;
      ASSERT_EQ(same->bytes, entry.bytes) << name;
      EXPECT_EQ(std::memcmp(same->data, entry.data, entry.bytes), 0) << name;
    }
    discard_weights(held);
    for (const auto& [name, entry] : held.tensors()) {
      if (entry.bytes > 3 * 4096) {
        EXPECT_EQ(entry.data[entry.bytes / 2], std::byte{}) << name;
      }
    }
  }
}

TEST_F(QuantizeFiles, HaveTheTensorsOfPublishedOnes) {
  const QuantizeSource source = must(open_quantize_source(write_source(folder_), false));
  for (const char* precision : {"fp8", "nvfp4", "q8_0", "q5_0", "q4_0", "iq4_nl", "mxfp4", "bf16"}) {
    SCOPED_TRACE(precision);
    const QuantizePlan plan = plan_of(source, precision);
    const std::string output = folder_ / (std::string(precision) + (plan.gguf ? ".gguf" : ""));
    must(write_quantized(source, plan, ranges_of(plan), output, {.threads = 1}, kGoOn));
    const Checkpoint dummy = must(Checkpoint::dummy(
        must(make_dummy("small", source.config, *must(find_precision(precision)), {.gguf = plan.gguf})), 1, 0));
    const Checkpoint ours = must(Checkpoint::open(output));
    EXPECT_EQ(listing(ours), listing(dummy));
    if (!plan.gguf) {
      const auto strip = [](nlohmann::ordered_json json) { return json["quantization"].dump(); };
      EXPECT_EQ(strip(must(ours.read_json("hf_quant_config.json"))),
                strip(must(dummy.read_json("hf_quant_config.json"))));
    } else {
      for (const auto& [key, value] : dummy.gguf()->metadata()) {
        if (key.starts_with("tokenizer.") || key == "general.name") continue;
        const auto found = ours.gguf()->metadata().find(key);
        ASSERT_NE(found, ours.gguf()->metadata().end()) << key;
        EXPECT_TRUE(std::ranges::equal(found->second.bytes, value.bytes)) << key;
      }
    }
  }
}

TEST_F(QuantizeFiles, AnInterruptedRunGoesOnToTheSameBytes) {
  const QuantizeSource source = must(open_quantize_source(write_source(folder_), false));
  for (const char* precision : {"nvfp4", "q4_0"}) {
    SCOPED_TRACE(precision);
    const QuantizePlan plan = plan_of(source, precision);
    const std::string suffix = plan.gguf ? ".gguf" : "";
    const std::string whole = folder_ / ("whole-" + std::string(precision) + suffix), cut = folder_ / ("cut" + suffix);
    must(write_quantized(source, plan, ranges_of(plan), whole, {.threads = 1}, kGoOn));
    uint64_t before = 0;
    int runs = 0;
    for (uint64_t allowed = plan.source_bytes / 5; runs < 20; ++runs) {
      uint64_t seen = 0;
      const auto result =
          write_quantized(source, plan, ranges_of(plan), cut, {.threads = 1}, [&](uint64_t bytes) -> Result<void> {
            seen += bytes;
            if (seen <= allowed) return {};
            return Error{"quantise", "", "", "interrupted", ""};
          });
      if (result.ok()) {
        EXPECT_TRUE(result->whole);
        EXPECT_GT(result->items_before, before / 2);
        break;
      }
      EXPECT_FALSE(fs::exists(cut)) << "never a part under the final name";
      EXPECT_TRUE(fs::exists(cut + ".partial"));
      allowed += plan.source_bytes / 5;
      before = 1;
    }
    EXPECT_GE(runs, 3);
    EXPECT_EQ(contents(cut), contents(whole));
    EXPECT_FALSE(fs::exists(cut + ".partial.journal"));
    fs::remove_all(cut);
  }
}

TEST_F(QuantizeFiles, ShardByShardGivesTheSameBytes) {
  const QuantizeSource all = must(open_quantize_source(write_source(folder_, 3000000), false));
  const DummyCheckpoint dummy = small_bf16(3000000);
  ASSERT_GE(dummy.files.size(), 3u);
  for (const char* precision : {"fp8", "q4_0"}) {
    SCOPED_TRACE(precision);
    const QuantizePlan plan = plan_of(all, precision);
    const std::string suffix = plan.gguf ? ".gguf" : "";
    const std::string whole = folder_ / ("whole-" + std::string(precision) + suffix);
    const std::string pieces = folder_ / ("pieces-" + std::string(precision) + suffix);
    must(write_quantized(all, plan, ranges_of(plan), whole, {.threads = 1}, kGoOn));
    const std::string at = folder_ / "at";
    write_texts(dummy, at);
    for (size_t i = dummy.files.size(); i-- > 0;) {  // the last shard first
      write_file_of(dummy.files[i], at);
      const QuantizeSource one = must(open_quantize_source(at, true));
      EXPECT_EQ(one.absent.size(), dummy.files.size() - 1);
      const auto summary =
          must(write_quantized(one, plan_of(one, precision), ranges_of(plan), pieces, {.threads = 1}, kGoOn));
      EXPECT_EQ(summary.whole, i == 0);
      EXPECT_EQ(fs::exists(pieces), i == 0);
      fs::remove(at + "/" + dummy.files[i].name);
    }
    EXPECT_EQ(contents(pieces), contents(whole));
  }
}

TEST_F(QuantizeFiles, CalibrationSeesWhatGoesIntoMatrices) {
  const QuantizeSource source = must(open_quantize_source(write_source(folder_), false));
  const QuantizePlan plan = plan_of(source, "fp8");
  std::vector<std::vector<int32_t>> prompts(2);
  for (int i = 0; i < 40; ++i) prompts[0].push_back(20 + i * 31 % 900), prompts[1].push_back(20 + i * 17 % 900);
  const InputRanges ranges = must(calibrate(source, plan, must(make_backend("cpu", {.num_threads = 1})), prompts,
                                            [](int64_t) -> Result<void> { return {}; }));
  EXPECT_EQ(ranges.tokens, 80);
  int fp8 = 0;
  for (const QuantizeItem& item : plan.items) {
    if (item.recipe != Recipe::fp8) continue;
    ++fp8;
    // Dummy weights keep activations near 1: inputs are normed, or squares of such.
    EXPECT_GT(ranges.input(item.module), 0.5) << item.module;
    EXPECT_LT(ranges.input(item.module), 100) << item.module;
  }
  EXPECT_GT(fp8, 700);
  EXPECT_GT(ranges.keys_values.at("backbone.layers.5.mixer.k_proj"), 0.5);
  // A matrix sees what the definition says: the embedding of these tokens, normed.
  float most = 0;
  const TensorEntry& embeddings = source.tensors.at("backbone.embeddings.weight");
  const int64_t hidden = source.model.hidden_size;
  std::vector<float> x(static_cast<size_t>(hidden));
  for (const auto& prompt : prompts) {
    for (const int32_t id : prompt) {
      decode_row(Format::BF16, embeddings.data + int64_t{id} * hidden * 2, hidden, x.data());
      const double factor = 1 / std::sqrt(std::pow(rms(x), 2) + source.model.layer_norm_epsilon);
      for (const float value : x) most = std::max(most, static_cast<float>(std::fabs(value * factor)));
    }
  }
  EXPECT_NEAR(ranges.input("backbone.layers.0.mixer.in_proj"), most, 1e-5 * most);
  // As text and back.
  const InputRanges again = must(InputRanges::parse(ranges.to_json(), "ranges.json"));
  EXPECT_EQ(again.inputs, ranges.inputs);
  EXPECT_EQ(again.keys_values, ranges.keys_values);
}

TEST_F(QuantizeFiles, BadInput) {
  const std::string good = write_source(folder_);
  const auto damaged = [&](const std::string& name, const std::function<void(const std::string&)>& damage) {
    fs::remove_all(folder_ / name);
    fs::copy(good, folder_ / name);
    damage(folder_ / name);
    return folder_ / name;
  };
  const auto message = [&](const std::string& path, const char* precision,
                           const InputRanges& ranges = {}) -> std::string {
    const auto source = open_quantize_source(path, false);
    if (!source.ok()) return source.error().message();
    const auto chosen = find_quantize_precision(precision);
    if (!chosen.ok()) return chosen.error().message();
    const auto plan = plan_quantize(*source, **chosen, {.name = "x"});
    if (!plan.ok()) return plan.error().message();
    const auto done = write_quantized(*source, *plan, ranges, folder_ / "out", {.threads = 1, .restart = true}, kGoOn);
    EXPECT_FALSE(fs::exists(folder_ / "out"));
    discard_partial(folder_ / "out");
    return done.ok() ? "" : done.error().message();
  };
  const auto edit = [](const std::string& file, const std::function<void(nlohmann::ordered_json&)>& change) {
    auto json = read_json(file);
    change(json);
    std::ofstream(file) << json.dump();
  };
  const auto poke = [](const std::string& file, uint64_t from_end, const std::string& bytes) {
    std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(-static_cast<std::streamoff>(from_end), std::ios::end);
    out << bytes;
  };
  const struct {
    std::string path;
    const char *precision, *expected;
  } rows[] = {
      {folder_ / "nothing", "q4_0", "nothing there"},
      {good + "/model.safetensors", "q4_0", "a folder with config.json"},
      {good, "q4_k_m", "one of fp8, nvfp4"},
      {good, "q9", "one of fp8, nvfp4"},
      {good, "fp8", "a range of its inputs"},
      {damaged("a", [](const std::string& f) { fs::remove(f + "/config.json"); }), "q4_0", "config.json"},
      {damaged("b", [](const std::string& f) { std::ofstream(f + "/config.json") << "{"; }), "q4_0", "config.json"},
      {damaged("c",
               [&](const std::string& f) { edit(f + "/config.json", [](auto& j) { j["model_type"] = "llama"; }); }),
       "q4_0", "model_type: expected nemotron_h, found llama"},
      {damaged("d", [&](const std::string& f) { edit(f + "/config.json", [](auto& j) { j["hidden_size"] = 192; }); }),
       "q4_0", "differences"},
      {damaged("e", [](const std::string& f) { std::ofstream(f + "/hf_quant_config.json") << "{}"; }), "q4_0",
       "quantised already"},
      {damaged("f", [](const std::string& f) { fs::resize_file(f + "/model.safetensors", 5000); }), "q4_0",
       "model.safetensors"},
      {damaged("g", [](const std::string& f) { fs::remove(f + "/model.safetensors"); }), "q4_0", "model.safetensors"},
      {damaged("h", [](const std::string& f) { fs::remove(f + "/tokenizer.json"); }), "q4_0", "tokenizer.json"},
      // The last tensor of the file ends in a NaN.
      {damaged("i", [&](const std::string& f) { poke(f + "/model.safetensors", 2, "\xc0\x7f"); }), "q4_0",
       "infinity or NaN in row"},
      {damaged("j", [&](const std::string& f) { poke(f + "/model.safetensors", 2, "\x80\x7f"); }), "bf16",
       "infinity or NaN in row"},
  };
  for (const auto& row : rows) {
    EXPECT_NE(message(row.path, row.precision).find(row.expected), std::string::npos)
        << row.path << "\n  " << message(row.path, row.precision);
  }
}

// Rows that no block fits: an error with every such matrix, where nothing is written; formats without blocks take them.
TEST_F(QuantizeFiles, APrecisionThatATensorCannotHave) {
  const std::string odd = write_source(small_bf16(1u << 30, {{"moe_intermediate_size", 40}}), folder_ / "odd");
  const QuantizeSource source = must(open_quantize_source(odd, false));
  const std::string expert = "backbone.layers.1.mixer.experts.0.down_proj.weight: rows of a multiple of ";
  const std::pair<const char*, std::string> rows[] = {
      {"q8_0", expert + "32 values expected, found 40"},
      {"q5_0", expert + "32 values expected, found 40"},
      {"q4_0", expert + "32 values expected, found 40"},
      {"iq4_nl", expert + "32 values expected, found 40"},
      {"mxfp4", expert + "32 values expected, found 40"},
      {"nvfp4", expert + "16 values expected, found 40"},
      {"bf16", ""},
      {"f16", ""},
      {"f32", ""},
      {"fp8", ""},
  };
  for (const auto& [precision, expected] : rows) {
    const auto plan = plan_quantize(source, *must(find_quantize_precision(precision)), {.name = "odd"});
    EXPECT_EQ(plan.ok(), expected.empty()) << precision;
    const std::string message = plan.ok() ? "" : plan.error().message();
    EXPECT_NE(message.find(expected), std::string::npos) << precision << "\n  " << message;
    // A line stands for all experts of a layer.
    EXPECT_EQ(message.find("experts.1."), std::string::npos) << message;
  }
}

TEST_F(QuantizeFiles, AJournalOfSomethingElseIsRefused) {
  const QuantizeSource source = must(open_quantize_source(write_source(folder_), false));
  const QuantizePlan four = plan_of(source, "q4_0"), five = plan_of(source, "q5_0");
  const std::string output = folder_ / "out.gguf";
  const auto stop = [](uint64_t) -> Result<void> { return Error{"quantise", "", "", "interrupted", ""}; };
  EXPECT_FALSE(write_quantized(source, four, {}, output, {.threads = 1}, stop).ok());
  const auto other = write_quantized(source, five, {}, output, {.threads = 1}, kGoOn);
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.error().message().find("--restart"), std::string::npos) << other.error().message();
  EXPECT_TRUE(must(write_quantized(source, five, {}, output, {.threads = 1, .restart = true}, kGoOn)).whole);
  // What is there is not replaced without being asked to.
  const auto again = write_quantized(source, five, {}, output, {.threads = 1}, kGoOn);
  ASSERT_FALSE(again.ok());
  EXPECT_NE(again.error().message().find("a name that is free"), std::string::npos);
  EXPECT_TRUE(must(write_quantized(source, four, {}, output, {.threads = 1, .replace = true}, kGoOn)).whole);
}

}  // namespace
}  // namespace proa::golden
