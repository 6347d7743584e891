#include "../hybrid_euler_step.h"

#include <vector>

#include "mean.h"
#include "noise.h"

namespace vampo::cpu {
namespace {

// prev_sample = mean + sigma z; returns the sum of z^2.
template <typename T>
VAMPO_CLONES T draw(T* prev_sample, const T* mean, const T* z, T sigma, int64_t n) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) {
    prev_sample[i] = mean[i] + sigma * z[i];
    squares += z[i] * z[i];
  }
  return squares;
}

template <typename T, typename M>
void deterministic(const Step& step, T* prev_sample) {
  const StepView<T, M> view(step);
  const int64_t size = view.frame_size, rows = step.shape.clips * step.shape.frames;
  const bool streaming = rows * size * static_cast<int64_t>(sizeof(T)) >= kStreamingBytes;
  parallel(rows, size, [&](int64_t row_begin, int64_t row_end) {
    alignas(64) T buffer[kChunk];
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t begin = 0; begin < size; begin += kChunk) {
        const int64_t n = std::min(kChunk, size - begin);
        T* out = prev_sample + row * size + begin;
        view.mean(streaming ? buffer : out, row, begin, n);
        if (streaming) stream_copy(out, buffer, n);
      }
    }
    stream_fence();
  });
}

template <typename T, typename M>
void stochastic(const Step& step, const Noise& noise, T* prev_sample, T* log_prob) {
  const StepView<T, M> view(step);
  const auto [clips, generations, frames, size] = step.shape;
  const T sigma = static_cast<T>(step.sigma_up);
  const double normalizer = log_normalizer(step.sigma_up);
  const T* given = static_cast<const T*>(noise.given);
  const bool streaming = clips * generations * frames * size * static_cast<int64_t>(sizeof(T)) >= kStreamingBytes;
  parallel(
      clips * frames, generations * size,
      [&, frames = frames, size = size, generations = generations](int64_t row_begin, int64_t row_end) {
        alignas(64) T mean[kChunk], z[kChunk], buffer[kChunk];
        std::vector<double> squares(generations);
        for (int64_t row = row_begin; row < row_end; ++row) {
          const int64_t clip = row / frames, frame = row % frames;
          std::fill(squares.begin(), squares.end(), 0.0);
          for (int64_t begin = 0; begin < size; begin += kChunk) {
            const int64_t n = std::min(kChunk, size - begin);
            view.mean(mean, row, begin, n);
            for (int64_t g = 0; g < generations; ++g) {
              const int64_t at = ((clip * generations + g) * frames + frame) * size + begin;
              if (!given) {
                fill_normal(
                    z, noise.seed, static_cast<uint32_t>(begin / 4), static_cast<uint32_t>(frame),
                    static_cast<uint32_t>(g), noise.first_clip + static_cast<uint32_t>(clip), n);
              }
              T* out = prev_sample + at;
              squares[g] += draw(streaming ? buffer : out, mean, given ? given + at : z, sigma, n);
              if (streaming) stream_copy(out, buffer, n);
            }
          }
          for (int64_t g = 0; g < generations; ++g) {
            log_prob[(clip * generations + g) * frames + frame] =
                static_cast<T>(-0.5 * squares[g] / static_cast<double>(size) + normalizer);
          }
        }
        stream_fence();
      });
}

}  // namespace

void hybrid_euler_step(const Step& step, void* prev_sample) {
  dispatch(step.latent_dtype, step.output_dtype, [&](auto latent, auto output) {
    using T = decltype(latent);
    deterministic<T, decltype(output)>(step, static_cast<T*>(prev_sample));
  });
}

void hybrid_euler_step_stochastic(const Step& step, const Noise& noise, void* prev_sample, void* log_prob) {
  dispatch(step.latent_dtype, step.output_dtype, [&](auto latent, auto output) {
    using T = decltype(latent);
    stochastic<T, decltype(output)>(step, noise, static_cast<T*>(prev_sample), static_cast<T*>(log_prob));
  });
}

}  // namespace vampo::cpu
