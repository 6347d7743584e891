// What kernels take, in plain pointers. CUDA kernels run on `stream` of the current device; `scratch` holds
// scratch_floats(), see cuda/grid.h.
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

}  // namespace vampo
