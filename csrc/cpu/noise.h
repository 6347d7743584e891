// The noise of vampo_core.ops.philox_normal on the CPU, for every operator that draws; defined in philox_normal.cpp.
#pragma once

#include <cstdint>

namespace vampo::cpu {

// Noise is made for this many elements at a time.
constexpr int64_t kNoiseElements = 256;

// Elements [4 * first_block, 4 * first_block + n) of a frame; `z` must have room for the whole of the last four.
template <typename T>
void fill_normal(
    T* z, uint64_t seed, uint32_t first_block, uint32_t frame, uint32_t generation, uint32_t clip, int64_t n);

}  // namespace vampo::cpu
