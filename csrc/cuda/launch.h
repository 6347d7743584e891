// Host side of the CUDA kernels: stream, launch errors.
#pragma once

#include <cstdint>

namespace vampo::cuda {

// torch's current stream on a device, as a cudaStream_t.
void* current_stream(int device);

// Throws when the last launch failed.
void check_launch();

}  // namespace vampo::cuda
