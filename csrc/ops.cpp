// Every operator's schema, and the one place where tensors become pointers for either device's kernels.
#include <limits>
#include <tuple>

#include "checks.h"
#include "kernels.h"
#include "stable.h"

#ifdef VAMPO_WITH_CUDA
#include "cuda/grid.h"
#include "cuda/launch.h"
#endif

namespace vampo {
namespace {

using OptionalTensor = std::optional<Tensor>;

// Contiguous inputs of a step, kept alive while the kernel's pointers are in use.
struct StepInputs {
  Tensor sample, model_output;
  OptionalTensor uncond, guidance;
  Step step;

  StepInputs(
      const Tensor& sample_, const Tensor& model_output_, const OptionalTensor& uncond_,
      const OptionalTensor& guidance_, double guidance_scale, double a, double b, double sigma_up, int64_t generations)
      : sample(as_contiguous(sample_)), model_output(as_contiguous(model_output_)), step{} {
    STD_TORCH_CHECK(sample.dim() == 5, "vampo_core: sample must be [B, F, C, H, W]");
    const int64_t clips = sample.size(0), frames = sample.size(1);
    const int64_t frame_size = sample.size(2) * sample.size(3) * sample.size(4);
    STD_TORCH_CHECK(frame_size > 0, "vampo_core: sample must have elements in each frame");
    check_latent_dtype(sample);
    check_shape(model_output, {clips, frames}, sample.numel(), "model_output");
    check_output(model_output, model_output.scalar_type(), "model_output");
    if (uncond_) {
      uncond = as_contiguous(*uncond_);
      check_shape(*uncond, {clips, frames}, sample.numel(), "model_output_uncond");
      check_output(*uncond, model_output.scalar_type(), "model_output_uncond");
    }
    if (guidance_) {
      guidance = as_contiguous(*guidance_);
      check_shape(*guidance, {frames}, frames, "guidance_per_frame");
      check_like(*guidance, sample.scalar_type(), sample, "guidance_per_frame");
    }
    step.sample = sample.const_data_ptr();
    step.model_output = model_output.const_data_ptr();
    step.model_output_uncond = uncond ? uncond->const_data_ptr() : nullptr;
    step.guidance_per_frame = guidance ? guidance->const_data_ptr() : nullptr;
    step.guidance_scale = guidance_scale;
    step.a = a;
    step.b = b;
    step.sigma_up = sigma_up;
    step.latent_dtype = dtype_of(sample);
    step.output_dtype = dtype_of(model_output);
    step.shape = {clips, generations, frames, frame_size};
  }

  void check_latents(const Tensor& tensor, int64_t generations, const char* name) const {
    check_shape(tensor, {sample.size(0), generations, sample.size(1)}, sample.numel() * generations, name);
    check_like(tensor, sample.scalar_type(), sample, name);
  }

 private:
  static void check_latent_dtype(const Tensor& tensor) {
    const DType dtype = dtype_of(tensor);
    STD_TORCH_CHECK(dtype == DType::kFloat || dtype == DType::kDouble, "vampo_core: unsupported dtype of sample");
  }

