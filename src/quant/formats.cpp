#include "quant/formats.h"

#include <iterator>

namespace proa {
namespace {

constexpr std::string_view text_or_empty(const char* text) { return text == nullptr ? "" : text; }

template <class T>
constexpr FormatInfo describe() {
  return {.name = T::name,
          .block_elements = T::block_elements,
          .block_bytes = sizeof(typename T::Block),
          .block_alignment = alignof(typename T::Block),
          .ggml_type = T::ggml_type,
          .safetensors_dtype = text_or_empty(T::safetensors_dtype)};
}

#define PROA_FORMAT(T) describe<T>(),
constexpr FormatInfo kInfo[] = {PROA_FORMATS(PROA_FORMAT)};
#undef PROA_FORMAT

template <class Match>
std::optional<Format> find_format(Match match) {
  for (Format format : kFormats) {
    if (match(info(format))) return format;
  }
  return std::nullopt;
}

}  // namespace

const FormatInfo& info(Format format) {
  assert(static_cast<size_t>(format) < std::size(kInfo));
  return kInfo[static_cast<size_t>(format)];
}

size_t row_bytes(Format format, int64_t cols) {
  const FormatInfo& f = info(format);
  assert(cols >= 0 && cols % f.block_elements == 0);
  return static_cast<size_t>(cols / f.block_elements) * f.block_bytes;
}

std::optional<Format> format_from_name(std::string_view name) {
  return find_format([&](const FormatInfo& f) { return f.name == name; });
}

std::optional<Format> format_from_ggml(int ggml_type) {
  return find_format([&](const FormatInfo& f) { return f.ggml_type >= 0 && f.ggml_type == ggml_type; });
}

std::optional<Format> format_from_safetensors(std::string_view dtype) {
  return find_format([&](const FormatInfo& f) { return !dtype.empty() && f.safetensors_dtype == dtype; });
}

void decode_row(Format format, const void* row, int64_t cols, float* y) {
  visit_format(format, [&](auto f) {
    using F = decltype(f);
    assert(cols % F::block_elements == 0);
    const auto* block = static_cast<const typename F::Block*>(row);
    for (int64_t i = 0; i < cols; i += F::block_elements) F::decode(*block++, y + i);
  });
}

void encode_row(Format format, const float* x, int64_t cols, void* row) {
  visit_format(format, [&](auto f) {
    using F = decltype(f);
    assert(cols % F::block_elements == 0);
    auto* block = static_cast<typename F::Block*>(row);
    for (int64_t i = 0; i < cols; i += F::block_elements) F::encode(x + i, *block++);
  });
}

}  // namespace proa
