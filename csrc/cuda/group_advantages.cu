#include "tiles.h"

namespace vampo::cuda {
namespace {

// One thread per clip and frame: neighbouring threads read neighbouring frames.
__global__ void __launch_bounds__(kThreads) advantages_kernel(
    Shape shape, const float* rewards, double eps, double clip, bool normalize_std, float* advantages) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= shape.clips * shape.frames) return;
  const int64_t first = row / shape.frames * shape.generations * shape.frames + row % shape.frames;
  const double base = rewards[first];  // equal rewards become exact zeros, and their mean stays one
  double mean = 0.0;
  for (int64_t g = 0; g < shape.generations; ++g) mean += rewards[first + g * shape.frames] - base;
  mean /= static_cast<double>(shape.generations);
  double squares = 0.0;
  for (int64_t g = 0; g < shape.generations; ++g) {
    const double centred = rewards[first + g * shape.frames] - base - mean;
    squares += centred * centred;
  }
  const double std = sqrt(squares / static_cast<double>(shape.generations - 1));
  const double scale = !normalize_std ? 1.0 : std == 0.0 ? 0.0 : 1.0 / (std + eps);
  for (int64_t g = 0; g < shape.generations; ++g) {
    const double advantage = (rewards[first + g * shape.frames] - base - mean) * scale;
    advantages[first + g * shape.frames] =
        static_cast<float>(advantage < -clip ? -clip : advantage > clip ? clip : advantage);
  }
}

}  // namespace

void group_advantages(
    const Shape& shape, DType dtype, const void* rewards, double eps, double clip, bool normalize_std,
    void* advantages, void* stream) {
  if (dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels take float32 rewards");
  const int64_t blocks = (shape.clips * shape.frames + kThreads - 1) / kThreads;
  if (blocks > std::numeric_limits<int>::max()) throw std::runtime_error("vampo_core: tensor too large for one launch");
  advantages_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      shape, static_cast<const float*>(rewards), eps, clip, normalize_std, static_cast<float*>(advantages));
  check_launch();
}

}  // namespace vampo::cuda
