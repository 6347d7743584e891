// Kernels of the advantages. `frame_size` of the shape is 1; `clip` is infinite for none.
#pragma once

#include "kernels.h"

namespace vampo::cpu {
void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std,
    void* advantages);
}  // namespace vampo::cpu

namespace vampo::cuda {
void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std, void* advantages,
    void* stream);
}  // namespace vampo::cuda
