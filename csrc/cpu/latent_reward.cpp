#include "../latent_reward.h"

#include <vector>

#include "loops.h"

namespace vampo::cpu {
namespace {

struct Sums {
  double distance = 0, product = 0, pred_squares = 0;
};

template <typename T>
VAMPO_CLONES void add_sums(Sums& sums, const T* pred, const T* target, int64_t n) {
  T distance = 0, product = 0, pred_squares = 0;
#pragma omp simd reduction(+ : distance, product, pred_squares)
  for (int64_t i = 0; i < n; ++i) {
    distance += std::abs(pred[i] - target[i]);
    product += pred[i] * target[i];
    pred_squares += pred[i] * pred[i];
  }
  sums.distance += distance;
  sums.product += product;
  sums.pred_squares += pred_squares;
}

template <typename T>
VAMPO_CLONES T sum_squares(const T* x, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

template <typename T>
void rewards_of(
    const Shape& shape, const T* pred, const T* target, double l1_weight, double cosine_weight, T* reward, T* l1,
    T* cosine) {
  const auto [clips, generations, frames, size] = shape;
  parallel(
      clips * frames, generations * size,
      [&, frames = frames, size = size, generations = generations](int64_t row_begin, int64_t row_end) {
        std::vector<Sums> sums(generations);
        for (int64_t row = row_begin; row < row_end; ++row) {
          const int64_t first = row / frames * generations * frames + row % frames;
          std::fill(sums.begin(), sums.end(), Sums{});
          double target_squares = 0;
          for (int64_t begin = 0; begin < size; begin += kChunk) {
            const int64_t n = std::min(kChunk, size - begin);
            const T* expert = target + row * size + begin;  // stays in the first-level cache for all generations
            target_squares += sum_squares(expert, n);
            for (int64_t g = 0; g < generations; ++g) {
              add_sums(sums[g], pred + (first + g * frames) * size + begin, expert, n);
            }
          }
          for (int64_t g = 0; g < generations; ++g) {
            const double distance = sums[g].distance / static_cast<double>(size);
            const double similarity = cosine_similarity(sums[g].product, sums[g].pred_squares, target_squares);
            const int64_t at = first + g * frames;
            l1[at] = static_cast<T>(distance);
            cosine[at] = static_cast<T>(similarity);
            reward[at] = static_cast<T>(cosine_weight * similarity - l1_weight * distance);
          }
        }
      });
}

}  // namespace

void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine) {
  dispatch(dtype, dtype, [&](auto latent, auto) {
    using T = decltype(latent);
    rewards_of(
        shape, static_cast<const T*>(pred), static_cast<const T*>(target), l1_weight, cosine_weight,
        static_cast<T*>(reward), static_cast<T*>(l1), static_cast<T*>(cosine));
  });
}

}  // namespace vampo::cpu
