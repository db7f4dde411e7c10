// One kind of hardware: memory, and the ops. A model asks for ops and never knows which backend answers.
//
// No op reads host memory it was not given, allocates, or waits for the host: every value that changes from step to
// step is in a device array. Ops of one backend run in the order they were asked for. What the base class answers is
// the plain reference: right everywhere the backend's memory is visible to the host, slow everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

#include "core/result.h"
#include "core/thread_pool.h"
#include "ops/attend.h"
#include "ops/embed.h"
#include "ops/lm_head.h"
#include "ops/mamba2.h"
#include "ops/mlp.h"
#include "ops/moe.h"
#include "ops/norm_linear.h"
#include "ops/probe.h"
#include "ops/rope.h"
#include "ops/route.h"
#include "ops/sample.h"

namespace proa {

struct DummyFill;  // quant/dummy.h

// Device memory, zeroed, aligned to 64 bytes; freed with the last owner.
struct Buffer {
  std::shared_ptr<std::byte> memory;
  size_t bytes = 0;

  std::byte* data() const { return memory.get(); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(memory.get());
  }
};

// The same bytes for both sides: the host writes or reads `host`, ops take `device`, upload() and download() carry
// parts over. Where the device shares the host's memory both are one.
struct SharedBuffer {
  Buffer host, device;
};

// A weight on the device, and the memory behind it: empty where it is used where it lay.
struct PlacedWeight {
  Weight weight;
  Buffer memory;
};

// Memory of a device, bytes.
struct DeviceMemory {
  size_t total = 0;        // 0: the device does not say, and then nothing is refused
  size_t free = 0;         // that this process can still take; pages of files that can be read again count as free
  size_t scratch = 0;      // of what is taken, what reserve() and ops keep: a later engine uses it again
  bool maps_files = true;  // place() leaves weights where they lie: those of a file take nothing but such pages
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;         // "cpu", "cuda:0"
  virtual std::string_view description() const = 0;  // "AVX-512, 2 threads": for people
  virtual DeviceMemory memory() { return {}; }
  // Error: the bytes asked for and what the device has.
  virtual Result<Buffer> allocate(size_t bytes) = 0;
  virtual Result<SharedBuffer> allocate_shared(size_t bytes) {
    PROA_ASSIGN(Buffer buffer, allocate(bytes));
    return SharedBuffer{buffer, buffer};
  }
  // Whether the host reads and writes Buffers itself. Otherwise what it is to see goes through the two copies below,
  // which run in order with the ops: `host` of an upload may be reused at once, but that of a SharedBuffer and what a
  // download fills only after synchronize().
  virtual bool shares_memory() const { return true; }
  virtual void upload(void* device, const void* host, size_t bytes) {
    if (bytes > 0 && device != host) std::memcpy(device, host, bytes);
  }
  virtual void download(void* host, const void* device, size_t bytes) {
    if (bytes > 0 && host != device) std::memcpy(host, device, bytes);
  }

  // Between two places of the device.
  virtual void copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  // Host memory, like that of a SharedBuffer but without a counterpart: what is swapped out of the device.
  virtual Result<Buffer> allocate_pinned(size_t bytes) { return allocate(bytes); }

  // A tensor of a checkpoint as a weight of this device: used where it lies if the device can read it there, and then
  // the tensor must outlive the weight. Error: the tensor does not fit.
  virtual Result<PlacedWeight> place(const Tensor& tensor) { return PlacedWeight{wrap(tensor), {}}; }
  // A tensor of dummy weights whose bytes exist nowhere yet: made in memory of this device, those of `fill` from byte
  // `begin` on, a multiple of dummy_unit_bytes(). tensor.data is not read. Error: it does not fit.
  virtual Result<PlacedWeight> place_dummy(const Tensor& tensor, const DummyFill& fill, uint64_t begin);
  // Ops that run on the reference here, by name, comma-separated; empty when none does.
  virtual std::string_view on_reference() const = 0;

