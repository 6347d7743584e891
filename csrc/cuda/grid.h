// Launch sizes of the CUDA kernels, and the memory that goes with them.
#pragma once

#include <limits>
#include <stdexcept>

#include "../kernels.h"

namespace vampo::cuda {

constexpr int kThreads = 256;      // of a block
constexpr int kMaxThreads = 1024;  // of a block that sums a whole frame

inline unsigned one_launch(int64_t blocks) {
  if (blocks > std::numeric_limits<int>::max()) throw std::runtime_error("vampo_core: tensor too large for one launch");
  return static_cast<unsigned>(blocks);
}

// Four elements to a thread.
inline int64_t tiles_per_frame(const Shape& shape, int threads = kThreads) {
  return (shape.frame_size + 4 * threads - 1) / (4 * threads);
}

// One for each tile of each frame of each clip.
inline unsigned num_blocks(const Shape& shape, int threads = kThreads) {
  return one_launch(shape.clips * shape.frames * tiles_per_frame(shape, threads));
}

// Threads of a block that sums over frames: a frame of up to 4 * kMaxThreads elements is one tile.
inline int sum_threads(const Shape& shape) {
  const bool whole = shape.frame_size > 4 * kThreads && shape.frame_size <= 4 * kMaxThreads;
  return whole ? kMaxThreads : kThreads;
}

// What kernels that sum over frames of several tiles leave behind: one float per tile and statistic.
inline int64_t scratch_floats(const Shape& shape, int statistics) {
  const int64_t tiles = tiles_per_frame(shape, sum_threads(shape));
  return tiles == 1 ? 0 : statistics * shape.clips * shape.generations * shape.frames * tiles;
}

}  // namespace vampo::cuda
