#include "../philox_normal.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

// In double precision, as the reference: it is drawn once per sampling run, and the same on every device.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    normal_kernel(Shape shape, unsigned tiles, uint64_t seed, uint32_t first_clip, float* out) {
  const unsigned row = blockIdx.x / tiles;  // (clip * generations + generation) * frames + frame
  const int64_t begin = static_cast<int64_t>(blockIdx.x - row * tiles) * (4 * kThreads) + threadIdx.x * 4;
  const int64_t left = shape.frame_size - begin;
  const int valid = left <= 0 ? 0 : left < 4 ? static_cast<int>(left) : 4;
  if (!valid) return;
  const unsigned frames = static_cast<unsigned>(shape.frames), generations = static_cast<unsigned>(shape.generations);
  double z[4];
  vampo::philox_normal(
      seed, static_cast<uint32_t>(begin / 4), row % frames, row / frames % generations,
      first_clip + row / frames / generations, z[0], z[1], z[2], z[3]);
  float rounded[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) rounded[i] = static_cast<float>(z[i]);
  store<kAligned>(out + row * shape.frame_size + begin, rounded, valid);
}

}  // namespace

void philox_normal(const Shape& shape, DType dtype, uint64_t seed, uint32_t first_clip, void* out, void* stream) {
  if (dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels write float32 noise");
  float* to = static_cast<float*>(out);
  const int64_t tiles = tiles_per_frame(shape);
  const unsigned blocks = one_launch(shape.clips * shape.generations * shape.frames * tiles);
  const auto kernel = aligned(to, shape) ? normal_kernel<true> : normal_kernel<false>;
  kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      shape, static_cast<unsigned>(tiles), seed, first_clip, to);
  check_launch();
}

}  // namespace vampo::cuda
