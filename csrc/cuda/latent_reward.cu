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

template <bool kAligned, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    sums_kernel(Shape shape, Grid grid, const float* pred, const float* target, Reward reward, float* scratch) {
  const Share share = share_of<kCount / 4>(shape, grid);
  float expert[kCount], target_squares = 0.0f;
  sum_generations<kNumStatistics, kCount, kLoadsTogether<kAligned, kCount>>(
      shape, grid, share, reward, scratch,
      [&](int64_t generation, float (&p)[kCount]) {
        load<kAligned>(p, pred + action_row(shape, share, generation) * shape.frame_size, share);
      },
      [&] {
        load<kAligned>(expert, target + share.row * shape.frame_size, share);
#pragma unroll
        for (int i = 0; i < kCount; ++i) target_squares += expert[i] * expert[i];
      },
      [&](int64_t, const float (&p)[kCount], float (&sums)[kNumStatistics]) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {  // elements beyond the frame are 0 in both
          sums[kDistance] += fabsf(p[i] - expert[i]);
          sums[kProduct] += p[i] * expert[i];
          sums[kPredSquares] += p[i] * p[i];
        }
        sums[kTargetSquares] = target_squares;
      });
}

}  // namespace

void latent_reward(
    const Shape& shape, DType dtype, const void* pred, const void* target, double l1_weight, double cosine_weight,
    void* reward, void* l1, void* cosine, float* scratch, void* stream) {
  if (dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels take float32 latents");
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
  sum_over_frames<kNumStatistics>(shape, results, scratch, stream, [&](const Grid& grid, auto count) {
    constexpr int kCount = decltype(count)::value;
    launch(
        wide ? sums_kernel<true, kCount> : sums_kernel<false, kCount>, grid, stream, shape, grid, p, t, results,
        scratch);
  });
}

}  // namespace vampo::cuda
