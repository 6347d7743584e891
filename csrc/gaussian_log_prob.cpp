#include "gaussian_log_prob.h"

#include <tuple>

#include "backend.h"

namespace vampo {
namespace {

template <typename Backend>
Tensor gaussian_log_prob(
    const Tensor& prev_sample, const Tensor& sample, const Tensor& model_output, const OptionalTensor& uncond,
    const OptionalTensor& guidance, double guidance_scale, double a, double b, double sigma_up, bool mean) {
  STD_TORCH_CHECK(prev_sample.dim() == 6, "vampo_core: prev_sample must be [B, G, F, C, H, W]");
  const int64_t generations = prev_sample.size(1);
  const StepInputs in(sample, model_output, uncond, guidance, guidance_scale, a, b, sigma_up, generations);
  in.check_latents(prev_sample, generations, "prev_sample");
  const Tensor actions = as_contiguous(prev_sample);
  Tensor log_prob = new_per_frame(sample, in.step.shape);
  if (log_prob.numel() == 0) return log_prob;
  typename Backend::Session session(sample, Backend::scratch(in.step.shape, 1));
  VAMPO_LAUNCH_WITH_SCRATCH(gaussian_log_prob, in.step, actions.const_data_ptr(), mean, log_prob.mutable_data_ptr());
  return log_prob;
}

template <typename Backend>
std::tuple<Tensor, Tensor> gaussian_log_prob_backward(
    const Tensor& grad_log_prob, const Tensor& prev_sample, const Tensor& sample, const Tensor& model_output,
    const OptionalTensor& uncond, const OptionalTensor& guidance, double guidance_scale, double a, double b,
    double sigma_up, bool mean) {
  STD_TORCH_CHECK(prev_sample.dim() == 6, "vampo_core: prev_sample must be [B, G, F, C, H, W]");
  const int64_t generations = prev_sample.size(1);
  const StepInputs in(sample, model_output, uncond, guidance, guidance_scale, a, b, sigma_up, generations);
  in.check_latents(prev_sample, generations, "prev_sample");
  const Shape& shape = in.step.shape;
  check_shape(
      grad_log_prob, {shape.clips, shape.generations, shape.frames}, shape.clips * shape.generations * shape.frames,
      "grad_log_prob");
  check_like(grad_log_prob, sample.scalar_type(), sample, "grad_log_prob");
  const Tensor actions = as_contiguous(prev_sample), grad = as_contiguous(grad_log_prob);
  const auto new_gradient = [&] {
    return new_tensor(model_output, {sample.size(0), sample.size(1), sample.size(2), sample.size(3), sample.size(4)});
  };
  Tensor grad_model_output = new_gradient();
  Tensor grad_uncond = uncond ? new_gradient() : new_tensor(model_output, {0});
  if (sample.numel() == 0) return {grad_model_output, grad_uncond};
  typename Backend::Session session(sample);
  VAMPO_LAUNCH(
      gaussian_log_prob_backward, in.step, grad.const_data_ptr(), actions.const_data_ptr(), mean,
      grad_model_output.mutable_data_ptr(), uncond ? grad_uncond.mutable_data_ptr() : nullptr);
  return {grad_model_output, grad_uncond};
}

STABLE_TORCH_LIBRARY_FRAGMENT(vampo_core, m) {
  m.def("gaussian_log_prob(Tensor prev_sample, " VAMPO_STEP_ARGS ", float sigma_up, bool mean) -> Tensor");
  m.def(
      "gaussian_log_prob_backward(Tensor grad_log_prob, Tensor prev_sample, " VAMPO_STEP_ARGS
      ", float sigma_up, bool mean) -> (Tensor, Tensor)");
}
VAMPO_KERNELS(gaussian_log_prob, gaussian_log_prob)
VAMPO_KERNELS(gaussian_log_prob_backward, gaussian_log_prob_backward)

}  // namespace
}  // namespace vampo
