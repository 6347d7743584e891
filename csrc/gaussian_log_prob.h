// Kernels of the log-density of drawn samples, and of its gradient.
#pragma once

#include "kernels.h"

namespace vampo::cpu {
void gaussian_log_prob(const Step& step, const void* prev_sample, bool mean, void* log_prob);
void gaussian_log_prob_backward(
    const Step& step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond);
}  // namespace vampo::cpu

namespace vampo::cuda {
void gaussian_log_prob(
    const Step& step, const void* prev_sample, bool mean, void* log_prob, float* scratch, void* stream);
void gaussian_log_prob_backward(
    const Step& step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond, void* stream);
}  // namespace vampo::cuda
