#include "checkpoint/dummy_checkpoint.h"

#include <algorithm>
#include <cstring>

#include "core/thread_pool.h"

namespace proa {
namespace {

constexpr uint64_t kPiece = 64u << 20;
constexpr uint64_t kGrain = 1u << 20;  // of one thread at a time

// Fills [begin, begin + out.size()) of a tensor, begin at a unit, on all threads.
void fill_parallel(ThreadPool& threads, const DummyFill& fill, uint64_t begin, std::span<std::byte> out) {
  const uint64_t unit = dummy_unit_bytes(fill.format);
  const auto units = static_cast<int64_t>((out.size() + unit - 1) / unit);
  const auto grain = static_cast<int64_t>(kGrain / unit);
  threads.parallel_for(units, grain, [&](int64_t first, int64_t last, int) {
    const uint64_t from = static_cast<uint64_t>(first) * unit;
    const uint64_t to = std::min<uint64_t>(static_cast<uint64_t>(last) * unit, out.size());
    fill_dummy(fill, begin + from, out.subspan(from, to - from));
  });
}

}  // namespace

uint64_t DummyCheckpoint::bytes() const {
  uint64_t sum = 0;
  for (const DummyFile& file : files) sum += file.bytes;
  for (const auto& [text_name, text] : texts) sum += text.size();
  return sum;
}

Result<void> stream_dummy(const DummyFile& file, int num_threads,
                          const std::function<Result<void>(std::span<const std::byte> piece)>& write) {
  ThreadPool threads(num_threads);
  PROA_TRY(write(file.header));
  uint64_t at = file.header.size();
  std::vector<std::byte> piece;
  const auto pad = [&](uint64_t to) -> Result<void> {
    piece.assign(to - at, std::byte{0});
    at = to;
    return piece.empty() ? Result<void>() : write(piece);
  };
  for (const DummyTensor& tensor : file.tensors) {
    PROA_TRY(pad(tensor.begin));
    const uint64_t unit = dummy_unit_bytes(tensor.fill.format);
    const uint64_t step = kPiece / unit * unit;
    for (uint64_t done = 0; done < tensor.bytes; done += step) {
      piece.resize(std::min(step, tensor.bytes - done));
      fill_parallel(threads, tensor.fill, done, piece);
      PROA_TRY(write(piece));
    }
    at += tensor.bytes;
  }
  return pad(file.bytes);
}

void lay_dummy(const DummyFile& file, int num_threads, uint64_t max_tensor_bytes, std::byte* memory) {
  std::memcpy(memory, file.header.data(), file.header.size());
  ThreadPool threads(num_threads);
  for (const DummyTensor& tensor : file.tensors) {
    if (tensor.bytes <= max_tensor_bytes) {
      fill_parallel(threads, tensor.fill, 0, {memory + tensor.begin, tensor.bytes});
    }
  }
}

void DummyIndex::add(const DummyFile& file, uint64_t max_tensor_bytes, const std::byte* memory) {
  for (const DummyTensor& tensor : file.tensors) {
    if (tensor.bytes == 0) continue;
    entries_[memory + tensor.begin] = {tensor.bytes, tensor.fill, tensor.bytes <= max_tensor_bytes};
  }
}

std::optional<DummyIndex::Place> DummyIndex::find(const std::byte* data) const {
  auto at = entries_.upper_bound(data);
  if (at == entries_.begin()) return std::nullopt;
  --at;
  const auto begin = static_cast<uint64_t>(data - at->first);
  const auto& [bytes, fill, on_host] = at->second;
  if (begin >= bytes) return std::nullopt;
  return Place{fill, begin, bytes - begin, on_host};
}

}  // namespace proa
