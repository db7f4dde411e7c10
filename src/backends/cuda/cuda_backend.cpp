#include "backends/cuda/cuda_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backends/backends.h"
#include "backends/cuda/dummy.h"
#include "backends/cuda/kernels.h"
#include "backends/cuda/linear.h"
#include "backends/cuda/probe.h"
#include "backends/cuda/ssd.h"
#include "core/anonymous_memory.h"

namespace proa {
namespace {

using cuda::Input;
using cuda::Output;

constexpr size_t kSlabBytes = size_t{256} << 20;
constexpr size_t kSmallWeight = size_t{16} << 20;
constexpr size_t kStagingBytes = size_t{32} << 20;
constexpr size_t kRecordedStages = 1024;
constexpr size_t kStages = 256;  // of a kernel, without growing
constexpr int kMaxRows = 1024;   // tokens of one product: bounds the scratch memory

std::string megabytes(size_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }
std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// What would help, where that is known.
std::string hint_for(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "other processes may hold its memory: nvidia-smi lists them";
    case cudaErrorDevicesUnavailable:
      return "another process holds it alone: nvidia-smi lists it";
    case cudaErrorNoDevice:
      return std::getenv("CUDA_VISIBLE_DEVICES") ? "CUDA_VISIBLE_DEVICES hides devices; --device cpu works"
                                                 : "--device cpu works";
    case cudaErrorNoKernelImageForDevice:
      return "build with its architecture in -DPROA_CUDA_ARCHITECTURES";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorHardwareStackError:
    case cudaErrorECCUncorrectable:
    case cudaErrorAssert:
      return "the device takes no more work of this process: start it again";
    default:
      return "";
  }
}

Error device_error(const std::string& where, cudaError_t error, std::string doing = "compute") {
  return {.doing = std::move(doing), .where = where, .actual = cudaGetErrorString(error), .hint = hint_for(error)};
}

cuda::Prepare first_of(cuda::Prepare input, int slots) {
  input.slots = slots;
  return input;
}

void free_device(std::byte* memory) { cudaFree(memory); }
void free_pinned(std::byte* memory) { cudaFreeHost(memory); }

}  // namespace

int CudaBackend::num_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return cudaGetLastError(), 0;
  return count;
}

Result<std::unique_ptr<CudaBackend>> CudaBackend::create(int ordinal, Activations activations) {
  const std::string where = "--device cuda:" + std::to_string(ordinal);
  const auto refuse = [&](std::string expected, std::string actual, std::string hint = "") {
    return Error{"choose a device", where, std::move(expected), std::move(actual), std::move(hint)};
  };
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return refuse("an NVIDIA driver", "none", "install one, or take --device cpu");
  if (driver / 1000 < runtime / 1000) {
    return refuse("a driver for CUDA " + version(runtime), "one for CUDA " + version(driver),
                  "update the driver, or take --device cpu");
  }
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();
    const std::string hint = hint_for(error);
    return refuse("a CUDA device", cudaGetErrorString(error), hint.empty() ? "--device cpu works" : hint);
  }
  if (ordinal < 0 || ordinal >= count) {
    return refuse(count == 1 ? "cuda:0" : "cuda:0 to cuda:" + std::to_string(count - 1),
                  std::to_string(count) + (count == 1 ? " device" : " devices"), "nvidia-smi lists them");
  }
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess) {
    return device_error(where, error, "open device");
  }
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return device_error(where, error, "open device");
  std::unique_ptr<CudaBackend> backend(new CudaBackend(ordinal, properties, stream));
  if (!cuda::has_code()) {
    std::string compiled;
    for (const CudaArchitecture& each : cuda_architectures()) compiled += (compiled.empty() ? "" : ", ") + each.name;
    const std::string number = std::to_string(properties.major) + std::to_string(properties.minor);
    return refuse("a device of " + compiled + ", which this program holds code for",
                  std::string(properties.name) + " of sm_" + number,
                  "build with -DPROA_CUDA_ARCHITECTURES=" + number + "-real, or take --device cpu");
  }
  if (activations != Activations::exact) {
    if (!cuda::has_same_kind()) {
      return Error{"choose activations", "--activation-dtype", "auto, or a device of sm_90a such as an H100",
                   std::string(properties.name) + " of sm_" + std::to_string(properties.major) +
                       std::to_string(properties.minor)};
    }
    backend->activations_ = activations;
    backend->description_ += activations == Activations::fp8 ? ", activations FP8" : ", activations BF16";
  }
  for (Staging& staging : backend->staging_) {
    void* memory = nullptr;
    error = cudaHostAlloc(&memory, kStagingBytes, cudaHostAllocDefault);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&staging.done, cudaEventDisableTiming);
    if (error != cudaSuccess) return device_error(where, error, "allocate pinned memory");
    staging.memory = static_cast<std::byte*>(memory);
  }
  PROA_ASSIGN(backend->step_sync_, backend->allocate(sizeof(cuda::StepSync)));
  PROA_ASSIGN(backend->stage_memory_, backend->allocate(kStages * sizeof(cuda::Stage)));
  return backend;
}

