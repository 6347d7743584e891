#include "../hybrid_euler_step.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

template <typename M, bool kAligned>
__global__ void __launch_bounds__(kThreads) step_kernel(StepView<M> view, unsigned tiles, float* prev_sample) {
  const Share share = share_of(view.shape, tiles);
  float mean[4];
  view.template mean<kAligned>(mean, share);
  store<kAligned>(prev_sample + share.row * view.shape.frame_size + share.begin, mean, share.valid);
}

template <typename M, bool kAligned, bool kPhilox, int kBlock>
__global__ void __launch_bounds__(kBlock) draw_kernel(
    StepView<M> view, unsigned tiles, const float* noise, uint64_t seed, uint32_t first_clip, float sigma,
    float* prev_sample, LogProb log_prob, float* scratch) {
  __shared__ float warps[1][kBlock / 32][kGroup];
  BlockSums<1, kBlock> squares{warps};
  const Share share = share_of<kBlock>(view.shape, tiles);
  const Shape& shape = view.shape;
  float mean[4];
  view.template mean<kAligned>(mean, share);
  for (int64_t first = 0; first < shape.generations; first += kGroup) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kGroup), shape.generations - first));
    for (int start = 0; start < count; start += kUnroll) {
      float z[kUnroll][4];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (start + k >= count) break;
        const int64_t generation = first + start + k;
        if (kPhilox) {
          philox_normal(
              seed, static_cast<uint32_t>(share.begin / 4), static_cast<uint32_t>(share.frame),
              static_cast<uint32_t>(generation), first_clip + static_cast<uint32_t>(share.clip), z[k][0], z[k][1],
              z[k][2], z[k][3]);
        } else {
          load<kAligned>(
              z[k], noise + action_row(shape, share, generation) * shape.frame_size + share.begin, share.valid);
        }
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (start + k >= count) break;
        float drawn[4], sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          drawn[i] = mean[i] + sigma * z[k][i];
          if (i < share.valid) sum += z[k][i] * z[k][i];
        }
        const int64_t row = action_row(shape, share, first + start + k);
        store<kAligned>(prev_sample + row * shape.frame_size + share.begin, drawn, share.valid);
        squares.add(0, start + k, sum);
      }
    }
    squares.flush(log_prob, scratch, shape, share, tiles, first, count);
  }
}

template <typename M, bool kAligned>
void draw(
    const StepView<M>& view, const Step& step, const Noise& noise, float* prev_sample, void* log_prob, float* scratch,
    cudaStream_t stream) {
  const Shape& shape = step.shape;
  const LogProb results{
      -0.5 / static_cast<double>(shape.frame_size), log_normalizer(step.sigma_up), static_cast<float*>(log_prob)};
  sum_over_frames<1>(shape, results, scratch, stream, [&](unsigned blocks, unsigned tiles, auto block) {
    constexpr int kBlock = decltype(block)::value;
    const auto kernel = noise.given ? draw_kernel<M, kAligned, false, kBlock> : draw_kernel<M, kAligned, true, kBlock>;
    kernel<<<blocks, kBlock, 0, stream>>>(
        view, tiles, static_cast<const float*>(noise.given), noise.seed, noise.first_clip,
        static_cast<float>(step.sigma_up), prev_sample, results, scratch);
  });
}

}  // namespace

void hybrid_euler_step(const Step& step, void* prev_sample, void* stream) {
  dispatch_output(step, [&](auto output) {
    using M = decltype(output);
    const StepView<M> view(step);
    float* out = static_cast<float*>(prev_sample);
    const unsigned tiles = static_cast<unsigned>(tiles_per_frame(step.shape));
    const bool wide = view.is_aligned() && aligned(out, step.shape);
    const auto kernel = wide ? step_kernel<M, true> : step_kernel<M, false>;
    kernel<<<num_blocks(step.shape), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(view, tiles, out);
    check_launch();
  });
}

void hybrid_euler_step_stochastic(
    const Step& step, const Noise& noise, void* prev_sample, void* log_prob, float* scratch, void* stream) {
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  const Shape& shape = step.shape;
  dispatch_output(step, [&](auto output) {
    using M = decltype(output);
    const StepView<M> view(step);
    float* out = static_cast<float*>(prev_sample);
    const bool wide =
        view.is_aligned() && aligned(out, shape) && aligned(static_cast<const float*>(noise.given), shape);
    if (wide) {
      draw<M, true>(view, step, noise, out, log_prob, scratch, cuda_stream);
    } else {
      draw<M, false>(view, step, noise, out, log_prob, scratch, cuda_stream);
    }
  });
}

}  // namespace vampo::cuda
