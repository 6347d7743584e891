// Kernels of the reward.
#pragma once

#include "kernels.h"

namespace vampo::cpu {
void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine);
}  // namespace vampo::cpu

namespace vampo::cuda {
void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine, float* scratch, void* stream);
}  // namespace vampo::cuda
