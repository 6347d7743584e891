#include "tiles.h"

namespace vampo::cuda {
namespace {

enum Statistic { kDistance, kProduct, kPredSquares, kTargetSquares, kNumStatistics };

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(Shape shape, unsigned tiles, const float* pred, const float* target, float* scratch) {
  __shared__ float warps[kNumStatistics][kGroup][kWarps];
  BlockSums<kNumStatistics> sums{warps};
  const Share share = share_of(shape, tiles);
  float expert[4];
  load<kAligned>(expert, target + share.row * shape.frame_size + share.begin, share.valid);
  float target_squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) target_squares += expert[i] * expert[i];
  target_squares = warp_sum(target_squares);
  for (int64_t first = 0; first < shape.generations; first += kGroup) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kGroup), shape.generations - first));
    for (int start = 0; start < count; start += kUnroll) {
      float p[kUnroll][4];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (start + k >= count) break;
        const int64_t row = action_row(shape, share, first + start + k);
        load<kAligned>(p[k], pred + row * shape.frame_size + share.begin, share.valid);
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (start + k >= count) break;
        float distance = 0.0f, product = 0.0f, pred_squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // elements beyond the frame are 0 in both
          distance += fabsf(p[k][i] - expert[i]);
          product += p[k][i] * expert[i];
          pred_squares += p[k][i] * p[k][i];
        }
        sums.add(kDistance, start + k, distance);
        sums.add(kProduct, start + k, product);
        sums.add(kPredSquares, start + k, pred_squares);
        sums.put(kTargetSquares, start + k, target_squares);
      }
    }
    sums.flush(scratch, shape, share, tiles, first, count);
  }
}

__global__ void __launch_bounds__(kThreads) finish_reward(
    Shape shape, const float* scratch, unsigned tiles, double l1_weight, double cosine_weight, float* reward, float* l1,
    float* cosine) {
  const int64_t rows = shape.clips * shape.generations * shape.frames;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows) return;  // whole warps leave together
  double sums[kNumStatistics];
#pragma unroll
  for (int s = 0; s < kNumStatistics; ++s) sums[s] = tile_sum(scratch + (s * rows + row) * tiles, tiles);
  if (threadIdx.x % 32 != 0) return;
  const double distance = sums[kDistance] / static_cast<double>(shape.frame_size);
  const double similarity = cosine_similarity(sums[kProduct], sums[kPredSquares], sums[kTargetSquares]);
  l1[row] = static_cast<float>(distance);
  cosine[row] = static_cast<float>(similarity);
  reward[row] = static_cast<float>(cosine_weight * similarity - l1_weight * distance);
}

}  // namespace

void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine, float* scratch, void* stream) {
  if (dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels take float32 latents");
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  const unsigned tiles = static_cast<unsigned>(tiles_per_frame(shape));
  const float* p = static_cast<const float*>(pred);
  const float* t = static_cast<const float*>(target);
  const auto kernel = aligned(p, shape) && aligned(t, shape) ? sums_kernel<true> : sums_kernel<false>;
  kernel<<<num_blocks(shape), kThreads, 0, cuda_stream>>>(shape, tiles, p, t, scratch);
  check_launch();
  finish_reward<<<blocks_of_rows(shape), kThreads, 0, cuda_stream>>>(
      shape, scratch, tiles, l1_weight, cosine_weight, static_cast<float*>(reward), static_cast<float*>(l1),
      static_cast<float*>(cosine));
  check_launch();
}

}  // namespace vampo::cuda
