#include "../philox_normal.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

constexpr int kQuads = 4;  // of a thread: what they have in common is computed only once

// `videos` are the generations of all clips, [clips * generations, 1, frames, frame_size]. In double precision, as the
// reference: it is drawn once per sampling run, and the same on every device.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    normal_kernel(Shape videos, Grid grid, unsigned generations, uint64_t seed, uint32_t first_clip, float* out) {
  const Share share = share_of<kQuads>(videos, grid);
  const uint32_t video = share.clip;
  float noise[4 * kQuads];
#pragma unroll
  for (int i = 0; i < 4 * kQuads; i += 4) {
    if (!share.has(i)) break;
    double z[4];
    vampo::philox_normal(
        seed, static_cast<uint32_t>((share.begin + Share::place(i)) / 4), share.frame, video % generations,
        first_clip + video / generations, z[0], z[1], z[2], z[3]);
#pragma unroll
    for (int j = 0; j < 4; ++j) noise[i + j] = static_cast<float>(z[j]);
  }
  store<kAligned>(out + share.row * videos.frame_size, noise, share);
}

}  // namespace

void philox_normal(const Shape& shape, DType dtype, uint64_t seed, uint32_t first_clip, void* out, void* stream) {
  if (dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels write float32 noise");
  float* to = static_cast<float*>(out);
  const Shape videos{shape.clips * shape.generations, 1, shape.frames, shape.frame_size};
  const Grid grid = grid_of(videos, kThreads, kQuads);
  launch(
      aligned(to, videos) ? normal_kernel<true> : normal_kernel<false>, grid, stream, videos, grid,
      static_cast<unsigned>(shape.generations), seed, first_clip, to);
}

}  // namespace vampo::cuda
