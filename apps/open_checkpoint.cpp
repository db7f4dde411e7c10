#include "apps/open_checkpoint.h"

#include <filesystem>

#include "apps/interrupt.h"
#include "core/anonymous_memory.h"
#include "core/mapped_file.h"
#include "core/text.h"
#include "models/family.h"
#include "quantize/write.h"
#include "registry/hub_cache.h"

namespace proa {
namespace {

constexpr uint64_t kSpare = 512u << 20;  // for caches, tables and the program itself
// Of dummy weights for a device: scales of matrices, which are read where a checkpoint is opened, are smaller.
constexpr uint64_t kMaxTensorOnHost = 4096;

bool fits(uint64_t bytes, uint64_t available) { return available == 0 || bytes + kSpare <= available; }

// The most precise weights of this model that fit, or else of the smallest model; "" where nothing does.
std::string command_that_fits(const DummyRequest& request, uint64_t available) {
  const auto try_model = [&](const std::string& name, const nlohmann::ordered_json& config) -> std::string {
    for (const char* quantization : {"bf16", "fp8", "q8_0", "q5_0", "q4_0"}) {
      const auto precision = find_precision(quantization);
      const auto dummy = make_dummy(name, config, **precision);
      if (dummy.ok() && fits(dummy->bytes(), available)) {
        return "--quantization " + std::string(quantization) + " takes " + bytes_text(dummy->bytes()) + ": " + name +
               " --load-format dummy --quantization " + quantization;
      }
    }
    return "";
  };
  std::string command = try_model(request.name, request.config);
  constexpr const char* kSmall = "NVIDIA-Nemotron-3-Nano-4B";
  if (command.empty() && request.published != kSmall) {
    if (const auto small = find_known_model(kSmall); small.ok()) {
      command = try_model(kSmall, nlohmann::ordered_json::parse(small->model->config));
    }
  }
  return command;
}

}  // namespace

std::string dummy_name(const DummyRequest& request) {
  return request.name + "-" + std::string(request.precision->name) + "-dummy";
}

Result<DummyRequest> find_dummy(const std::string& model, const std::string& quantization) {
  DummyRequest request;
  std::string wanted = quantization;
  std::error_code code;
  if (const auto folder = std::filesystem::path(model); std::filesystem::exists(folder / "config.json", code)) {
    const std::string path = (folder / "config.json").string();
    PROA_ASSIGN(const MappedFile file, MappedFile::open(path));
    if (file.bytes().size() > Checkpoint::kMaxTextBytes) {
      return Error{"read JSON", path, "at most " + std::to_string(Checkpoint::kMaxTextBytes) + " bytes",
                   std::to_string(file.bytes().size()), ""};
    }
    PROA_ASSIGN(request.config,
                parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path));
    request.name = model;
  } else {
    PROA_ASSIGN(const FamilyMember member, find_known_model(model));
    request.name = request.published = member.model->name;
    PROA_ASSIGN(request.config, parse_json(member.model->config, request.name + "/config.json"));
    if (wanted.empty()) wanted = member.precision;
  }
  PROA_ASSIGN(request.precision, find_precision(wanted.empty() ? "bf16" : wanted));
  return request;
}

namespace {

// The weights of a BF16 folder in another precision; or only what they will be.
Result<Checkpoint> quantize(const std::string& path, const OpenOptions& options, bool headers_alone) {
  PROA_ASSIGN(const Precision* precision, find_quantize_precision(options.quantize_to));
  PROA_ASSIGN(const QuantizeSource source, open_quantize_source(path, false));
  const std::string name = std::filesystem::path(path).filename().string();
  PROA_ASSIGN(const QuantizePlan plan, plan_quantize(source, *precision, {.name = name, .input_scales = false}));
  return quantized_in_memory(source, plan, headers_alone, options.threads, [](uint64_t) -> Result<void> {
    if (InterruptFlag::interrupted()) return Error{"quantise", "", "", "interrupted", ""};
    return {};
  });
}

Result<Checkpoint> open_files(const OpenOptions& options, bool headers_alone) {
  auto path = resolve_model(options.model, {.cache = options.download_dir, .revision = options.revision});
  if (!path.ok()) {
    Error error = std::move(path).error();
    if (find_known_model(options.model).ok()) {
      error.hint += (error.hint.empty() ? "" : "; ") + std::string("--load-format dummy runs it on random weights");
    }
    return error;
  }
  return options.quantize_to.empty() ? Checkpoint::open(*path) : quantize(*path, options, headers_alone);
}

}  // namespace

Result<Checkpoint> open_headers(const OpenOptions& options) {
  if (options.load_format == "auto" && !options.quantize_to.empty()) return open_files(options, true);
  if (options.load_format != "dummy") return open_checkpoint(options);
  PROA_ASSIGN(const DummyRequest request, find_dummy(options.model, options.quantization));
  PROA_ASSIGN(const DummyCheckpoint dummy,
              make_dummy(request.name + " as dummy " + std::string(request.precision->name), request.config,
                         *request.precision));
  return Checkpoint::dummy(dummy, 1, 0);
}

std::string dummy_that_fits(const OpenOptions& options, uint64_t available) {
  if (options.load_format != "dummy" || available == 0) return "";
  const auto request = find_dummy(options.model, options.quantization);
  return request.ok() ? command_that_fits(*request, available) : "";
}

Result<Checkpoint> open_checkpoint(const OpenOptions& options, bool for_device) {
  if (options.load_format != "dummy") {
    if (options.load_format != "auto") {
      return Error{"open model", "--load-format", "auto or dummy", options.load_format, ""};
    }
    if (!options.quantization.empty()) {
      return Error{"open model", "--quantization " + options.quantization, "--load-format dummy beside it",
                   "a checkpoint, whose precision is in its files", ""};
    }
    return open_files(options, false);
  }
  PROA_ASSIGN(const DummyRequest request, find_dummy(options.model, options.quantization));
  PROA_ASSIGN(const DummyCheckpoint dummy,
              make_dummy(dummy_name(request), request.config, *request.precision, {.seed = options.seed.value_or(0)}));
  if (for_device) return Checkpoint::dummy(dummy, options.threads, kMaxTensorOnHost);
  const uint64_t available = available_memory();
  if (!fits(dummy.bytes(), available)) {
    return Error{"make dummy weights", request.name + " in " + std::string(request.precision->name),
                 "at most " + bytes_text(available < kSpare ? 0 : available - kSpare) + " of memory that is free",
                 bytes_text(dummy.bytes()), command_that_fits(request, available)};
  }
  return Checkpoint::dummy(dummy, options.threads);
}

}  // namespace proa
