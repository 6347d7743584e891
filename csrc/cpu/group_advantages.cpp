#include "../group_advantages.h"

#include "loops.h"

namespace vampo::cpu {
void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std,
    void* advantages) {
  const auto [clips, generations, frames, size] = shape;
  dispatch(dtype, dtype, [&, frames = frames, generations = generations, clips = clips](auto latent, auto) {
    using T = decltype(latent);
    const T* in = static_cast<const T*>(rewards);
    T* out = static_cast<T*>(advantages);
    parallel(clips * frames, generations, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t first = row / frames * generations * frames + row % frames;
        advantages_of_group(in + first, generations, frames, eps, clip, normalize_std, out + first);
      }
    });
  });
}

}  // namespace vampo::cpu
