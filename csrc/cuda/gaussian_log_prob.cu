#include "../gaussian_log_prob.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

template <typename M, bool kAligned, int kBlock>
__global__ void __launch_bounds__(kBlock)
    forward_kernel(StepView<M> view, unsigned tiles, const float* prev_sample, LogProb log_prob, float* scratch) {
  __shared__ float warps[1][kBlock / 32][kGroup];
  BlockSums<1, kBlock> squares{warps};
  const Share share = share_of<kBlock>(view.shape, tiles);
  const Shape& shape = view.shape;
  float mean[4];
  view.template mean<kAligned>(mean, share);
  for (int64_t first = 0; first < shape.generations; first += kGroup) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kGroup), shape.generations - first));
    for (int start = 0; start < count; start += kUnroll) {
      float action[kUnroll][4];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (start + k >= count) break;
        const int64_t row = action_row(shape, share, first + start + k);
        load<kAligned>(action[k], prev_sample + row * shape.frame_size + share.begin, share.valid);
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (start + k >= count) break;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float distance = action[k][i] - mean[i];
          if (i < share.valid) sum += distance * distance;
        }
        squares.add(0, start + k, sum);
      }
    }
    squares.flush(log_prob, scratch, shape, share, tiles, first, count);
  }
}

template <typename M, bool kAligned>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    StepView<M> view, unsigned tiles, const float* grad_log_prob, const float* prev_sample, float scale,
    M* grad_model_output, M* grad_uncond) {
  const Share share = share_of(view.shape, tiles);
  const Shape& shape = view.shape;
  float mean[4], grad[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  view.template mean<kAligned>(mean, share);
  for (int64_t first = 0; first < shape.generations; first += kUnroll) {
    float action[kUnroll][4], weight[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (first + k >= shape.generations) break;
      const int64_t row = action_row(shape, share, first + k);
      load<kAligned>(action[k], prev_sample + row * shape.frame_size + share.begin, share.valid);
      weight[k] = grad_log_prob[row];
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (first + k >= shape.generations) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) grad[i] += weight[k] * (action[k][i] - mean[i]);
    }
  }
  const int64_t at = share.row * shape.frame_size + share.begin;
  const float guidance = grad_uncond ? view.guidance(share) : 1.0f;
  float cond[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) cond[i] = guidance * scale * grad[i];
  store<kAligned>(grad_model_output + at, cond, share.valid);
  if (!grad_uncond) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) grad[i] *= (1.0f - guidance) * scale;
  store<kAligned>(grad_uncond + at, grad, share.valid);
}

}  // namespace

void gaussian_log_prob(
    const Step& step, const void* prev_sample, bool mean, void* log_prob, float* scratch, void* stream) {
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
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
    sum_over_frames<1>(shape, results, scratch, cuda_stream, [&](unsigned blocks, unsigned tiles, auto block) {
      constexpr int kBlock = decltype(block)::value;
      const auto kernel = wide ? forward_kernel<M, true, kBlock> : forward_kernel<M, false, kBlock>;
      kernel<<<blocks, kBlock, 0, cuda_stream>>>(view, tiles, actions, results, scratch);
    });
  });
}

void gaussian_log_prob_backward(
    const Step& step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond, void* stream) {
  const Shape& shape = step.shape;
  const unsigned tiles = static_cast<unsigned>(tiles_per_frame(shape));
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
    kernel<<<num_blocks(shape), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        view, tiles, static_cast<const float*>(grad_log_prob), actions, scale, cond, uncond);
    check_launch();
  });
}

}  // namespace vampo::cuda
