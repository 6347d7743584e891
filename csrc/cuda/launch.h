// Host side of the CUDA kernels: stream, device, errors.
#pragma once

namespace vampo::cuda {

// torch's current stream on a device, as a cudaStream_t.
void* current_stream(int device);

// Streaming multiprocessors of the current device.
int num_processors();

// Throws when `error`, a cudaError_t, is one.
void check(int error);

}  // namespace vampo::cuda
