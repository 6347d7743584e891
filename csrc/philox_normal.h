// Kernels of the noise: `out` [clips, generations, frames, frame_size] of `dtype`.
#pragma once

#include "kernels.h"

namespace vampo::cpu {
void philox_normal(const Shape& shape, DType dtype, uint64_t seed, uint32_t first_clip, void* out);
}  // namespace vampo::cpu

namespace vampo::cuda {
void philox_normal(const Shape& shape, DType dtype, uint64_t seed, uint32_t first_clip, void* out, void* stream);
}  // namespace vampo::cuda
