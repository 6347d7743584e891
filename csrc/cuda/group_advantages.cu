#include "../group_advantages.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

// One thread per clip and frame: neighboring threads read neighboring frames.
__global__ void __launch_bounds__(kThreads) advantages_kernel(
    Shape shape, unsigned rows, const float* rewards, double eps, double clip, bool normalize_std, float* advantages) {
  const unsigned row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= rows) return;
  const unsigned frames = static_cast<unsigned>(shape.frames);
  const int64_t first = row / frames * shape.generations * shape.frames + row % frames;
  advantages_of_group(rewards + first, shape.generations, shape.frames, eps, clip, normalize_std, advantages + first);
}

}  // namespace

void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std, void* advantages,
    void* stream) {
  if (dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels take float32 rewards");
  const unsigned rows = one_launch(shape.clips * shape.frames);
  const Grid grid{(rows + kThreads - 1) / kThreads, kThreads, 1, 1, shape.generations};
  launch(
      advantages_kernel, grid, stream, shape, rows, static_cast<const float*>(rewards), eps, clip, normalize_std,
      static_cast<float*>(advantages));
}

}  // namespace vampo::cuda
