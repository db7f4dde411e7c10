#include "quantize/write.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "checkpoint/printable.h"
#include "core/checksum.h"
#include "core/output_path.h"
#include "core/text.h"
#include "core/thread_pool.h"
#include "quantize/encode.h"
#include "quantize/journal.h"

namespace proa {
namespace {

namespace fs = std::filesystem;
constexpr const char* kDoing = "quantise";
constexpr uint64_t kPiece = 16u << 20;       // of the source at a time
constexpr uint64_t kCommitBytes = 1u << 30;  // of the source between entries of the journal

// The bytes of an item in the source.
struct Stored {
  const TensorEntry* entry;
  const std::byte* data;
  uint64_t bytes;
};

Stored stored(const QuantizeSource& source, const QuantizeItem& item) {
  const TensorEntry& entry = source.tensors.find(item.source)->second;
  if (item.slice < 0 || !entry.data) return {&entry, entry.data, entry.bytes};
  const uint64_t part = entry.bytes / static_cast<uint64_t>(source.model.n_routed_experts);
  return {&entry, entry.data + static_cast<uint64_t>(item.slice) * part, part};
}

// Pages need not stay: those of a file can be read again.
void let_go(const std::byte* data, uint64_t bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

// Where the bytes of a plan go: to a place of one of its files.
using Put = std::function<Result<void>(uint32_t file, uint64_t offset, std::span<const std::byte> bytes)>;

class Encoder {
 public:
  Encoder(const QuantizeSource& source, const InputRanges& ranges, int threads, Put put,
          const QuantizeProgress& progress)
      : source_(source), ranges_(ranges), threads_(threads), put_(std::move(put)), progress_(progress) {}

  Result<void> encode(const QuantizeItem& item) {
    const Stored from = stored(source_, item);
    if (item.recipe == Recipe::raw) {
      for (uint64_t done = 0; done < from.bytes; done += kPiece) {
        const uint64_t count = std::min(kPiece, from.bytes - done);
        PROA_TRY(put(item.data, done, {from.data + done, count}));
        PROA_TRY(progress_(count));
      }
      let_go(from.data, from.bytes);
      return {};
    }
    float scale = 1;
    if (item.recipe == Recipe::fp8 || item.recipe == Recipe::nvfp4) {
      PROA_ASSIGN(const float amax, largest(item, from));
      scale = item.recipe == Recipe::fp8 ? fp8_scale(amax) : nvfp4_scale(amax);
      PROA_TRY(put_number(item.scale, scale));
    }
    if (item.input_scale) {
      const float range = ranges_.input(item.module);
      if (!(range > 0)) {
        return Error{kDoing, printable(item.module), "a range of its inputs", "none",
                     "calibrate with prompts that reach it, or a file with \"default\""};
      }
      PROA_TRY(put_number(item.input_scale, item.recipe == Recipe::fp8 ? fp8_scale(range) : nvfp4_scale(range)));
    }
    if (item.kv_scale) {  // as ModelOpt exports it: never below 1
      const auto found = ranges_.keys_values.find(item.module);
      const float range = found == ranges_.keys_values.end() ? 0 : found->second;
      PROA_TRY(put_number(item.kv_scale, std::max(range / kE4m3Max, 1.f)));
    }
    PROA_TRY(encode_rows(item, from, scale));
    let_go(from.data, from.bytes);
    return {};
  }

 private:
  Result<void> put(const Place& place, uint64_t at, std::span<const std::byte> bytes) {
    return put_(place.file, place.offset + at, bytes);
  }
  Result<void> put_number(const Place& place, float value) {
    return put(place, 0, std::as_bytes(std::span(&value, 1)));
  }

  // body(row, values [cols]) for rows [begin, end), on all threads. Error: a value that is not finite.
  Result<void> for_rows(const QuantizeItem& item, const Stored& from, int64_t begin, int64_t end,
                        const std::function<void(int64_t row, float* x, int thread)>& body) {
    const int64_t cols = item.cols();
    const uint64_t row_size = row_bytes(*from.entry->format, cols);
    std::atomic<int64_t> bad{-1};
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(cols, 1));
    threads_.parallel_for(end - begin, grain, [&](int64_t first, int64_t last, int thread) {
      std::vector<float> x(static_cast<size_t>(cols));
      for (int64_t row = begin + first; row < begin + last; ++row) {
        decode_row(*from.entry->format, from.data + static_cast<uint64_t>(row) * row_size, cols, x.data());
        float sum = 0;
        for (const float value : x) sum += value * 0.f;  // NaN if one is not finite
        if (sum != 0 || sum != sum) bad.store(row);
        body(row, x.data(), thread);
      }
    });
    if (bad.load() < 0) return {};
    return Error{kDoing, from.entry->file + ": " + printable(item.source), "finite values",
                 "infinity or NaN in row " + std::to_string(bad.load()), "the file is damaged"};
  }

  Result<float> largest(const QuantizeItem& item, const Stored& from) {
    std::vector<float> most(static_cast<size_t>(threads_.num_threads()), 0.f);
    const int64_t rows = item.rows(), step = rows_of_a_piece(item, from);
    for (int64_t row = 0; row < rows; row += step) {
      PROA_TRY(for_rows(item, from, row, std::min(rows, row + step), [&](int64_t, float* x, int thread) {
        float& known = most[static_cast<size_t>(thread)];
        for (int64_t i = 0; i < item.cols(); ++i) known = std::max(known, std::fabs(x[i]));
      }));
      PROA_TRY(progress_(0));
    }
    return *std::max_element(most.begin(), most.end());
  }

  int64_t rows_of_a_piece(const QuantizeItem& item, const Stored& from) const {
    const uint64_t row = std::max<uint64_t>(row_bytes(*from.entry->format, item.cols()), 1);
    return std::max<int64_t>(1, static_cast<int64_t>(kPiece / row));
  }

  Result<void> encode_rows(const QuantizeItem& item, const Stored& from, float scale) {
    const int64_t rows = item.rows(), cols = item.cols(), step = rows_of_a_piece(item, from);
    const bool nvfp4 = item.recipe == Recipe::nvfp4, fp8 = item.recipe == Recipe::fp8;
    const uint64_t stride = nvfp4 ? static_cast<uint64_t>(cols) / 2
                            : fp8 ? static_cast<uint64_t>(cols)
                                  : row_bytes(item.format, cols);
    const uint64_t groups = nvfp4 ? static_cast<uint64_t>(cols) / 16 : 0;
    std::vector<std::byte> out, group_scales;
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t end = std::min(rows, row + step);
      out.resize(static_cast<uint64_t>(end - row) * stride);
      group_scales.resize(static_cast<uint64_t>(end - row) * groups);
      PROA_TRY(for_rows(item, from, row, end, [&](int64_t r, float* x, int) {
        const auto at = static_cast<uint64_t>(r - row);
        auto* target = reinterpret_cast<uint8_t*>(out.data() + at * stride);
        if (nvfp4) {
          encode_nvfp4(x, cols, scale, target, reinterpret_cast<uint8_t*>(group_scales.data() + at * groups));
        } else if (fp8) {
          encode_fp8(x, cols, scale, target);
        } else {
          if (item.recipe == Recipe::neg_exp) {
            for (int64_t i = 0; i < cols; ++i) x[i] = -std::exp(x[i]);
          }
          encode_row(item.format, x, cols, target);
        }
      }));
      PROA_TRY(put(item.data, static_cast<uint64_t>(row) * stride, out));
      if (nvfp4) PROA_TRY(put(item.group_scales, static_cast<uint64_t>(row) * groups, group_scales));
      PROA_TRY(progress_(static_cast<uint64_t>(end - row) * row_bytes(*from.entry->format, cols)));
    }
    return {};
  }

