#include "hybrid_euler_step.h"

#include "backend.h"

namespace vampo {
namespace {

Noise make_noise(const OptionalTensor& noise, int64_t seed, int64_t first_clip, const Shape& shape) {
  check_counter(first_clip, shape);
  return {noise ? noise->const_data_ptr() : nullptr, static_cast<uint64_t>(seed), static_cast<uint32_t>(first_clip)};
}

template <typename Backend>
void hybrid_euler_step(
    const Tensor& sample, const Tensor& model_output, const OptionalTensor& uncond, const OptionalTensor& guidance,
    double guidance_scale, double a, double b, const Tensor& prev_sample) {
  const StepInputs in(sample, model_output, uncond, guidance, guidance_scale, a, b, 0.0, 1);
  check_shape(prev_sample, {sample.size(0), sample.size(1)}, sample.numel(), "prev_sample");
  check_like(prev_sample, sample.scalar_type(), sample, "prev_sample");
  check_writable(prev_sample, "prev_sample");
  if (prev_sample.numel() == 0) return;
  typename Backend::Session session(sample);
  VAMPO_LAUNCH(hybrid_euler_step, in.step, prev_sample.mutable_data_ptr());
}

template <typename Backend>
Tensor hybrid_euler_step_stochastic(
    const Tensor& sample, const Tensor& model_output, const OptionalTensor& uncond, const OptionalTensor& guidance,
    double guidance_scale, double a, double b, double sigma_up, const OptionalTensor& noise, int64_t seed,
    int64_t first_clip, const Tensor& prev_sample) {
  STD_TORCH_CHECK(prev_sample.dim() == 6, "vampo_core: prev_sample must be [B, G, F, C, H, W]");
  const int64_t generations = prev_sample.size(1);
  const StepInputs in(sample, model_output, uncond, guidance, guidance_scale, a, b, sigma_up, generations);
  in.check_latents(prev_sample, generations, "prev_sample");
  check_writable(prev_sample, "prev_sample");
  OptionalTensor given;
  if (noise) {
    in.check_latents(*noise, generations, "noise");
    given = as_contiguous(*noise);
  }
  Tensor log_prob = new_per_frame(sample, in.step.shape);
  if (log_prob.numel() == 0) return log_prob;
  typename Backend::Session session(sample, Backend::scratch(in.step.shape, 1));
  VAMPO_LAUNCH_WITH_SCRATCH(
      hybrid_euler_step_stochastic, in.step, make_noise(given, seed, first_clip, in.step.shape),
      prev_sample.mutable_data_ptr(), log_prob.mutable_data_ptr());
  return log_prob;
}

STABLE_TORCH_LIBRARY_FRAGMENT(vampo_core, m) {
  m.def("hybrid_euler_step(" VAMPO_STEP_ARGS ", Tensor(a!) prev_sample) -> ()");
  m.def(
      "hybrid_euler_step_stochastic(" VAMPO_STEP_ARGS
      ", float sigma_up, Tensor? noise, SymInt seed, SymInt first_clip, Tensor(a!) prev_sample) -> Tensor");
}
VAMPO_KERNELS(hybrid_euler_step, hybrid_euler_step)
VAMPO_KERNELS(hybrid_euler_step_stochastic, hybrid_euler_step_stochastic)

}  // namespace
}  // namespace vampo
