#include "../philox_normal.h"

#include "loops.h"

namespace vampo::cpu {
namespace {

// In double precision, whatever the result's: the noise is then the reference's, to the last bit.
template <typename T>
void fill(const Shape& shape, uint64_t seed, uint32_t first_clip, T* out) {
  const auto [clips, generations, frames, size] = shape;
  parallel(
      clips * generations * frames, size,
      [&, generations = generations, frames = frames, size = size](int64_t row_begin, int64_t row_end) {
        for (int64_t row = row_begin; row < row_end; ++row) {
          const uint32_t frame = static_cast<uint32_t>(row % frames);
          const uint32_t generation = static_cast<uint32_t>(row / frames % generations);
          const uint32_t clip = first_clip + static_cast<uint32_t>(row / frames / generations);
          for (int64_t begin = 0; begin < size; begin += 4) {
            double z[4];
            vampo::philox_normal(
                seed, static_cast<uint32_t>(begin / 4), frame, generation, clip, z[0], z[1], z[2], z[3]);
            const int64_t n = std::min<int64_t>(4, size - begin);
            for (int64_t i = 0; i < n; ++i) out[row * size + begin + i] = static_cast<T>(z[i]);
          }
        }
      });
}

}  // namespace

void philox_normal(const Shape& shape, DType dtype, uint64_t seed, uint32_t first_clip, void* out) {
  dispatch(dtype, dtype, [&](auto type, auto) {
    using T = decltype(type);
    fill(shape, seed, first_clip, static_cast<T*>(out));
  });
}

}  // namespace vampo::cpu