CudaBackend::CudaBackend(int ordinal, const cudaDeviceProp& properties, cudaStream_t stream)
    : ordinal_(ordinal),
      integrated_(properties.integrated != 0),
      reads_host_memory_(properties.integrated && properties.pageableMemoryAccess),
      stream_(stream),
      name_("cuda:" + std::to_string(ordinal)),
      description_(std::string(properties.name) + ", " + megabytes(properties.totalGlobalMem) + ", " +
                   std::to_string(properties.multiProcessorCount) + " SMs"),
      launch_(stream, properties.multiProcessorCount, static_cast<int>(properties.sharedMemPerBlockOptin) - 2048,
              properties.major >= 9) {}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_);
  forget_records();
  for (Staging& staging : staging_) {
    if (staging.memory) cudaFreeHost(staging.memory);
    if (staging.done) cudaEventDestroy(staging.done);
  }
  cudaStreamDestroy(stream_);
}

bool CudaBackend::fail(Error error) {
  if (!error_) error_ = std::move(error);
  return false;
}

// A thread starts out on device 0, and the engine's is not the one that opened this device.
void CudaBackend::make_current() const { cudaSetDevice(ordinal_); }

Result<Buffer> CudaBackend::allocate(size_t bytes) {
  make_current();
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  if (error != cudaSuccess) {
    cudaGetLastError();  // running out of memory does not stick
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return Error{.doing = "allocate memory",
                 .where = name_,
                 .expected = megabytes(bytes),
                 .actual = error == cudaErrorMemoryAllocation ? megabytes(free) + " free of " + megabytes(total)
                                                              : std::string(cudaGetErrorString(error)),
                 .hint = "a shorter --max-model-len or a smaller model needs less"};
  }
  launch_.keep(cudaMemsetAsync(memory, 0, std::max<size_t>(bytes, 1), stream_));
  return Buffer{std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), free_device), bytes};
}

Result<SharedBuffer> CudaBackend::allocate_shared(size_t bytes) {
  PROA_ASSIGN(Buffer device, allocate(bytes));
  PROA_ASSIGN(Buffer host, allocate_pinned(bytes));
  std::memset(host.data(), 0, std::max<size_t>(bytes, 1));
  return SharedBuffer{host, device};
}

Result<Buffer> CudaBackend::allocate_pinned(size_t bytes) {
  make_current();
  void* memory = nullptr;
  if (const cudaError_t error = cudaHostAlloc(&memory, std::max<size_t>(bytes, 1), cudaHostAllocDefault);
      error != cudaSuccess) {
    cudaGetLastError();
    return Error{.doing = "allocate pinned memory",
                 .where = name_,
                 .expected = megabytes(bytes),
                 .actual = cudaGetErrorString(error)};
  }
  return Buffer{std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), free_pinned), bytes};
}

Result<PlacedWeight> CudaBackend::unfilled(const Tensor& tensor) {
  PlacedWeight placed{wrap(tensor), {}};
  placed.weight.residency = Residency::device;
  // Rows are read 16 bytes at a time: the last ones end within the padding.
  const size_t bytes = (tensor.bytes + 255) / 256 * 256;
  if (bytes > kSmallWeight) {
    PROA_ASSIGN(placed.memory, allocate(bytes));
  } else {
    if (slab_.used + bytes > slab_.bytes) {
      PROA_ASSIGN(const Buffer slab, allocate(kSlabBytes));
      slab_ = {slab.memory, 0, kSlabBytes};
    }
    placed.memory = {std::shared_ptr<std::byte>(slab_.memory, slab_.memory.get() + slab_.used), bytes};
    slab_.used += bytes;
  }
  placed.weight.data = placed.memory.data();
  return placed;
}