  void check_output(const Tensor& tensor, ScalarType dtype, const char* name) const {
    check_like(tensor, dtype, sample, name);
    const bool both_double = dtype_of(tensor) == DType::kDouble && dtype_of(sample) == DType::kDouble;
    const bool neither_double = dtype_of(tensor) != DType::kDouble && dtype_of(sample) != DType::kDouble;
    STD_TORCH_CHECK(both_double || neither_double, "vampo_core: float64 is for all tensors or none, see ", name);
  }
};

Tensor new_log_prob(const Tensor& like, const Shape& shape) {
  return torch::stable::new_empty(like, {shape.clips, shape.generations, shape.frames});
}

// `rewards` [B, G] or [B, G, F], seen as frames of one element.
Shape reward_shape(const Tensor& rewards) {
  STD_TORCH_CHECK(rewards.dim() == 2 || rewards.dim() == 3, "vampo_core: rewards must be [B, G] or [B, G, F]");
  STD_TORCH_CHECK(rewards.size(1) >= 2, "vampo_core: rewards must hold groups of at least 2");
  return {rewards.size(0), rewards.size(1), rewards.dim() == 3 ? rewards.size(2) : 1, 1};
}

Shape pred_shape(const Tensor& pred, const Tensor& target) {
  STD_TORCH_CHECK(pred.dim() == 6, "vampo_core: pred must be [B, G, F, C, H, W]");
  const Shape shape{pred.size(0), pred.size(1), pred.size(2), pred.size(3) * pred.size(4) * pred.size(5)};
  STD_TORCH_CHECK(shape.frame_size > 0, "vampo_core: pred must have elements in each frame");
  check_shape(target, {shape.clips, shape.frames}, shape.clips * shape.frames * shape.frame_size, "target");
  check_like(target, pred.scalar_type(), pred, "target");
  return shape;
}

Noise make_noise(const OptionalTensor& noise, int64_t seed, int64_t first_clip, const Shape& shape) {
  constexpr int64_t kWord = int64_t{1} << 32;
  STD_TORCH_CHECK(
      first_clip >= 0 && first_clip + shape.clips <= kWord && shape.generations <= kWord && shape.frames <= kWord &&
          shape.frame_size / 4 <= kWord,
      "vampo_core: sizes exceed the noise counter");
  return {noise ? noise->const_data_ptr() : nullptr, static_cast<uint64_t>(seed), static_cast<uint32_t>(first_clip)};
}

// Where kernels run. Each backend has the same static functions, so one wrapper serves both.
struct Cpu {
  struct Session {
    explicit Session(const Tensor&, int64_t = 0) {}
  };
  static void step(Session&, const Step& step, void* out) { cpu::hybrid_euler_step(step, out); }
  static void draw(Session&, const Step& step, const Noise& noise, void* out, void* log_prob) {
    cpu::hybrid_euler_step_stochastic(step, noise, out, log_prob);
  }
  static void log_prob(Session&, const Step& step, const void* actions, bool mean, void* out) {
    cpu::gaussian_log_prob(step, actions, mean, out);
  }
  static void log_prob_backward(
      Session&, const Step& step, const void* grad, const void* actions, bool mean, void* cond, void* uncond) {
    cpu::gaussian_log_prob_backward(step, grad, actions, mean, cond, uncond);
  }
  template <typename... Args>
  static void advantages(Session&, Args... args) {
    cpu::group_advantages(args...);
  }
  template <typename... Args>
  static void reward(Session&, Args... args) {
    cpu::latent_reward(args...);
  }
  static int64_t scratch(const Shape&, int) { return 0; }
};

#ifdef VAMPO_WITH_CUDA
struct Cuda {
  // The tensor's device made current, torch's stream on it, and scratch memory from torch's allocator.
  struct Session {
    cuda::DeviceGuard guard;
    void* stream;
    Tensor scratch;
    explicit Session(const Tensor& tensor, int64_t scratch_floats = 0)
        : guard(tensor.get_device_index()),
          stream(cuda::current_stream(tensor.get_device_index())),
          scratch(torch::stable::new_empty(tensor, {scratch_floats}, ScalarType::Float)) {}
    float* floats() { return static_cast<float*>(scratch.mutable_data_ptr()); }
  };
  static void step(Session& s, const Step& step, void* out) { cuda::hybrid_euler_step(step, out, s.stream); }
  static void draw(Session& s, const Step& step, const Noise& noise, void* out, void* log_prob) {
    cuda::hybrid_euler_step_stochastic(step, noise, out, log_prob, s.floats(), s.stream);
  }
  static void log_prob(Session& s, const Step& step, const void* actions, bool mean, void* out) {
    cuda::gaussian_log_prob(step, actions, mean, out, s.floats(), s.stream);
  }
  static void log_prob_backward(
      Session& s, const Step& step, const void* grad, const void* actions, bool mean, void* cond, void* uncond) {
    cuda::gaussian_log_prob_backward(step, grad, actions, mean, cond, uncond, s.stream);
  }
  template <typename... Args>
  static void advantages(Session& s, Args... args) {
    cuda::group_advantages(args..., s.stream);
  }
  template <typename... Args>
  static void reward(Session& s, Args... args) {
    cuda::latent_reward(args..., s.floats(), s.stream);
  }
  static int64_t scratch(const Shape& shape, int statistics) { return cuda::scratch_floats(shape, statistics); }
};
#endif

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
  Backend::step(session, in.step, prev_sample.mutable_data_ptr());
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
  Tensor log_prob = new_log_prob(sample, in.step.shape);
  if (log_prob.numel() == 0) return log_prob;
  typename Backend::Session session(sample, Backend::scratch(in.step.shape, 1));
  Backend::draw(
      session, in.step, make_noise(given, seed, first_clip, in.step.shape), prev_sample.mutable_data_ptr(),
      log_prob.mutable_data_ptr());
  return log_prob;
}

template <typename Backend>
Tensor gaussian_log_prob(
    const Tensor& prev_sample, const Tensor& sample, const Tensor& model_output, const OptionalTensor& uncond,
    const OptionalTensor& guidance, double guidance_scale, double a, double b, double sigma_up, bool mean) {
  STD_TORCH_CHECK(prev_sample.dim() == 6, "vampo_core: prev_sample must be [B, G, F, C, H, W]");
  const int64_t generations = prev_sample.size(1);
  const StepInputs in(sample, model_output, uncond, guidance, guidance_scale, a, b, sigma_up, generations);
  in.check_latents(prev_sample, generations, "prev_sample");
  const Tensor actions = as_contiguous(prev_sample);
  Tensor log_prob = new_log_prob(sample, in.step.shape);
  if (log_prob.numel() == 0) return log_prob;
  typename Backend::Session session(sample, Backend::scratch(in.step.shape, 1));
  Backend::log_prob(session, in.step, actions.const_data_ptr(), mean, log_prob.mutable_data_ptr());
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
  const int64_t sizes[] = {sample.size(0), sample.size(1), sample.size(2), sample.size(3), sample.size(4)};
  Tensor grad_model_output = torch::stable::new_empty(model_output, sizes);
  Tensor grad_uncond =
      uncond ? torch::stable::new_empty(model_output, sizes) : torch::stable::new_empty(model_output, {int64_t{0}});
  if (sample.numel() == 0) return {grad_model_output, grad_uncond};
  typename Backend::Session session(sample);
  Backend::log_prob_backward(
      session, in.step, grad.const_data_ptr(), actions.const_data_ptr(), mean, grad_model_output.mutable_data_ptr(),
      uncond ? grad_uncond.mutable_data_ptr() : nullptr);
  return {grad_model_output, grad_uncond};
}

template <typename Backend>
Tensor group_advantages(const Tensor& rewards, double eps, const std::optional<double>& clip, bool normalize_std) {
  const Shape shape = reward_shape(rewards);
  const Tensor in = as_contiguous(rewards);
  Tensor advantages = torch::stable::empty_like(in);
  if (in.numel() == 0) return advantages;
  typename Backend::Session session(in);
  Backend::advantages(
      session, shape, dtype_of(in), in.const_data_ptr(), eps, clip.value_or(std::numeric_limits<double>::infinity()),
      normalize_std, advantages.mutable_data_ptr());
  return advantages;
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> latent_reward(
    const Tensor& pred, const Tensor& target, double l1_weight, double cosine_weight) {
  const Shape shape = pred_shape(pred, target);
  const Tensor in = as_contiguous(pred), expert = as_contiguous(target);
  Tensor reward = new_log_prob(in, shape), l1 = new_log_prob(in, shape), cosine = new_log_prob(in, shape);
  if (reward.numel() == 0) return {reward, l1, cosine};
  typename Backend::Session session(in, Backend::scratch(shape, 4));
  Backend::reward(
      session, shape, dtype_of(in), in.const_data_ptr(), expert.const_data_ptr(), l1_weight, cosine_weight,
      reward.mutable_data_ptr(), l1.mutable_data_ptr(), cosine.mutable_data_ptr());
  return {reward, l1, cosine};
}

template <typename Backend>
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("hybrid_euler_step", TORCH_BOX(&hybrid_euler_step<Backend>));
  m.impl("hybrid_euler_step_stochastic", TORCH_BOX(&hybrid_euler_step_stochastic<Backend>));
  m.impl("gaussian_log_prob", TORCH_BOX(&gaussian_log_prob<Backend>));
  m.impl("gaussian_log_prob_backward", TORCH_BOX(&gaussian_log_prob_backward<Backend>));
  m.impl("group_advantages", TORCH_BOX(&group_advantages<Backend>));
  m.impl("latent_reward", TORCH_BOX(&latent_reward<Backend>));
}

}  // namespace

