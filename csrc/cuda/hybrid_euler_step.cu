#include "../hybrid_euler_step.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

template <typename M, bool kAligned>
__global__ void __launch_bounds__(kThreads) step_kernel(StepView<M> view, Grid grid, float* prev_sample) {
  const Share share = share_of(view.shape, grid);
  float mean[4];
  view.template mean<kAligned>(mean, share);
  store<kAligned>(prev_sample + share.row * view.shape.frame_size, mean, share);
}

template <typename M, bool kAligned, bool kPhilox, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) draw_kernel(
    StepView<M> view, Grid grid, const float* noise, uint64_t seed, uint32_t first_clip, float sigma,
    float* prev_sample, LogProb log_prob, float* scratch) {
  // Noise that is made waits for no memory.
  constexpr int kTogether = kPhilox ? 1 : kLoadsTogether<kAligned, kCount>;
  const Shape& shape = view.shape;
  const Share share = share_of<kCount / 4>(shape, grid);
  float mean[kCount];
  sum_generations<1, kCount, kTogether>(
      shape, grid, share, log_prob, scratch,
      [&](int64_t generation, float (&z)[kCount]) {
        if constexpr (kPhilox) {
#pragma unroll
          for (int i = 0; i < kCount; i += 4) {
            if (i % 8 == 0 && !share.has(i)) break;  // two at a time: their arithmetic overlaps
            const uint32_t block = static_cast<uint32_t>((share.begin + Share::place(i)) / 4);
            philox_normal(
                seed, block, share.frame, static_cast<uint32_t>(generation), first_clip + share.clip, z[i], z[i + 1],
                z[i + 2], z[i + 3]);
          }
        } else {
          load<kAligned>(z, noise + action_row(shape, share, generation) * shape.frame_size, share);
        }
      },
      [&] { view.template mean<kAligned>(mean, share); },
      [&](int64_t generation, float (&z)[kCount], float (&squares)[1]) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          if (!share.has(i)) continue;
          squares[0] += z[i] * z[i];
          z[i] = mean[i] + sigma * z[i];
        }
        store<kAligned>(prev_sample + action_row(shape, share, generation) * shape.frame_size, z, share);
      });
}

template <typename M, bool kAligned>
void draw(
    const StepView<M>& view, const Step& step, const Noise& noise, float* prev_sample, void* log_prob, float* scratch,
    void* stream) {
  const Shape& shape = step.shape;
  const LogProb results{
      -0.5 / static_cast<double>(shape.frame_size), log_normalizer(step.sigma_up), static_cast<float*>(log_prob)};
  sum_over_frames<1>(shape, results, scratch, stream, [&](const Grid& grid, auto count) {
    constexpr int kCount = decltype(count)::value;
    const auto kernel = noise.given ? draw_kernel<M, kAligned, false, kCount> : draw_kernel<M, kAligned, true, kCount>;
    launch(
        kernel, grid, stream, view, grid, static_cast<const float*>(noise.given), noise.seed, noise.first_clip,
        static_cast<float>(step.sigma_up), prev_sample, results, scratch);
  });
}

}  // namespace

void hybrid_euler_step(const Step& step, void* prev_sample, void* stream) {
  dispatch_output(step, [&](auto output) {
    using M = decltype(output);
    const StepView<M> view(step);
    float* out = static_cast<float*>(prev_sample);
    const Grid grid = spread_grid(step.shape, num_processors());
    const bool wide = view.is_aligned() && aligned(out, step.shape);
    const auto kernel = wide ? step_kernel<M, true> : step_kernel<M, false>;
    launch(kernel, grid, stream, view, grid, out);
  });
}

void hybrid_euler_step_stochastic(
    const Step& step, const Noise& noise, void* prev_sample, void* log_prob, float* scratch, void* stream) {
  const Shape& shape = step.shape;
  dispatch_output(step, [&](auto output) {
    using M = decltype(output);
    const StepView<M> view(step);
    float* out = static_cast<float*>(prev_sample);
    const bool wide =
        view.is_aligned() && aligned(out, shape) && aligned(static_cast<const float*>(noise.given), shape);
    if (wide) {
      draw<M, true>(view, step, noise, out, log_prob, scratch, stream);
    } else {
      draw<M, false>(view, step, noise, out, log_prob, scratch, stream);
    }
  });
}

}  // namespace vampo::cuda
