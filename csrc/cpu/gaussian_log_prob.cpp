#include "../gaussian_log_prob.h"

#include <vector>

#include "mean.h"

namespace vampo::cpu {
namespace {

template <typename T>
VAMPO_CLONES T squared_distance(const T* action, const T* mean, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += (action[i] - mean[i]) * (action[i] - mean[i]);
  return sum;
}

// grad += weight (action - mean)
template <typename T>
VAMPO_CLONES void accumulate(T* grad, const T* action, const T* mean, T weight, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) grad[i] += weight * (action[i] - mean[i]);
}

template <typename T, typename M>
VAMPO_CLONES void scale_into(M* out, const T* grad, T scale, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<M>(scale * grad[i]);
}

template <typename T, typename M>
void forward(const Step& step, const T* prev_sample, bool mean_reduction, T* log_prob) {
  const StepView<T, M> view(step);
  const auto [clips, generations, frames, size] = step.shape;
  const double elements = mean_reduction ? 1.0 : static_cast<double>(size);
  const double scale = -0.5 * elements / (step.sigma_up * step.sigma_up * static_cast<double>(size));
  const double normalizer = log_normalizer(step.sigma_up) * elements;
  parallel(
      clips * frames, generations * size,
      [&, frames = frames, size = size, generations = generations](int64_t row_begin, int64_t row_end) {
        alignas(64) T mean[kChunk];
        std::vector<double> squares(generations);
        for (int64_t row = row_begin; row < row_end; ++row) {
          const int64_t first = row / frames * generations * frames + row % frames;
          std::fill(squares.begin(), squares.end(), 0.0);
          for (int64_t begin = 0; begin < size; begin += kChunk) {
            const int64_t n = std::min(kChunk, size - begin);
            view.mean(mean, row, begin, n);
            for (int64_t g = 0; g < generations; ++g) {
              squares[g] += squared_distance(prev_sample + (first + g * frames) * size + begin, mean, n);
            }
          }
          for (int64_t g = 0; g < generations; ++g) {
            log_prob[first + g * frames] = static_cast<T>(scale * squares[g] + normalizer);
          }
        }
      });
}

template <typename T, typename M>
void backward(
    const Step& step, const T* grad_log_prob, const T* prev_sample, bool mean_reduction, M* grad_model_output,
    M* grad_uncond) {
  const StepView<T, M> view(step);
  const auto [clips, generations, frames, size] = step.shape;
  const T scale =
      static_cast<T>(step.b / (step.sigma_up * step.sigma_up) / (mean_reduction ? static_cast<double>(size) : 1.0));
  parallel(
      clips * frames, generations * size,
      [&, frames = frames, size = size, generations = generations](int64_t row_begin, int64_t row_end) {
        alignas(64) T mean[kChunk], grad[kChunk];
        for (int64_t row = row_begin; row < row_end; ++row) {
          const int64_t first = row / frames * generations * frames + row % frames;
          for (int64_t begin = 0; begin < size; begin += kChunk) {
            const int64_t n = std::min(kChunk, size - begin);
            view.mean(mean, row, begin, n);
            std::fill(grad, grad + n, T{0});
            for (int64_t g = 0; g < generations; ++g) {
              const int64_t at = first + g * frames;
              accumulate(grad, prev_sample + at * size + begin, mean, grad_log_prob[at], n);
            }
            const int64_t at = row * size + begin;
            if (grad_uncond) {
              const T guidance = view.guidance(row);
              scale_into(grad_model_output + at, grad, guidance * scale, n);
              scale_into(grad_uncond + at, grad, (T{1} - guidance) * scale, n);
            } else {
              scale_into(grad_model_output + at, grad, scale, n);
            }
          }
        }
      });
}

}  // namespace

void gaussian_log_prob(const Step& step, const void* prev_sample, bool mean, void* log_prob) {
  dispatch(step.latent_dtype, step.output_dtype, [&](auto latent, auto output) {
    using T = decltype(latent);
    forward<T, decltype(output)>(step, static_cast<const T*>(prev_sample), mean, static_cast<T*>(log_prob));
  });
}

void gaussian_log_prob_backward(
    const Step& step, const void* grad_log_prob, const void* prev_sample, bool mean, void* grad_model_output,
    void* grad_uncond) {
  dispatch(step.latent_dtype, step.output_dtype, [&](auto latent, auto output) {
    using T = decltype(latent);
    using M = decltype(output);
    backward<T, M>(
        step, static_cast<const T*>(grad_log_prob), static_cast<const T*>(prev_sample), mean,
        static_cast<M*>(grad_model_output), static_cast<M*>(grad_uncond));
  });
}

}  // namespace vampo::cpu
