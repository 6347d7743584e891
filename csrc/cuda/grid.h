// How the CUDA kernels divide their work, and the memory that goes with it.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "../kernels.h"

namespace vampo::cuda {

constexpr int kThreads = 256;           // of a block
constexpr int kMinThreads = 64;         // of a block that sums nothing and has few neighbors
constexpr int kBlocksPerProcessor = 3;  // that the registers of kernels which sum leave room for
constexpr int kMaxGenerations = 32;     // whose sums a block has shared memory for

inline unsigned one_launch(int64_t blocks) {
  if (blocks > std::numeric_limits<int>::max()) throw std::runtime_error("vampo_core: tensor too large for one launch");
  return static_cast<unsigned>(blocks);
}

// Blocks of a launch: for every frame of every clip its tiles, for every tile its slices of the generations. The slices
// of a tile are neighbors, so that what they share is read from memory once.
struct Grid {
  unsigned blocks;
  int threads;             // of a block
  unsigned tiles, slices;  // of a frame, of a tile
  int64_t generations;     // of a slice; the last slice may have fewer
};

// `quads` times four elements to a thread, all generations to a block.
inline Grid grid_of(const Shape& shape, int threads = kThreads, int quads = 1) {
  const int64_t tile_size = int64_t{4} * quads * threads;
  const int64_t tiles = (shape.frame_size + tile_size - 1) / tile_size;
  const unsigned blocks = one_launch(shape.clips * shape.frames * tiles);
  return {blocks, threads, static_cast<unsigned>(tiles), 1, shape.generations};
}

// For kernels that sum nothing: smaller blocks where whole ones would leave processors idle.
inline Grid spread_grid(const Shape& shape, int num_processors) {
  Grid grid = grid_of(shape);
  while (grid.threads > kMinThreads && grid.blocks < static_cast<unsigned>(num_processors)) {
    grid = grid_of(shape, grid.threads / 2);
  }
  return grid;
}

// Four-element parts of a thread that sums: a frame of up to 16 * kThreads elements is one tile. What a sum is made of,
// and so its rounding, follows from the size of a frame only.
inline int sum_quads(const Shape& shape) {
  return shape.frame_size <= 4 * kThreads ? 1 : 4;
}

// For kernels that sum over frames: slices of the generations as long as all blocks find room at once.
inline Grid sum_grid(const Shape& shape, int num_processors) {
  Grid grid = grid_of(shape, kThreads, sum_quads(shape));
  const int64_t room = std::max<int64_t>(1, int64_t{kBlocksPerProcessor} * num_processors / grid.blocks);
  grid.generations = std::min<int64_t>(kMaxGenerations, (shape.generations + room - 1) / room);
  grid.slices = one_launch((shape.generations + grid.generations - 1) / grid.generations);
  grid.blocks = one_launch(int64_t{grid.blocks} * grid.slices);
  return grid;
}

// What kernels that sum over frames of several tiles leave behind: one float per tile and statistic.
inline int64_t scratch_floats(const Shape& shape, int statistics) {
  const int64_t tiles = grid_of(shape, kThreads, sum_quads(shape)).tiles;
  return tiles == 1 ? 0 : statistics * shape.clips * shape.generations * shape.frames * tiles;
}

}  // namespace vampo::cuda
