// The CUDA kernels as a library for ctypes, to run on the CPU with as many multiprocessors as a test asks for.
#include "cuda_runtime.h"

#include "../../../csrc/cuda/gaussian_log_prob.cu"
#include "../../../csrc/cuda/group_advantages.cu"
#include "../../../csrc/cuda/hybrid_euler_step.cu"
#include "../../../csrc/cuda/latent_reward.cu"
#include "../../../csrc/cuda/philox_normal.cu"

namespace {
int processors = 1;
}

namespace vampo::cuda {
int num_processors() {
  return processors;
}
void check(int) {}
}  // namespace vampo::cuda

using namespace vampo;

extern "C" {

void set_num_processors(int number) {
  processors = number;
}

int64_t num_slices(const Shape* shape) {
  return cuda::sum_grid(*shape, processors).slices;
}

int64_t scratch_floats(const Shape* shape, int statistics) {
  return cuda::scratch_floats(*shape, statistics);
}

void hybrid_euler_step(const Step* step, void* prev_sample) {
  cuda::hybrid_euler_step(*step, prev_sample, nullptr);
}

void hybrid_euler_step_stochastic(
    const Step* step, const Noise* noise, void* prev_sample, void* log_prob, float* scratch) {
  cuda::hybrid_euler_step_stochastic(*step, *noise, prev_sample, log_prob, scratch, nullptr);
}

void gaussian_log_prob(const Step* step, const void* prev_sample, bool mean, void* log_prob, float* scratch) {
  cuda::gaussian_log_prob(*step, prev_sample, mean, log_prob, scratch, nullptr);
}

void gaussian_log_prob_backward(
    const Step* step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond) {
  cuda::gaussian_log_prob_backward(*step, grad_log_prob, prev_sample, mean, grad_model_output, grad_uncond, nullptr);
}

void group_advantages(const Shape* shape, const void* rewards, double eps, double clip, bool normalize, void* to) {
  cuda::group_advantages(*shape, DType::kFloat, rewards, eps, clip, normalize, to, nullptr);
}

void latent_reward(
    const Shape* shape, const void* pred, const void* target, double l1_weight, double cosine_weight, void* reward,
    void* l1, void* cosine, float* scratch) {
  cuda::latent_reward(
      *shape, DType::kFloat, pred, target, l1_weight, cosine_weight, reward, l1, cosine, scratch, nullptr);
}

void philox_normal(const Shape* shape, uint64_t seed, uint32_t first_clip, void* out) {
  cuda::philox_normal(*shape, DType::kFloat, seed, first_clip, out, nullptr);
}
}