Result<PlacedWeight> CudaBackend::place(const Tensor& tensor) {
  make_current();
  if (reads_host_memory_) {
    PlacedWeight wrapped{wrap(tensor), {}};
    wrapped.weight.residency = Residency::device;
    return wrapped;
  }
  PROA_ASSIGN(PlacedWeight placed, unfilled(tensor));
  // Through pinned memory, so that the copy out of the file and the one to the device overlap.
  for (size_t at = 0; at < tensor.bytes; at += kStagingBytes) {
    Staging& staging = staging_[next_staging_];
    next_staging_ ^= 1;
    const size_t count = std::min(kStagingBytes, tensor.bytes - at);
    cudaEventSynchronize(staging.done);
    std::memcpy(staging.memory, tensor.data + at, count);
    launch_.keep(cudaMemcpyAsync(placed.memory.data() + at, staging.memory, count, cudaMemcpyHostToDevice, stream_));
    launch_.keep(cudaEventRecord(staging.done, stream_));
  }
  return placed;
}

Result<PlacedWeight> CudaBackend::place_dummy(const Tensor& tensor, const DummyFill& fill, uint64_t begin) {
  make_current();
  PROA_ASSIGN(PlacedWeight placed, unfilled(tensor));
  cuda::fill_dummy(fill, begin, placed.memory.data(), tensor.bytes, launch_);
  return placed;
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  if (counting_) return;
  make_current();
  run_stages();
  if (bytes > 0) launch_.keep(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_));
}

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  if (counting_) return;
  make_current();
  run_stages();
  if (bytes > 0) launch_.keep(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
}

