#include "loops.h"

namespace vampo::cpu {
namespace {

template <typename T>
void advantages_of(
    const Shape& shape, const T* rewards, double eps, double clip, bool normalize_std, T* advantages) {
  const auto [clips, generations, frames, size] = shape;
  parallel(clips * frames, generations, [&, frames = frames, generations = generations](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = row / frames * generations * frames + row % frames;
      const double base = rewards[first];  // equal rewards become exact zeros, and their mean stays one
      double mean = 0;
      for (int64_t g = 0; g < generations; ++g) mean += rewards[first + g * frames] - base;
      mean /= static_cast<double>(generations);
      double squares = 0;
      for (int64_t g = 0; g < generations; ++g) {
        const double centred = rewards[first + g * frames] - base - mean;
        squares += centred * centred;
      }
      const double std = std::sqrt(squares / static_cast<double>(generations - 1));
      const double scale = !normalize_std ? 1.0 : std == 0 ? 0.0 : 1.0 / (std + eps);
      for (int64_t g = 0; g < generations; ++g) {
        const double advantage = (rewards[first + g * frames] - base - mean) * scale;
        advantages[first + g * frames] =
            static_cast<T>(advantage < -clip ? -clip : advantage > clip ? clip : advantage);
      }
    }
  });
}

}  // namespace

void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std,
    void* advantages) {
  dispatch(dtype, dtype, [&](auto latent, auto) {
    using T = decltype(latent);
    advantages_of(
        shape, static_cast<const T*>(rewards), eps, clip, normalize_std, static_cast<T*>(advantages));
  });
}

}  // namespace vampo::cpu