  const QuantizeSource& source_;
  const InputRanges& ranges_;
  ThreadPool threads_;
  const Put put_;
  const QuantizeProgress& progress_;
};

Result<std::vector<OutputFile>> open_outputs(const QuantizePlan& plan, const std::string& partial, bool is_new) {
  std::vector<OutputFile> outputs;
  for (const QuantizedFile& file : plan.files) {
    const std::string path = file.name.empty() ? partial : partial + "/" + file.name;
    PROA_ASSIGN(OutputFile out, OutputFile::open(path));
    if (is_new) {
      PROA_TRY(out.reserve(file.bytes));
      PROA_TRY(out.write_at(0, file.header));
    }
    outputs.push_back(std::move(out));
  }
  return outputs;
}

// What a journal belongs to. Headers say every name, shape, type and place.
std::string key_of(const QuantizeSource& source, const QuantizePlan& plan, const InputRanges& ranges) {
  Checksum sum;
  for (const QuantizedFile& file : plan.files) sum.add(file.header);
  const std::string scales = plan.scales_activations ? ranges.to_json() : "";
  sum.add(std::as_bytes(std::span(scales)));
  return "proa quantize 1 " + std::string(plan.precision->name) + " source " + source.key + " plan " + hex(sum.value());
}

Result<void> write_text(const std::string& path, const std::string& text) {
  PROA_ASSIGN(OutputFile out, OutputFile::create(path));
  PROA_TRY(out.write(std::as_bytes(std::span(text))));
  PROA_TRY(out.sync());
  return out.close();
}

std::string without_slash(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path;
}

}  // namespace

void discard_partial(const std::string& output) {
  std::error_code code;
  fs::remove_all(without_slash(output) + ".partial", code);
  fs::remove(without_slash(output) + ".partial.journal", code);
}