void CudaBackend::copy(void* to, const void* from, size_t bytes) {
  if (counting_) return;
  make_current();
  run_stages();
  if (bytes > 0) launch_.keep(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
}

void CudaBackend::run(uint64_t key, FunctionRef<void()> step) {
  if (error_) return;
  make_current();
  run_stages();
  if (const auto found = records_.find(key); found != records_.end()) {
    launch_.keep(cudaGraphLaunch(found->second.graph, stream_));
    return;
  }
  if (seen_.insert(key).second) {  // memory and code are in place afterwards
    step();
    return run_stages();
  }
  auto memory = allocate(kRecordedStages * sizeof(cuda::Stage));
  if (!memory.ok()) {  // no room for a record: the step itself needs none
    step();
    return run_stages();
  }
  record_memory_ = *memory;
  recorded_.clear();
  cudaGraph_t graph = nullptr;
  Record record;
  launch_.keep(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
  step();
  run_stages();
  capturing_ = false;
  launch_.keep(cudaStreamEndCapture(stream_, &graph));
  const cudaError_t instantiated = graph ? cudaGraphInstantiate(&record.graph, graph, 0) : cudaSuccess;
  if (graph) cudaGraphDestroy(graph);
  if (instantiated == cudaErrorMemoryAllocation) {  // likewise
    cudaGetLastError();
    record_memory_ = {};
    step();
    return run_stages();
  }
  launch_.keep(instantiated);
  if (record.graph && (error_ || launch_.error() != cudaSuccess)) {  // what an op left out is not to be replayed
    cudaGraphExecDestroy(record.graph);
    return;
  }
  if (!record.graph) return;
  record.stage_memory = std::move(record_memory_);
  upload(record.stage_memory.data(), recorded_.data(), recorded_.size() * sizeof(cuda::Stage));
  records_[key] = record;
  launch_.keep(cudaGraphLaunch(record.graph, stream_));
}

void CudaBackend::forget_records() {
  if (!records_.empty()) cudaStreamSynchronize(stream_);
  for (const auto& [key, record] : records_) cudaGraphExecDestroy(record.graph);
  records_.clear();
  seen_.clear();
}

void CudaBackend::add(cuda::Stage stage) {
  if (stage.kind == cuda::Stage::Kind::matvec && stage.matvec.output == cuda::Output::add) {
    residual(stage.matvec.num_matrices > 0 ? stage.matvec.matrices[0].rows : stage.matvec.experts.shape.rows);
  }
  if (counting_) return;
  if (!cuda::can_follow(stages_, stage)) run_stages();
  for (const cuda::Stage& before : stages_) {
    // Caches are read before the stages before are done, and so must be older than all of them.
    if (before.kind != stage.kind) continue;
    if ((stage.kind == cuda::Stage::Kind::conv_ssm_step && before.ssm.cache.ssm == stage.ssm.cache.ssm) ||
        (stage.kind == cuda::Stage::Kind::attend && before.attend.cache.k == stage.attend.cache.k)) {
      run_stages();
      break;
    }
  }
  if (stage.routes) {
    stage.routed_before =
        static_cast<int>(std::count_if(stages_.begin(), stages_.end(), [](const auto& s) { return s.routes; }));
  }
  cuda::append(stages_, stage, launch_);
}

void CudaBackend::run_stages() {
  if (route_) {
    const Route route = *route_;
    route_.reset();
    route_alone(route);
  }
  if (stages_.empty()) return;
  std::vector<cuda::Stage> stages = std::move(stages_);
  stages_.clear();
  if (error_) return;
  cuda::finish(stages, launch_);
  const size_t bytes = stages.size() * sizeof(cuda::Stage);
  const cuda::Stage* device = nullptr;
  if (capturing_) {
    if (recorded_.size() + stages.size() > kRecordedStages) {
      return void(fail({"record a step", name_, std::to_string(kRecordedStages) + " stages", "more", ""}));
    }
    device = record_memory_.as<cuda::Stage>() + recorded_.size();
    recorded_.insert(recorded_.end(), stages.begin(), stages.end());
  } else {
    if (bytes > stage_memory_.bytes) {
      auto memory = allocate(bytes);
      if (!memory.ok()) return void(fail(memory.error()));
      cudaStreamSynchronize(stream_);  // the memory before may be in use
      stage_memory_ = *memory;
    }
    launch_.keep(cudaMemcpyAsync(stage_memory_.data(), stages.data(), bytes, cudaMemcpyHostToDevice, stream_));
    device = stage_memory_.as<cuda::Stage>();
  }
  cuda::run_step(device, stages, step_sync_.as<cuda::StepSync>(), residual(0), launch_);
}

Result<void> CudaBackend::synchronize() {
  make_current();
  run_stages();
  launch_.keep(cudaStreamSynchronize(stream_));
  if (const cudaError_t found = launch_.error(); found != cudaSuccess) {
    // Each error counts for the steps since the last call. What is broken for good reports itself again in the next.
    launch_.clear();
    cudaGetLastError();
    error_.reset();
    return device_error(name_, found);
  }
  if (!error_) return {};
  const Error error = *std::move(error_);
  error_.reset();
  return error;
}

double CudaBackend::probe(Probe what, double seconds) {
  make_current();
  return what == Probe::read ? cuda::read_probe(seconds, launch_) : cuda::arithmetic_probe(what, seconds, launch_);
}

DeviceMemory CudaBackend::memory() {
  make_current();
  DeviceMemory memory;
  cudaMemGetInfo(&memory.free, &memory.total);
  // What is one with the host's memory counts pages of files as taken, which the host takes back when it must.
  if (integrated_) memory.free = std::max<size_t>(memory.free, std::min<size_t>(available_memory(), memory.total));
  memory.scratch = scratch_.bytes + tickets_.bytes + route_logits_.bytes + residual_sums_.bytes;
  memory.maps_files = reads_host_memory_;
  return memory;
}

Result<size_t> CudaBackend::scratch_bytes(FunctionRef<void()> steps) {
  make_current();
  run_stages();  // what was asked for before is no part of it
  counted_ = {};
  counting_ = true;
  launch_.set_dry(true);
  steps();
  launch_.set_dry(false);
  counting_ = false;
  if (error_) {  // of an op that does not take the shape
    const Error error = *std::move(error_);
    error_.reset();
    return error;
  }
  return counted_.scratch + counted_.tickets + counted_.route_logits + counted_.residual_sums;
}

Result<void> CudaBackend::reserve(FunctionRef<void()> steps) {
  PROA_TRY(scratch_bytes(steps));
  const auto needs = counted_;
  at_least(scratch_, counted_.scratch, needs.scratch, 0);
  at_least(tickets_, counted_.tickets, needs.tickets, 0);
  at_least(route_logits_, counted_.route_logits, needs.route_logits, 0);
  at_least(residual_sums_, counted_.residual_sums, needs.residual_sums, 0);
  return synchronize();
}

std::byte* CudaBackend::at_least(Buffer& memory, size_t& counted, size_t bytes, size_t spare) {
  if (counting_) return counted = std::max(counted, bytes), nullptr;
  if (bytes <= memory.bytes) return memory.data();
  if (capturing_) return fail({"compute", name_, "memory that was there before", "a larger step", ""}), nullptr;
  run_stages();
  cudaStreamSynchronize(stream_);
  forget_records();
  memory = {};
  auto grown = allocate(bytes + spare);
  if (!grown.ok()) return fail(grown.error()), nullptr;
  memory = *grown;
  return memory.data();
}

std::byte* CudaBackend::scratch(size_t bytes) { return at_least(scratch_, counted_.scratch, bytes, bytes / 4); }

uint32_t* CudaBackend::tickets(size_t count) {
  const size_t bytes = std::max<size_t>(count, 1 << 16) * sizeof(uint32_t);
  return reinterpret_cast<uint32_t*>(at_least(tickets_, counted_.tickets, bytes, 0));
}

cuda::Residual CudaBackend::residual(int rows) {
  constexpr size_t kBytes = 3 * sizeof(int64_t) + sizeof(float);  // of a row
  const size_t stride = (static_cast<size_t>(rows) + 31) / 32 * 32;
  std::byte* memory = at_least(residual_sums_, counted_.residual_sums, stride * kBytes, 0);
  if (!memory) return {};
  cuda::Residual residual;
  residual.stride = static_cast<int64_t>(residual_sums_.bytes / kBytes);
  residual.sums = reinterpret_cast<int64_t*>(memory);
  residual.spare = reinterpret_cast<float*>(residual.sums + 3 * residual.stride);
  return residual;
}

float* CudaBackend::route_logits(size_t count) {
  return reinterpret_cast<float*>(at_least(route_logits_, counted_.route_logits, count * sizeof(float), 0));
}

std::optional<cuda::Matrix> CudaBackend::matrix(const Weight& weight) {
  cuda::Matrix m;
  m.data = reinterpret_cast<const uint8_t*>(weight.data);
  m.stride = static_cast<int64_t>(weight.row_stride);
  m.rows = static_cast<int>(weight.rows);
  m.cols = static_cast<int>(weight.cols);
  m.scale = weight.scale;
  const Scales& scales = weight.scales;
  const bool groups = weight.format == Format::E2M1;
  if (groups && scales && scales.format == Format::F8_E4M3 && scales.group == 16) {
    m.group_scales = reinterpret_cast<const uint8_t*>(scales.data);
    m.scales_stride = static_cast<int64_t>(scales.row_stride);
    return m;
  }
  if (!groups && scales && scales.format == Format::F32 && scales.group >= weight.cols &&
      scales.row_stride == sizeof(float)) {
    m.row_scales = reinterpret_cast<const float*>(scales.data);
    return m;
  }
  if (!groups && !scales) return m;
  fail({.doing = "multiply",
        .where = name_,
        .expected = "E2M1 with E4M3 scales of 16 values, or another format with at most a scale per row",
        .actual = std::string(info(weight.format).name) + (scales ? " with " + std::string(info(scales.format).name) +
                                                                        " scales of " + std::to_string(scales.group)
                                                                  : " without scales")});
  return std::nullopt;
}

std::optional<cuda::Experts> CudaBackend::experts(const ExpertWeights& weights) {
  Weight one;  // as all are but for where they lie
  one.data = reinterpret_cast<const std::byte*>(weights.data);
  one.rows = weights.rows, one.cols = weights.cols, one.row_stride = weights.row_stride, one.format = weights.format;
  one.scales = weights.scales;
  if (weights.scales_data == nullptr) one.scales = {};
  if (weights.scales_data != nullptr) one.scales.data = reinterpret_cast<const std::byte*>(weights.scales_data);
  const auto shape = matrix(one);
  if (!shape) return std::nullopt;
  cuda::Experts experts;
  experts.data = weights.data;
  experts.scales = weights.scales_data;
  experts.scale = weights.scale;
  experts.row_scales = shape->row_scales != nullptr;
  experts.shape = *shape;
  experts.shape.data = experts.shape.group_scales = nullptr;
  experts.shape.row_scales = nullptr;
  experts.shape.scale = 1;
  return experts;
}

void CudaBackend::products(const cuda::Prepare& input, std::span<const Product> products, bool exact) {
  if (input.slots == 0) return;
  if (input.slots == 1) return products_of_one(input, products);
  for (const Product& product : products) {
    if (counting_ && product.output == Output::add) residual(static_cast<int>(product.weight.rows));
  }
  if (!exact && products_of_many(input, products)) {
    // Smaller steps go another way, which may need more.
    if (counting_) this->products(first_of(input, cuda::kManyTokens - 1), products);
    return;
  }
  products_of_few(input, products);
}

void CudaBackend::products_of_one(const cuda::Prepare& input, std::span<const Product> products) {
  for (size_t i = 0; i < products.size();) {
    cuda::MatVec op;
    op.input = input.input;
    op.x = input.x;
    op.x_row = input.rows;
    op.z = input.z;
    op.norm = input.norm;
    op.eps = input.eps;
    op.n_groups = input.n_groups;
    const Product& first = products[i];
    op.output = first.output;
    op.relu2 = first.relu2;
    op.gate = first.gate;
    for (; i < products.size() && op.num_matrices < cuda::kMaxMatrices; ++i) {
      const Product& product = products[i];
      if (product.weight.format != first.weight.format || product.output != first.output ||
          product.gate != first.gate) {
        break;
      }
      auto m = matrix(product.weight);
      if (!m) return;
      m->y = product.y;
      op.matrices[op.num_matrices++] = *m;
    }
    add(cuda::matvec_stage(first.weight.format, op, launch_));
  }
}

void CudaBackend::embed(const Embed& op) {
  if (route_) run_stages();
  cuda::embed(op, launch());
}

void CudaBackend::norm_linear(const NormLinear& op) {
  if (route_) run_stages();
  std::vector<Product> outputs;
  for (const LinearOutput& output : op.outputs) outputs.push_back({output.weight, output.y});
  products({.slots = op.num_tokens,
            .cols = op.hidden_size,
            .input = Input::normed,
            .x = op.x,
            .x_stride = op.hidden_size,
            .norm = op.norm,
            .eps = op.eps},
           outputs);
}

void CudaBackend::linear_residual(const LinearResidual& op) {
  if (route_) run_stages();
  const Product product[] = {{op.weight, op.residual, Output::add}};
  products({.slots = op.num_tokens, .cols = static_cast<int>(op.weight.cols), .x = op.x, .x_stride = op.weight.cols},
           product);
}

void CudaBackend::mlp(const Mlp& op) {
  if (route_) run_stages();
  const bool relu2 = op.activation == Activation::relu2;
  const int64_t width = op.up.rows;
  for (int first = 0; first < op.num_tokens; first += kMaxRows) {
    const int count = std::min(kMaxRows, op.num_tokens - first);
    // Behind what products() takes: it starts at the front of the same memory.
    const size_t front =
        2 * (cuda::fragment_bytes(count, static_cast<int>(std::max(op.up.cols, width)), true) * 2 + 65536);
    const size_t bytes = front + 2 * Arena::padded<float>(count * width);
    std::byte* memory = scratch(bytes);
    if (!memory) return;
    const size_t aligned = front / Arena::kAlignment * Arena::kAlignment;
    Arena arena(memory + aligned, bytes - aligned);
    float* gate = arena.take<float>(count * width);
    float* h = arena.take<float>(count * width);
    float* x = op.x + int64_t{first} * op.hidden_size;
    const cuda::Prepare input = {.slots = count,
                                 .cols = op.hidden_size,
                                 .input = Input::normed,
                                 .x = x,
                                 .x_stride = op.hidden_size,
                                 .norm = op.norm,
                                 .eps = op.eps};
    if (op.gate) {
      const Product both[] = {{op.gate, gate}, {op.up, h, Output::gate, relu2, gate}};
      products(input, both);
    } else {
      const Product up[] = {{op.up, h, Output::activate, relu2}};
      products(input, up);
    }
    const Product down[] = {{op.down, x, Output::add}};
    products({.slots = count, .cols = static_cast<int>(width), .x = h, .x_stride = width}, down);
  }
}

void CudaBackend::route(const Route& op) {
  if (op.num_tokens == 0) return;
  if (route_) run_stages();
  const size_t count = static_cast<size_t>(op.num_tokens) * static_cast<size_t>(op.n_routed_experts);
  // Not scratch: the next op may begin to write that while this one runs.
  if (!route_logits(count) && !counting_) return;
  if (op.num_tokens == 1 && !counting_) {
    route_ = op;
    return;
  }
  route_alone(op);
}

void CudaBackend::route_alone(const Route& op) {
  float* logits = route_logits_.as<float>();
  uint32_t* counters = tickets(static_cast<size_t>(op.num_tokens));
  if (!counters && !counting_) return;
  if (const size_t floats = cuda::route_many_floats(op)) {
    auto* memory = reinterpret_cast<float*>(scratch(floats * sizeof(float)));
    if (memory) cuda::route_many(op, logits, memory, launch());
  } else if (!cuda::route_fused(op, logits, counters, launch())) {
    const Product product[] = {{op.gate, logits}};
    products({.slots = op.num_tokens,
              .cols = op.hidden_size,
              .input = Input::normed,
              .x = op.x,
              .x_stride = op.hidden_size,
              .norm = op.norm,
              .eps = op.eps},
             product, true);
    cuda::choose_experts(op, logits, launch());
  }
}

void CudaBackend::moe(const Moe& op) {
  if (op.num_tokens == 0) return;
  if (op.num_tokens == 1 && op.num_experts_per_tok <= cuda::kMaxExperts) {
    moe_of_one(op);
  } else if (!moe_of_many(op)) {
    moe_of_few(op);
  } else if (counting_) {  // as in products()
    Moe few = op;
    few.num_tokens = cuda::kManyTokens - 1;
    moe_of_few(few);
  }
}

// What is computed where: h holds the shared expert's hidden values, then those of each chosen expert.
void CudaBackend::moe_of_one(const Moe& op) {
  const auto up = experts(op.up), down = experts(op.down);
  if (!up || !down) return;
  const bool relu2 = op.activation == Activation::relu2, shared = static_cast<bool>(op.shared_up);
  const bool latent = static_cast<bool>(op.latent_in);
  const int64_t shared_rows = shared ? op.shared_up.rows : 0, k = op.num_experts_per_tok;
  // What widens finds the experts for what narrows: nothing may part the two.
  residual(op.hidden_size);
  if (!cuda::can_add_to(stages_, op.x)) run_stages();
  const size_t bytes = Arena::padded<float>(shared_rows + k * op.up.rows) + 2 * Arena::padded<float>(op.down.rows);
  std::byte* memory = scratch(bytes);
  if (!memory) return;
  Arena arena(memory, bytes);
  float* h = arena.take<float>(shared_rows + k * op.up.rows);
  float* z = arena.take<float>(op.down.rows);
  float* r = arena.take<float>(op.down.rows);

  const cuda::Prepare normed = {.slots = 1,
                                .cols = op.hidden_size,
                                .input = Input::normed,
                                .x = op.x,
                                .x_stride = op.hidden_size,
                                .norm = op.norm,
                                .eps = op.eps};
  const auto with_experts = [&](cuda::MatVec& v, const cuda::Experts& which) {
    v.experts = which;
    v.experts.ids = op.topk_ids;
    v.experts.weights = op.topk_weights;
    v.experts.count = op.num_experts_per_tok;
  };
  const bool shared_with_up = shared && !latent && op.shared_up.format == op.up.format;
  cuda::MatVec widen;
  widen.mode = cuda::MatVec::Mode::widen;
  widen.input = latent ? Input::plain : Input::normed;
  widen.x = latent ? z : op.x;
  widen.norm = op.norm;
  widen.eps = op.eps;
  widen.output = Output::activate;
  widen.relu2 = relu2;
  if (shared_with_up) {
    auto m = matrix(op.shared_up);
    if (!m) return;
    m->y = h;
    widen.matrices[widen.num_matrices++] = *m;
  }
  with_experts(widen, *up);
  widen.experts.shape.y = h + shared_rows;
  cuda::Stage stage = cuda::matvec_stage(op.up.format, widen, launch_);
  // The router has the same input and is a part of the product, where the product has other rows to begin with.
  if (route_ && cuda::can_route(*route_, stage, launch_)) {
    stage.routes = true;
    stage.route = *route_;
    stage.logits = route_logits_.as<float>();
    route_.reset();
  }
  if (route_) run_stages();
  if (latent) {
    const Product in[] = {{op.latent_in, z}};
    products_of_one(normed, in);
  }
  if (shared && !shared_with_up) {
    const Product alone[] = {{op.shared_up, h, Output::activate, relu2}};
    products_of_one(normed, alone);
  }
  add(stage);

  float* out = latent ? r : op.x;
  const bool shared_with_down = shared && !latent && op.shared_down.format == op.down.format;
  if (shared && !shared_with_down) {
    const Product alone[] = {{op.shared_down, op.x, Output::add}};
    products_of_one({.slots = 1, .cols = static_cast<int>(shared_rows), .x = h, .x_stride = shared_rows}, alone);
  }
  cuda::MatVec narrow;
  narrow.mode = cuda::MatVec::Mode::narrow;
  narrow.x = shared_with_down ? h : h + shared_rows;
  narrow.output = latent ? Output::store : Output::add;
  if (shared_with_down) {
    auto m = matrix(op.shared_down);
    if (!m) return;
    m->y = out;
    narrow.matrices[narrow.num_matrices++] = *m;
  }
  with_experts(narrow, *down);
  narrow.experts.shape.y = out;
  add(cuda::matvec_stage(op.down.format, narrow, launch_));
  if (latent) {
    const Product back[] = {{op.latent_out, op.x, Output::add}};
    products_of_one({.slots = 1, .cols = static_cast<int>(op.down.rows), .x = r, .x_stride = op.down.rows}, back);
  }
}

void CudaBackend::conv_ssm_step(const ConvSsmStep& op) {
  if (route_) run_stages();
  if (cuda::is_stage(op)) {
    if (uint32_t* counters = tickets(static_cast<size_t>(op.shape.n_groups))) {
      add(cuda::conv_ssm_stage(op, counters, launch_));
    }
    return;
  }
  const int64_t tokens = int64_t{op.num_seqs} * op.tokens_per_seq;
  auto* activated =
      reinterpret_cast<float*>(scratch(static_cast<size_t>(tokens * op.shape.conv_dim()) * sizeof(float)));
  uint32_t* counters = tickets(static_cast<size_t>(op.num_seqs) * static_cast<size_t>(op.shape.n_groups));
  if (error_) return;
  if (op.shape.ssm_state_size > 256) {
    fail({"advance SSM state", name_, "ssm_state_size up to 256", std::to_string(op.shape.ssm_state_size), ""});
    return;
  }
  cuda::conv_ssm_step(op, activated, counters, launch());
}

void CudaBackend::ssd_chunk(const SsdChunk& op) {
  if (route_) run_stages();
  auto* activated = reinterpret_cast<float*>(scratch(static_cast<size_t>(cuda::ssd_floats(op)) * sizeof(float)));
  if (error_) return;
  if (op.shape.ssm_state_size > 256) {
    fail({"advance SSM state", name_, "ssm_state_size up to 256", std::to_string(op.shape.ssm_state_size), ""});
    return;
  }
  cuda::ssd_chunk(op, activated, launch());
}

void CudaBackend::gated_norm_linear_residual(const GatedNormLinearResidual& op) {
  if (route_) run_stages();
  const Product product[] = {{op.weight, op.residual, Output::add}};
  products({.slots = op.num_tokens,
            .cols = op.inner,
            .input = Input::gated,
            .x = op.y,
            .x_stride = op.inner,
            .z = op.z,
            .z_stride = op.z_stride,
            .norm = op.norm,
            .eps = op.eps,
            .n_groups = op.n_groups},
           product);
}

void CudaBackend::rope(const Rope& op) {
  if (route_) run_stages();
  cuda::rope(op, launch());
}

double CudaBackend::attend_rounding(Format cache, int num_tokens) const {
  return cache == Format::F8_E4M3 ? cuda::attend_fp8_rounding(num_tokens) : 0;
}

void CudaBackend::attend(const Attend& op) {
  if (route_) run_stages();
  if (op.head_dim > 256) {
    fail({"attend", name_, "head_dim up to 256", std::to_string(op.head_dim), ""});
    return;
  }
  if (cuda::is_stage(op)) {
    const int blocks = cuda::step_blocks(launch_.num_sms()) / op.num_kv_heads;
    cuda::Stage stage;
    stage.kind = cuda::Stage::Kind::attend;
    stage.attend = cuda::make_attend_one(op, std::max(1, blocks), nullptr);
    stage.attend.partial = reinterpret_cast<float*>(scratch(cuda::attend_partial_size(stage.attend) * sizeof(float)));
    if (blocks > 0 && stage.attend.partial) {  // while counting the rest is asked for as well
      add(stage);
      stage.kind = cuda::Stage::Kind::join;
      return add(stage);
    }
  }
  const int splits = cuda::attend_splits(op, launch_);
  auto* partial = reinterpret_cast<float*>(scratch(cuda::attend_partial_floats(op, splits) * sizeof(float)));
  // A smaller step may be split more: into at most two blocks for each SM.
  if (const size_t blocks = cuda::attend_tickets(op); counting_ && blocks > 0) {
    scratch(cuda::attend_partial_floats(op, 2) / (2 * blocks) * 2 * static_cast<size_t>(launch_.num_sms()) *
            sizeof(float));
  }
  uint32_t* counters = tickets(splits > 1 || counting_ ? cuda::attend_tickets(op) : 0);
  if (error_) return;
  cuda::attend(op, splits, partial, counters, launch());
}

void CudaBackend::lm_head(const LmHead& op) {
  if (route_) run_stages();
  const Product product[] = {{op.weight, op.logits}};
  products({.slots = op.num_rows,
            .cols = op.hidden_size,
            .input = Input::normed,
            .x = op.x,
            .x_stride = op.hidden_size,
            .rows = op.rows,
            .norm = op.norm,
            .eps = op.eps},
           product);
}

void CudaBackend::sample(const Sample& op) {
  if (route_) run_stages();
  auto* partial = reinterpret_cast<cuda::SamplePart*>(
      scratch(static_cast<size_t>(op.num_rows) * cuda::kSampleParts * sizeof(cuda::SamplePart)));
  if (error_) return;
  cuda::sample(op, partial, launch());
}

}  // namespace proa
