#include "../gaussian_log_prob.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

template <typename M, bool kAligned, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    forward_kernel(StepView<M> view, Grid grid, const float* prev_sample, LogProb log_prob, float* scratch) {
  const Shape& shape = view.shape;
  const Share share = share_of<kCount / 4>(shape, grid);
  float mean[kCount];
  sum_generations<1, kCount, kLoadsTogether<kAligned, kCount>>(
      shape, grid, share, log_prob, scratch,
      [&](int64_t generation, float (&action)[kCount]) {
        load<kAligned>(action, prev_sample + action_row(shape, share, generation) * shape.frame_size, share);
      },
      [&] { view.template mean<kAligned>(mean, share); },
      [&](int64_t, const float (&action)[kCount], float (&squares)[1]) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float distance = action[i] - mean[i];
          if (share.has(i)) squares[0] += distance * distance;
        }
      });
}

template <typename M, bool kAligned>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    StepView<M> view, Grid grid, const float* grad_log_prob, const float* prev_sample, float scale,
    M* grad_model_output, M* grad_uncond) {
  constexpr int kTogether = kLoadsTogether<kAligned, 4>;
  const Shape& shape = view.shape;
  const Share share = share_of(shape, grid);
  float mean[4], grad[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  view.template mean<kAligned>(mean, share);
  for (int64_t first = 0; first < shape.generations; first += kTogether) {
    float action[kTogether][4], weight[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (first + k >= shape.generations) break;
      const int64_t row = action_row(shape, share, first + k);
      load<kAligned>(action[k], prev_sample + row * shape.frame_size, share);
      weight[k] = grad_log_prob[row];
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (first + k >= shape.generations) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) grad[i] += weight[k] * (action[k][i] - mean[i]);
    }
  }
  const int64_t frame = share.row * shape.frame_size;
  const float guidance = grad_uncond ? view.guidance(share) : 1.0f;
  float cond[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) cond[i] = guidance * scale * grad[i];
  store<kAligned>(grad_model_output + frame, cond, share);
  if (!grad_uncond) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) grad[i] *= (1.0f - guidance) * scale;
  store<kAligned>(grad_uncond + frame, grad, share);
}

}  // namespace

void gaussian_log_prob(
    const Step& step, const void* prev_sample, bool mean, void* log_prob, float* scratch, void* stream) {
  const Shape& shape = step.shape;
  const float* actions = static_cast<const float*>(prev_sample);
  const double elements = mean ? 1.0 : static_cast<double>(shape.frame_size);
  const LogProb results{
      -0.5 * elements / (step.sigma_up * step.sigma_up * static_cast<double>(shape.frame_size)),
      log_normalizer(step.sigma_up) * elements, static_cast<float*>(log_prob)};
  dispatch_output(step, [&](auto output) {
    using M = decltype(output);
    const StepView<M> view(step);
    const bool wide = view.is_aligned() && aligned(actions, shape);
    sum_over_frames<1>(shape, results, scratch, stream, [&](const Grid& grid, auto count) {
      constexpr int kCount = decltype(count)::value;
      const auto kernel = wide ? forward_kernel<M, true, kCount> : forward_kernel<M, false, kCount>;
      launch(kernel, grid, stream, view, grid, actions, results, scratch);
    });
  });
}

void gaussian_log_prob_backward(
    const Step& step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond, void* stream) {
  const Shape& shape = step.shape;
  const Grid grid = spread_grid(shape, num_processors());
  const float* actions = static_cast<const float*>(prev_sample);
  const float scale = static_cast<float>(
      step.b / (step.sigma_up * step.sigma_up) / (mean ? static_cast<double>(shape.frame_size) : 1.0));
  dispatch_output(step, [&](auto output) {
    using M = decltype(output);
    const StepView<M> view(step);
    M* cond = static_cast<M*>(grad_model_output);
    M* uncond = static_cast<M*>(grad_uncond);
    const bool wide = view.is_aligned() && aligned(actions, shape) && aligned(cond, shape) && aligned(uncond, shape);
    const auto kernel = wide ? backward_kernel<M, true> : backward_kernel<M, false>;
    launch(kernel, grid, stream, view, grid, static_cast<const float*>(grad_log_prob), actions, scale, cond, uncond);
  });
}

}  // namespace vampo::cuda
