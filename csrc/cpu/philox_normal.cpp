#include "../philox_normal.h"

#include "loops.h"
#include "noise.h"

#ifdef VAMPO_VERSIONS
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own header
#endif

namespace vampo::cpu {
namespace {

// Blocks whose noise is made together, and their words.
constexpr int kBlocks = kNoiseElements / 4;
using Words = uint32_t[4][kBlocks];

#ifdef VAMPO_VERSIONS
// One version of `philox_words` for an instruction set. A lane holds one word in its lower half, the only one that
// `multiply` reads, so that rubbish may stay in the upper one; GCC takes several instructions for the same product in
// C++. Four vectors at a time hide how long each of the ten rounds waits for its product.
#define VAMPO_PHILOX_WORDS(isa, lanes, Register, multiply)                                                     \
  __attribute__((target(isa))) void philox_words(                                                              \
      Words& words, int64_t count, uint64_t seed, uint32_t block, uint32_t frame, uint32_t generation,         \
      uint32_t clip) {                                                                                         \
    typedef uint64_t Wide __attribute__((vector_size(8 * lanes)));                                             \
    typedef uint32_t Narrow __attribute__((vector_size(4 * lanes), aligned(4), may_alias));                    \
    constexpr int kVectors = 4;                                                                                \
    const Wide factor0 = Wide{} + kPhiloxFactor0, factor1 = Wide{} + kPhiloxFactor1;                           \
    Wide numbers;                                                                                              \
    for (int i = 0; i < lanes; ++i) numbers[i] = i;                                                            \
    for (int64_t begin = 0; begin < count; begin += kVectors * lanes) {                                        \
      Wide x[kVectors][4];                                                                                     \
      for (int v = 0; v < kVectors; ++v) {                                                                     \
        x[v][0] = numbers + (block + begin + v * lanes);                                                       \
        x[v][1] = Wide{} + frame;                                                                              \
        x[v][2] = Wide{} + generation;                                                                         \
        x[v][3] = Wide{} + clip;                                                                               \
      }                                                                                                        \
      uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);                   \
      for (int round = 0; round < 10; ++round) {                                                               \
        for (int v = 0; v < kVectors; ++v) {                                                                   \
          const Wide product0 = reinterpret_cast<Wide>(multiply((Register)x[v][0], (Register)factor0));        \
          const Wide product1 = reinterpret_cast<Wide>(multiply((Register)x[v][2], (Register)factor1));        \
          x[v][0] = (product1 >> 32) ^ x[v][1] ^ key0;                                                         \
          x[v][1] = product1;                                                                                  \
          x[v][2] = (product0 >> 32) ^ x[v][3] ^ key1;                                                         \
          x[v][3] = product0;                                                                                  \
        }                                                                                                      \
        key0 += kPhiloxKey0;                                                                                   \
        key1 += kPhiloxKey1;                                                                                   \
      }                                                                                                        \
      for (int v = 0; v < kVectors; ++v) {                                                                     \
        for (int i = 0; i < 4; ++i) {                                                                          \
          *reinterpret_cast<Narrow*>(words[i] + begin + v * lanes) = __builtin_convertvector(x[v][i], Narrow); \
        }                                                                                                      \
      }                                                                                                        \
    }                                                                                                          \
  }
VAMPO_PHILOX_WORDS("arch=x86-64-v4", 8, __m512i, _mm512_mul_epu32)
VAMPO_PHILOX_WORDS("arch=x86-64-v3", 4, __m256i, _mm256_mul_epu32)
__attribute__((target("default")))
#endif
void philox_words(
    Words& words, int64_t count, uint64_t seed, uint32_t block, uint32_t frame, uint32_t generation, uint32_t clip) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t x0 = block + static_cast<uint32_t>(i), x1 = frame, x2 = generation, x3 = clip;
    philox(seed, x0, x1, x2, x3);
    words[0][i] = x0, words[1][i] = x1, words[2][i] = x2, words[3][i] = x3;
  }
}

template <typename T>
VAMPO_CLONES void normals(T* z, const Words& words, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    T* out = z + 4 * i;
    box_muller(words[0][i], words[1][i], out[0], out[1]);
    box_muller(words[2][i], words[3][i], out[2], out[3]);
  }
}

// In double precision, whatever the result's: the noise is then the reference's, rounded.
template <typename T>
void fill(const Shape& shape, uint64_t seed, uint32_t first_clip, T* out) {
  const auto [clips, generations, frames, size] = shape;
  parallel(
      clips * generations * frames, size,
      [&, generations = generations, frames = frames, size = size](int64_t row_begin, int64_t row_end) {
        alignas(64) double z[kNoiseElements];
        for (int64_t row = row_begin; row < row_end; ++row) {
          const uint32_t frame = static_cast<uint32_t>(row % frames);
          const uint32_t generation = static_cast<uint32_t>(row / frames % generations);
          const uint32_t clip = first_clip + static_cast<uint32_t>(row / frames / generations);
          for (int64_t begin = 0; begin < size; begin += kNoiseElements) {
            const int64_t n = std::min(kNoiseElements, size - begin);
            fill_normal(z, seed, static_cast<uint32_t>(begin / 4), frame, generation, clip, n);
            std::copy(z, z + n, out + row * size + begin);
          }
        }
      });
}

}  // namespace

template <typename T>
void fill_normal(
    T* z, uint64_t seed, uint32_t first_block, uint32_t frame, uint32_t generation, uint32_t clip, int64_t n) {
  alignas(64) Words words;
  for (int64_t begin = 0; begin < n; begin += kNoiseElements) {
    const int64_t count = (std::min(kNoiseElements, n - begin) + 3) / 4;
    philox_words(words, count, seed, first_block + static_cast<uint32_t>(begin / 4), frame, generation, clip);
    normals(z + begin, words, count);
  }
}

template void fill_normal(float*, uint64_t, uint32_t, uint32_t, uint32_t, uint32_t, int64_t);
template void fill_normal(double*, uint64_t, uint32_t, uint32_t, uint32_t, uint32_t, int64_t);

void philox_normal(const Shape& shape, DType dtype, uint64_t seed, uint32_t first_clip, void* out) {
  dispatch(dtype, dtype, [&](auto type, auto) {
    using T = decltype(type);
    fill(shape, seed, first_clip, static_cast<T*>(out));
  });
}

}  // namespace vampo::cpu