#define VAMPO_STEP_ARGS                                                                          \
  "Tensor sample, Tensor model_output, Tensor? model_output_uncond, Tensor? guidance_per_frame," \
  " float guidance_scale, float a, float b"

STABLE_TORCH_LIBRARY(vampo_core, m) {
  m.def("hybrid_euler_step(" VAMPO_STEP_ARGS ", Tensor(a!) prev_sample) -> ()");
  m.def(
      "hybrid_euler_step_stochastic(" VAMPO_STEP_ARGS
      ", float sigma_up, Tensor? noise, SymInt seed, SymInt first_clip, Tensor(a!) prev_sample) -> Tensor");
  m.def("gaussian_log_prob(Tensor prev_sample, " VAMPO_STEP_ARGS ", float sigma_up, bool mean) -> Tensor");
  m.def(
      "gaussian_log_prob_backward(Tensor grad_log_prob, Tensor prev_sample, " VAMPO_STEP_ARGS
      ", float sigma_up, bool mean) -> (Tensor, Tensor)");
  m.def("group_advantages(Tensor rewards, float eps, float? clip, bool normalize_std) -> Tensor");
  m.def("latent_reward(Tensor pred, Tensor target, float l1_weight, float cosine_weight) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(vampo_core, CPU, m) {
  register_kernels<Cpu>(m);
}
#ifdef VAMPO_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(vampo_core, CUDA, m) {
  register_kernels<Cuda>(m);
}
#endif

}  // namespace vampo
