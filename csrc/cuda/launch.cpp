#include "launch.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace vampo::cuda {
namespace {

using StreamGetter = int32_t (*)(int32_t device, void** stream);

// Looked up at run time, so that this library still loads where torch has no CUDA.
StreamGetter find_stream_getter() {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  if (!symbol) throw std::runtime_error("vampo_core: the running torch has no CUDA");
  return reinterpret_cast<StreamGetter>(symbol);
}

}  // namespace

void* current_stream(int device) {
  static const StreamGetter getter = find_stream_getter();
  void* stream = nullptr;
  if (getter(device, &stream) != 0) throw std::runtime_error("vampo_core: torch gave no CUDA stream");
  return stream;
}

int num_processors() {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> known[kMaxDevices];  // 0: not asked yet
  int device = 0;
  check(cudaGetDevice(&device));
  int number = device < kMaxDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (number == 0) {
    check(cudaDeviceGetAttribute(&number, cudaDevAttrMultiProcessorCount, device));
    if (device < kMaxDevices) known[device].store(number, std::memory_order_relaxed);
  }
  return number;
}

void check(int error) {
  if (error != cudaSuccess) {
    const char* message = cudaGetErrorString(static_cast<cudaError_t>(error));
    throw std::runtime_error(std::string("vampo_core: CUDA error: ") + message);
  }
}

}  // namespace vampo::cuda
