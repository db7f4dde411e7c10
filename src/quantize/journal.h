// Which items of a quantised checkpoint are on the disk: OUTPUT.partial.journal. A line says what it belongs to, each
// further one names an item; a line that a lost power supply cut off does not count.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"

namespace proa {

class Journal {
 public:
  // Errors: another process has it open; it belongs to another `key`; more than `items` items.
  static Result<Journal> open(const std::string& path, const std::string& key, size_t items, bool restart);
  Journal(Journal&& other) noexcept;
  Journal& operator=(Journal&&) = delete;
  ~Journal();

  bool is_new() const { return is_new_; }
  const std::vector<bool>& done() const { return done_; }
  // Data of these items are on the disk.
  Result<void> add(const std::vector<uint64_t>& items);

 private:
  Journal(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
  bool is_new_ = false;
  std::vector<bool> done_;
};

}  // namespace proa