Result<QuantizeSummary> write_quantized(const QuantizeSource& source, const QuantizePlan& plan,
                                        const InputRanges& ranges, const std::string& output,
                                        const QuantizeOptions& options, const QuantizeProgress& progress) {
  const std::string journal_path = without_slash(output) + ".partial.journal";
  if (options.restart) discard_partial(output);
  PROA_ASSIGN(const uint64_t free, free_disk_space(output));
  PROA_ASSIGN(OutputPath path, OutputPath::resume(output, !plan.gguf, options.replace));
  PROA_ASSIGN(Journal journal, Journal::open(journal_path, key_of(source, plan, ranges), plan.items.size(), false));
  QuantizeSummary summary{.bytes = plan.bytes()};
  bool is_new = journal.is_new();
  for (const QuantizedFile& file : plan.files) {  // a journal without its files is of no use
    std::error_code code;
    const std::string name = file.name.empty() ? path.partial() : path.partial() + "/" + file.name;
    if (!is_new && fs::file_size(name, code) != file.bytes) {
      return Error{"take up an earlier run", name, bytes_text(file.bytes), code ? "no such file" : "another size",
                   "--restart to begin anew"};
    }
  }
  if (is_new && plan.bytes() > free) {
    discard_partial(output);
    return Error{kDoing, output, bytes_text(plan.bytes()) + " of free disk", bytes_text(free),
                 "another disk, or a smaller precision"};
  }
  auto outputs = open_outputs(plan, path.partial(), is_new);
  if (!outputs.ok()) {
    if (is_new) discard_partial(output);  // nothing in it is worth keeping
    return std::move(outputs).error();
  }
  Encoder encoder(
      source, ranges, options.threads,
      [&](uint32_t file, uint64_t offset, std::span<const std::byte> bytes) {
        return (*outputs)[file].write_at(offset, bytes);
      },
      progress);

  std::vector<uint64_t> unsaved;
  uint64_t unsaved_bytes = 0;
  const auto save = [&]() -> Result<void> {
    if (unsaved.empty()) return {};
    for (OutputFile& out : *outputs) PROA_TRY(out.sync());
    PROA_TRY(journal.add(unsaved));
    unsaved.clear();
    unsaved_bytes = 0;
    return {};
  };
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const Stored from = stored(source, plan.items[i]);
    if (journal.done()[i]) {
      ++summary.items_before;
      if (from.data) PROA_TRY(progress(from.bytes));
      continue;
    }
    if (from.entry->file.empty()) {
      ++summary.items_left;
      continue;
    }
    if (auto written = encoder.encode(plan.items[i]); !written.ok()) {
      const auto saved = save();  // what was done before stays done
      (void)saved;
      return std::move(written).error();
    }
    ++summary.items;
    unsaved.push_back(i);
    unsaved_bytes += from.bytes;
    if (unsaved_bytes >= kCommitBytes) PROA_TRY(save());
  }
  PROA_TRY(save());
  for (OutputFile& out : *outputs) PROA_TRY(out.close());
  if (summary.items_left > 0) return summary;
  for (const auto& [name, text] : plan.texts) PROA_TRY(write_text(path.partial() + "/" + name, text));
  PROA_TRY(path.commit());
  std::error_code code;
  fs::remove(journal_path, code);
  summary.whole = true;
  return summary;
}

Result<Checkpoint> quantized_in_memory(const QuantizeSource& source, const QuantizePlan& plan, bool headers_alone,
                                       int threads, const QuantizeProgress& progress) {
  const std::string name = source.path + " as " + std::string(plan.precision->name);
  std::vector<AnonymousMemory> files;
  for (const QuantizedFile& file : plan.files) {
    PROA_ASSIGN(AnonymousMemory memory, AnonymousMemory::allocate(file.bytes, name));
    std::memcpy(memory.bytes().data(), file.header.data(), file.header.size());
    files.push_back(std::move(memory));
  }
  const InputRanges none;
  Encoder encoder(
      source, none, threads,
      [&](uint32_t file, uint64_t offset, std::span<const std::byte> bytes) -> Result<void> {
        std::memcpy(files[file].bytes().data() + offset, bytes.data(), bytes.size());
        return {};
      },
      progress);
  for (const QuantizeItem& item : plan.items) {
    if (!headers_alone) PROA_TRY(encoder.encode(item));
  }
  std::map<std::string, AnonymousMemory> named;
  for (size_t i = 0; i < files.size(); ++i) {
    named.emplace(plan.gguf ? "model.gguf" : plan.files[i].name, std::move(files[i]));
  }
  return Checkpoint::of_files(name, {plan.texts.begin(), plan.texts.end()}, std::move(named));
}

void discard_weights(const Checkpoint& quantized) {
  for (const auto& [name, entry] : quantized.tensors()) let_go(entry.data, entry.bytes);
}

}  // namespace proa
