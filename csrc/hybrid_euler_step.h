// Kernels of the step: deterministic, or with draws and their log-density.
#pragma once

#include "kernels.h"

namespace vampo::cpu {
void hybrid_euler_step(const Step& step, void* prev_sample);
void hybrid_euler_step_stochastic(const Step& step, const Noise& noise, void* prev_sample, void* log_prob);
}  // namespace vampo::cpu

namespace vampo::cuda {
void hybrid_euler_step(const Step& step, void* prev_sample, void* stream);
void hybrid_euler_step_stochastic(
    const Step& step, const Noise& noise, void* prev_sample, void* log_prob, float* scratch, void* stream);
}  // namespace vampo::cuda