  // Scratch memory: what ops need beside their arguments. It belongs to the backend and would grow when a larger step
  // is seen; an engine reserves it beforehand, so that steps allocate nothing and what is left can go to the KV cache.
  //
  // `steps` asks for the ops of the largest steps, of which only shapes count: nothing is computed, and of the
  // arguments only what a Batch points to is read, in host memory. So the answer costs microseconds and no weight has
  // to be there: what a model needs is known before it is loaded. (A profile run of a real step would cost seconds on a
  // CPU, and need the weights.) An op added to a backend counts by asking for its scratch before it does anything else.
  // Errors: a shape that an op of this backend does not take; of reserve() those of allocate() as well.
  virtual Result<size_t> scratch_bytes(FunctionRef<void()> /*steps*/) { return size_t{0}; }
  virtual Result<void> reserve(FunctionRef<void()> /*steps*/) { return {}; }

  virtual void embed(const Embed& op) { embed_reference(op); }
  virtual void norm_linear(const NormLinear& op) { norm_linear_reference(op); }
  virtual void linear_residual(const LinearResidual& op) { linear_residual_reference(op); }
  virtual void mlp(const Mlp& op) { mlp_reference(op); }
  virtual void route(const Route& op) { route_reference(op); }
  virtual void moe(const Moe& op) { moe_reference(op); }
  virtual void conv_ssm_step(const ConvSsmStep& op) { conv_ssm_step_reference(op); }
  virtual void ssd_chunk(const SsdChunk& op) { ssd_chunk_reference(op); }
  virtual void gated_norm_linear_residual(const GatedNormLinearResidual& op) {
    gated_norm_linear_residual_reference(op);
  }
  virtual void rope(const Rope& op) { rope_reference(op); }
  virtual void attend(const Attend& op) { attend_reference(op); }
  virtual void lm_head(const LmHead& op) { lm_head_reference(op); }
  virtual void sample(const Sample& op) { sample_reference(op); }

  // Sums x [count] over the devices that share a model, after each mixer; one device has nothing to add.
  virtual void all_reduce(float* /*x*/, int64_t /*count*/) {}

  // A limit of this device at this moment, measured for about that many seconds on all of its threads: bytes/s or
  // operations/s, the best of several loops; 0 where the device has no such arithmetic.
  virtual double probe(Probe /*what*/, double /*seconds*/) { return 0; }

  // Whether a token's result has the same bits in every batch. Devices that choose kernels by the number of tokens sum
  // in another order in each.
  virtual bool same_bits_in_any_batch() const { return true; }

  // How far the product of a matrix with so many vectors may be from the exact one, relative to its norm and for random
  // values, because the device rounds what it multiplies beside F32 rounding; 0 where it multiplies without loss.
  virtual double product_rounding(Format /*weights*/, int /*num_tokens*/) const { return 0; }

  // The same of queries (times the scale of scores) and of weights in attend(): each may be off by so much of itself,
  // because the device rounds it beside F32 rounding; and where that is more, which is where F16 ends, queries by 2^-25
  // and weights by 2^-40 of the largest.
  virtual double attend_rounding(Format /*cache*/, int /*num_tokens*/) const { return 0; }

  // Whether so many vectors become E4M3 before such a matrix multiplies them, by its input_scale: a faster product,
  // whose rounding is part of product_rounding().
  virtual bool quantises(Format /*weights*/, int /*num_tokens*/) const { return false; }

  // Calls `step`, which only asks for ops. The same `key` promises the same requests with the same arguments, so that a
  // backend may record them once and then replay the record instead of calling.
  virtual void run(uint64_t /*key*/, FunctionRef<void()> step) { step(); }
  // Records are void: memory that they name is about to go.
  virtual void forget_records() {}

  // Waits until all that was asked for is done. Error: what the device reports; nothing it computed since counts.
  virtual Result<void> synchronize() { return {}; }
};

}  // namespace proa
