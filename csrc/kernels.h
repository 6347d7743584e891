// What every kernel takes, in plain pointers: the CPU and the CUDA side of an operator share one declaration.
#pragma once

#include <cstdint>

namespace vampo {

enum class DType { kFloat, kDouble, kBFloat16, kHalf };

// Latents are [clips, generations, frames, frame_size] with frame_size = C * H * W.
struct Shape {
  int64_t clips, generations, frames, frame_size;
};

// A Gaussian step from `sample` [clips, frames, frame_size]: mean a x + b m, standard deviation sigma_up.
struct Step {
  const void* sample;
  const void* model_output;
  const void* model_output_uncond;  // null without guidance
  const void* guidance_per_frame;   // [frames], null for the scalar
  double guidance_scale;
  double a, b, sigma_up;
  DType latent_dtype;  // of sample, guidance_per_frame and every latent or action
  DType output_dtype;  // of the model outputs and their gradients
  Shape shape;
};

struct Noise {
  const void* given;  // [clips, generations, frames, frame_size], null for Philox noise
  uint64_t seed;
  uint32_t first_clip;
};

namespace cpu {
void hybrid_euler_step(const Step& step, void* prev_sample);
void hybrid_euler_step_stochastic(const Step& step, const Noise& noise, void* prev_sample, void* log_prob);
void gaussian_log_prob(const Step& step, const void* prev_sample, bool mean, void* log_prob);
void gaussian_log_prob_backward(
    const Step& step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond);
// Shape: frame_size is 1; clip is infinite for none.
void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std,
    void* advantages);
void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine);
}  // namespace cpu

// The CUDA kernels run on `stream` of the current device. `scratch` holds scratch_floats(), see cuda/grid.h.
namespace cuda {
void hybrid_euler_step(const Step& step, void* prev_sample, void* stream);
void hybrid_euler_step_stochastic(
    const Step& step, const Noise& noise, void* prev_sample, void* log_prob, float* scratch, void* stream);
void gaussian_log_prob(
    const Step& step, const void* prev_sample, bool mean, void* log_prob, float* scratch, void* stream);
void gaussian_log_prob_backward(
    const Step& step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond, void* stream);
void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std, void* advantages,
    void* stream);
void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine, float* scratch, void* stream);
}  // namespace cuda

}  // namespace vampo
