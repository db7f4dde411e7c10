// A checkpoint of dummy weights before it has data: files with real headers, and for each tensor what fills it. Laid
// into memory it becomes a Checkpoint (Checkpoint::dummy), written out it is a file like any other; the bytes are the
// same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "quant/dummy.h"

namespace proa {

struct DummyTensor {
  std::string name;
  uint64_t begin = 0;  // in the file
  uint64_t bytes = 0;
  DummyFill fill;
};

struct DummyFile {
  std::string name;  // "model.gguf", "model-00001-of-00013.safetensors"
  std::vector<std::byte> header;
  std::vector<DummyTensor> tensors;  // in the order of the file; what lies between them is zero
  uint64_t bytes = 0;                // of the whole file
};

struct DummyCheckpoint {
  std::string name;                                       // stands for the path in messages
  std::vector<DummyFile> files;                           // one GGUF file, or safetensors shards
  std::map<std::string, std::string, std::less<>> texts;  // files beside them: "config.json", "tokenizer.json"

  bool gguf() const { return files.size() == 1 && files.front().name.ends_with(".gguf"); }
  uint64_t bytes() const;
};

// Writes the bytes of a file, front to back, in pieces of at most 64 MiB that are made on `num_threads` threads (0:
// all). Ends at the first error of `write`.
Result<void> stream_dummy(const DummyFile& file, int num_threads,
                          const std::function<Result<void>(std::span<const std::byte> piece)>& write);

// Lays the file into memory of file.bytes bytes that holds zeros. Tensors larger than max_tensor_bytes stay zero, for
// devices that fill their own memory.
void lay_dummy(const DummyFile& file, int num_threads, uint64_t max_tensor_bytes, std::byte* memory);

// Where the tensors of a dummy checkpoint lie, so that a device can make the bytes itself:
//   if (const DummyIndex* dummy = checkpoint.dummy()) ... dummy->find(tensor.data)
// For a Tensor at `data` (a whole one or a slice) its byte i is byte begin + i of the fill's tensor.
class DummyIndex {
 public:
  struct Place {
    DummyFill fill;
    uint64_t begin;  // a multiple of dummy_unit_bytes(fill.format) for slices of whole units
    uint64_t bytes;  // until the tensor ends
    bool on_host;    // the bytes at `data` are filled
  };
  std::optional<Place> find(const std::byte* data) const;

  void add(const DummyFile& file, uint64_t max_tensor_bytes, const std::byte* memory);

 private:
  struct Entry {
    uint64_t bytes;
    DummyFill fill;
    bool on_host;
  };
  std::map<const std::byte*, Entry> entries_;
};

}  // namespace proa
