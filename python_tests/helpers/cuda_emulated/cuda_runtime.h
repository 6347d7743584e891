// Stands in for CUDA's header, as far as csrc/cuda uses it: kernels run on the CPU, one block after another. The
// threads of a block are fibers that take turns; each runs until it waits for its block or its warp.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // only one block runs at a time

using std::min;

struct dim3 {
  unsigned x;
  dim3(unsigned x_ = 1) : x(x_) {}
};
inline dim3 threadIdx, blockIdx, blockDim;

namespace emulated {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;

// Threads that wait for each other: whoever comes last lets all of them go on.
struct Barrier {
  unsigned expected = 0, waiting = 0, passed = 0;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  unsigned num_shuffles = 0;
  uint64_t given[2];  // to shuffles; a fast lane may be one shuffle ahead of those that still read
  bool done = true;
};

class Block {
 public:
  void run(unsigned num_threads, const std::function<void()>& kernel) {
    fibers_.resize(std::max<size_t>(fibers_.size(), num_threads));
    kernel_ = &kernel;
    all_ = {num_threads};
    warps_.assign((num_threads + kWarp - 1) / kWarp, Barrier{});
    for (unsigned i = 0; i < num_threads; ++i) {
      ++warps_[i / kWarp].expected;
      start(fibers_[i]);
    }
    for (unsigned num_done = 0; num_done < num_threads;) {
      progress_ = false;
      for (unsigned i = 0; i < num_threads; ++i) {
        if (fibers_[i].done) continue;
        threadIdx = dim3(i);
        swapcontext(&scheduler_, &fibers_[i].context);
        if (fibers_[i].done) {
          ++num_done;
          leave(all_);
          leave(warps_[i / kWarp]);
        }
      }
      if (!progress_) throw std::runtime_error("threads wait for each other at different places");
    }
  }

  void wait_for_block() { wait(all_); }

  uint64_t shuffle(uint64_t value, unsigned from) {
    Fiber& fiber = fibers_[threadIdx.x];
    const unsigned turn = fiber.num_shuffles++ % 2;
    fiber.given[turn] = value;
    wait(warps_[threadIdx.x / kWarp]);
    return fibers_[from].given[turn];
  }

 private:
  void start(Fiber& fiber) {
    fiber.done = false;
    fiber.num_shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler_;
    makecontext(&fiber.context, &Block::enter, 0);
  }

  static void enter();

  void wait(Barrier& barrier) {
    const unsigned passed = barrier.passed;
    ++barrier.waiting;
    open(barrier);
    while (barrier.passed == passed) swapcontext(&fibers_[threadIdx.x].context, &scheduler_);
  }

  // A thread that has ended counts no more, as on the device.
  void leave(Barrier& barrier) {
    progress_ = true;
    --barrier.expected;
    if (barrier.expected > 0) open(barrier);
  }

  void open(Barrier& barrier) {
    if (barrier.waiting < barrier.expected) return;
    barrier.waiting = 0;
    ++barrier.passed;
    progress_ = true;
  }

  std::vector<Fiber> fibers_;
  ucontext_t scheduler_;
  const std::function<void()>* kernel_ = nullptr;
  Barrier all_;
  std::vector<Barrier> warps_;
  bool progress_ = false;
};

inline Block block;

inline void Block::enter() {
  (*block.kernel_)();
  block.fibers_[threadIdx.x].done = true;
}

}  // namespace emulated

inline void __syncthreads() {
  emulated::block.wait_for_block();
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = emulated::block.shuffle(bits, threadIdx.x ^ lanes);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

using cudaStream_t = void*;
using cudaError_t = int;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream = nullptr;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  blockDim = config->blockDim;
  for (unsigned x = 0; x < config->gridDim.x; ++x) {
    blockIdx = dim3(x);
    emulated::block.run(blockDim.x, [&] { kernel(arguments...); });
  }
  return 0;
}
