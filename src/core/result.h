// Errors as values. A function that can fail for reasons outside the program (a file, a flag, a
// request) returns Result<T>: the value, or an Error that names the place. A broken invariant of our
// own is an assert, never an Error. The shape follows std::expected, which C++20 does not have.
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace proa {

// What went wrong and where, in the words of the user's files and flags. Empty fields are left out.
//   {.doing = "open checkpoint", .where = "model.gguf", .expected = "magic GGUF", .actual = "PK\\3\\4"}
struct Error {
  std::string doing;     // what was being done: "read tensor table"
  std::string where;     // file and offset, tensor, field or flag: "model.gguf: blk.0.attn_q.weight"
  std::string expected;  // "shape [576, 576]"
  std::string actual;    // "shape [576, 192]"
  std::string hint;      // what would work, when that is known

  // One line: "read tensor table: model.gguf: blk.0.attn_q.weight: expected ..., found ... (hint)".
  std::string message() const {
    std::string text = doing;
    if (!where.empty()) text += (text.empty() ? "" : ": ") + where;
    if (!expected.empty()) text += ": expected " + expected;
    if (!actual.empty()) text += (expected.empty() ? ": " : ", found ") + actual;
    if (!hint.empty()) text += " (" + hint + ")";
    return text;
  }
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return assert(ok()), *std::get_if<0>(&state_); }
  const T& value() const& { return assert(ok()), *std::get_if<0>(&state_); }
  T&& value() && { return assert(ok()), std::move(*std::get_if<0>(&state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& { return assert(!ok()), *std::get_if<1>(&state_); }
  Error&& error() && { return assert(!ok()), std::move(*std::get_if<1>(&state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return assert(!ok()), *error_; }
  Error&& error() && { return assert(!ok()), *std::move(error_); }

 private:
  std::optional<Error> error_;
};

}  // namespace proa

// Returns the error of EXPR from the enclosing function; otherwise goes on.
#define PROA_TRY(expr)                                                                       \
  do {                                                                                       \
    if (auto proa_result = (expr); !proa_result.ok()) return std::move(proa_result).error(); \
  } while (0)

// Declares NAME as the value of EXPR, or returns its error: PROA_ASSIGN(auto file, MappedFile::open(path)).
#define PROA_ASSIGN(declaration, expr) PROA_ASSIGN_(declaration, expr, PROA_JOIN_(proa_result_, __LINE__))
#define PROA_ASSIGN_(declaration, expr, name)     \
  auto name = (expr);                             \
  if (!name.ok()) return std::move(name).error(); \
  declaration = *std::move(name)
#define PROA_JOIN_(a, b) PROA_JOIN2_(a, b)
#define PROA_JOIN2_(a, b) a##b
