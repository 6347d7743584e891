#include "../latent_reward.h"

#include "tiles.h"

namespace vampo::cuda {
namespace {

enum Statistic { kDistance, kProduct, kPredSquares, kTargetSquares, kNumStatistics };

struct Reward {
  double frame_size, l1_weight, cosine_weight;
  float *reward, *l1, *cosine;
  __device__ __forceinline__ void write(int64_t row, const double (&sums)[kNumStatistics]) const {
    const double distance = sums[kDistance] / frame_size;
    const double similarity = cosine_similarity(sums[kProduct], sums[kPredSquares], sums[kTargetSquares]);
    l1[row] = static_cast<float>(distance);
    cosine[row] = static_cast<float>(similarity);
    reward[row] = static_cast<float>(cosine_weight * similarity - l1_weight * distance);
  }
};

template <bool kAligned, int kBlock>
__global__ void __launch_bounds__(kBlock)
    sums_kernel(Shape shape, unsigned tiles, const float* pred, const float* target, Reward reward, float* scratch) {
  __shared__ float warps[kNumStatistics][kBlock / 32][kGroup];
  BlockSums<kNumStatistics, kBlock> sums{warps};
  const Share share = share_of<kBlock>(shape, tiles);
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
    sums.flush(reward, scratch, shape, share, tiles, first, count);
  }
}

}  // namespace

void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine, float* scratch, void* stream) {
  if (dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels take float32 latents");
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  const float* p = static_cast<const float*>(pred);
  const float* t = static_cast<const float*>(target);
  const Reward results{
      static_cast<double>(shape.frame_size),
      l1_weight,
      cosine_weight,
      static_cast<float*>(reward),
      static_cast<float*>(l1),
      static_cast<float*>(cosine)};
  const bool wide = aligned(p, shape) && aligned(t, shape);
  sum_over_frames<kNumStatistics>(
      shape, results, scratch, cuda_stream, [&](unsigned blocks, unsigned tiles, auto block) {
        constexpr int kBlock = decltype(block)::value;
        const auto kernel = wide ? sums_kernel<true, kBlock> : sums_kernel<false, kBlock>;
        kernel<<<blocks, kBlock, 0, cuda_stream>>>(shape, tiles, p, t, results, scratch);
      });
}

}  // namespace vampo::cuda
