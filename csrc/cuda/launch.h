// Host side of the CUDA kernels: device, stream, launch errors.
#pragma once

#include <cstdint>

namespace vampo::cuda {

// Makes a device current for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

// torch's current stream on a device, as a cudaStream_t.
void* current_stream(int device);

// Throws when the last launch failed.
void check_launch();

}  // namespace vampo::cuda
