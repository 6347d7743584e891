// Building blocks of the CPU kernels: clones per instruction set, dtype dispatch, parallel frames, streaming stores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include "../formulas.h"
#include "../kernels.h"
#include "../stable.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

// One binary, vectorised for the machine it runs on. Sanitizers cannot instrument the resolver that picks a clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(VAMPO_SANITIZE)
#define VAMPO_VERSIONS
#define VAMPO_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VAMPO_CLONES
#endif

namespace vampo::cpu {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

// Elements of a frame that are worked on at a time: their mean stays in the first-level cache for all generations.
constexpr int64_t kChunk = 2048;

// Calls f(latent type, model output type) for a step.
template <typename F>
void dispatch(DType latent, DType output, F f) {
  if (latent == DType::kDouble) return f(double{}, double{});
  if (output == DType::kFloat) return f(float{}, float{});
  if (output == DType::kBFloat16) return f(float{}, BFloat16{});
  return f(float{}, Half{});
}

// Calls f(begin, end) on ranges of [0, count) in parallel. A unit is never split over threads, so results do not
// depend on their number.
template <typename F>
void parallel(int64_t count, int64_t work_per_unit, const F& f) {
  constexpr int64_t kMinWork = 32768;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kMinWork / std::max<int64_t>(1, work_per_unit)), f);
}

// Writes too large for the cache to keep until they are read bypass it, which saves reading the lines they overwrite;
// smaller ones are faster through it, and the next operator finds them there.
constexpr int64_t kStreamingBytes = 64 << 20;

template <typename T>
inline void stream_copy(T* to, const T* from, int64_t n) {
#if defined(__x86_64__)
  constexpr int64_t kLane = 16 / sizeof(T);
  const int64_t head = std::min<int64_t>(n, (-reinterpret_cast<intptr_t>(to) & 15) / sizeof(T));
  std::memcpy(to, from, head * sizeof(T));
  int64_t i = head;
  for (; i + kLane <= n; i += kLane) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
  std::memcpy(to + i, from + i, (n - i) * sizeof(T));
#else
  std::memcpy(to, from, n * sizeof(T));
#endif
}

inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace vampo::cpu
