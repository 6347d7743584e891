#include "tiles.h"

namespace vampo::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    finish_kernel(const float* scratch, unsigned tiles, int64_t rows, double scale, double offset, float* log_prob) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows) return;  // whole warps leave together
  const double sum = tile_sum(scratch + row * tiles, tiles);
  if (threadIdx.x % 32 == 0) log_prob[row] = static_cast<float>(scale * sum + offset);
}

}  // namespace

void finish_log_prob(
    const float* scratch, const Shape& shape, double scale, double offset, float* log_prob, cudaStream_t stream) {
  finish_kernel<<<blocks_of_rows(shape), kThreads, 0, stream>>>(
      scratch, static_cast<unsigned>(tiles_per_frame(shape)), shape.clips * shape.generations * shape.frames, scale,
      offset, log_prob);
  check_launch();
}

int64_t scratch_floats(const Shape& shape, int statistics) {
  return statistics * shape.clips * shape.generations * shape.frames * tiles_per_frame(shape);
}

}  // namespace vampo::cuda
