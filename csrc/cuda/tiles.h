// Building blocks of the CUDA kernels.
//
// A block works on one tile: neighboring elements of one frame of one clip, four per thread, for all generations. What
// a tile reads of the clip (sample, model outputs, target) stays in registers while the generations pass by. Sums over
// a frame are made in a fixed order, so results do not depend on scheduling: by the block itself where its tile is the
// whole frame, else from one float per tile in scratch memory by a second, tiny kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../formulas.h"
#include "grid.h"
#include "launch.h"

namespace vampo::cuda {

constexpr int kUnroll = 4;  // generations whose loads are in flight together
constexpr int kGroup = 32;  // generations whose sums fit in shared memory; a multiple of kUnroll

// Whether four neighboring elements can be moved at once wherever a thread's share begins.
template <typename T>
bool aligned(const T* pointer, const Shape& shape) {
  return shape.frame_size % 4 == 0 && reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(T)) == 0;
}

// A thread's share of its block's tile.
struct Share {
  int64_t clip, frame, row;  // row = clip * frames + frame
  int64_t tile;              // within the frame
  int64_t begin;             // first element within the frame
  int valid;                 // how many of the four elements exist
};

template <int kBlock = kThreads>
__device__ __forceinline__ Share share_of(const Shape& shape, unsigned tiles) {
  Share share;
  const unsigned row = blockIdx.x / tiles;
  share.row = row;
  share.tile = blockIdx.x - row * tiles;
  share.clip = row / static_cast<unsigned>(shape.frames);
  share.frame = share.row - share.clip * shape.frames;
  share.begin = share.tile * (4 * kBlock) + threadIdx.x * 4;
  const int64_t left = shape.frame_size - share.begin;
  share.valid = left <= 0 ? 0 : left < 4 ? static_cast<int>(left) : 4;
  return share;
}

// Index of frame (clip, generation, frame) among [clips, generations, frames].
__device__ __forceinline__ int64_t action_row(const Shape& shape, const Share& share, int64_t generation) {
  return (share.clip * shape.generations + generation) * shape.frames + share.frame;
}

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void from_float(float& to, float x) {
  to = x;
}
__device__ __forceinline__ void from_float(__half& to, float x) {
  to = __float2half_rn(x);
}
__device__ __forceinline__ void from_float(__nv_bfloat16& to, float x) {
  to = __float2bfloat16_rn(x);
}

template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

// Elements beyond `valid` read as 0. With kAligned, `valid` is 0 or 4.
template <bool kAligned, typename T>
__device__ __forceinline__ void load(float (&to)[4], const T* from, int valid) {
  if (kAligned) {
    if (valid) {
      const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(from);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = to_float(quad.v[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = 0.0f;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = i < valid ? to_float(from[i]) : 0.0f;
  }
}

template <bool kAligned, typename T>
__device__ __forceinline__ void store(T* to, const float (&from)[4], int valid) {
  if (kAligned) {
    if (!valid) return;
    Quad<T> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) from_float(quad.v[i], from[i]);
    *reinterpret_cast<Quad<T>*>(to) = quad;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) from_float(to[i], from[i]);
    }
  }
}

// Typed view of a Step.
template <typename M>
struct StepView {
  const float* sample;
  const M* model_output;
  const M* uncond;
  const float* guidance_per_frame;
  float guidance_scale, a, b;
  Shape shape;

  explicit StepView(const Step& step)
      : sample(static_cast<const float*>(step.sample)),
        model_output(static_cast<const M*>(step.model_output)),
        uncond(static_cast<const M*>(step.model_output_uncond)),
        guidance_per_frame(static_cast<const float*>(step.guidance_per_frame)),
        guidance_scale(static_cast<float>(step.guidance_scale)),
        a(static_cast<float>(step.a)),
        b(static_cast<float>(step.b)),
        shape(step.shape) {}

  bool is_aligned() const { return aligned(sample, shape) && aligned(model_output, shape) && aligned(uncond, shape); }

  __device__ __forceinline__ float guidance(const Share& share) const {
    return guidance_per_frame ? guidance_per_frame[share.frame] : guidance_scale;
  }

  template <bool kAligned>
  __device__ __forceinline__ void mean(float (&to)[4], const Share& share) const {
    const int64_t at = share.row * shape.frame_size + share.begin;
    float x[4], m[4];
    load<kAligned>(x, sample + at, share.valid);
    load<kAligned>(m, model_output + at, share.valid);
    if (uncond) {
      float u[4];
      load<kAligned>(u, uncond + at, share.valid);
      const float scale = guidance(share);
#pragma unroll
      for (int i = 0; i < 4; ++i) m[i] = guided(m[i], u[i], scale);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = euler_mean(a, x[i], b, m[i]);
  }
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sums over the block, one for each of up to kGroup generations and kStatistics statistics, in a fixed order.
template <int kStatistics, int kBlock>
struct BlockSums {
  float (*warps)[kBlock / 32][kGroup];  // [kStatistics][kBlock / 32][kGroup] in shared memory

  // `value` is the warp's sum already.
  __device__ __forceinline__ void put(int statistic, int generation, float value) {
    if (threadIdx.x % 32 == 0) warps[statistic][threadIdx.x / 32][generation] = value;
  }

  __device__ __forceinline__ void add(int statistic, int generation, float value) {
    put(statistic, generation, warp_sum(value));
  }

  // For each of generations [first, first + count): its results where the tile is the whole frame, else its sums, which
  // go to scratch [kStatistics][clips, generations, frames][tiles].
  template <typename Results>
  __device__ __forceinline__ void flush(
      const Results& results, float* scratch, const Shape& shape, const Share& share, unsigned tiles, int64_t first,
      int count) {
    __syncthreads();
    if (threadIdx.x < count) {
      double sums[kStatistics];
#pragma unroll
      for (int statistic = 0; statistic < kStatistics; ++statistic) {
        sums[statistic] = 0.0;
#pragma unroll 8
        for (int warp = 0; warp < kBlock / 32; ++warp) sums[statistic] += warps[statistic][warp][threadIdx.x];
      }
      const int64_t row = action_row(shape, share, first + threadIdx.x);
      if (tiles == 1) {
        results.write(row, sums);
      } else {
        const int64_t rows = shape.clips * shape.generations * shape.frames;
#pragma unroll
        for (int statistic = 0; statistic < kStatistics; ++statistic)
          scratch[(statistic * rows + row) * tiles + share.tile] = static_cast<float>(sums[statistic]);
      }
    }
    __syncthreads();
  }
};

// One warp per row of [clips, generations, frames]: its results from the sums that flush left for each tile.
template <int kStatistics, typename Results>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(Results results, const float* scratch, unsigned tiles, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;  // whole warps leave together
  double sums[kStatistics];
#pragma unroll
  for (int statistic = 0; statistic < kStatistics; ++statistic) {
    const float* of_row = scratch + (statistic * rows + row) * tiles;
    double sum = 0.0;
    for (unsigned tile = threadIdx.x % 32; tile < tiles; tile += 32) sum += of_row[tile];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    sums[statistic] = sum;
  }
  if (threadIdx.x % 32 == 0) results.write(row, sums);
}

// Calls launch(blocks, tiles, block size as a type) for a kernel that sums over frames, and what finishes its sums.
template <int kStatistics, typename Results, typename Launch>
void sum_over_frames(
    const Shape& shape, const Results& results, const float* scratch, cudaStream_t stream, Launch launch) {
  const int threads = sum_threads(shape);
  const unsigned blocks = num_blocks(shape, threads), tiles = static_cast<unsigned>(tiles_per_frame(shape, threads));
  if (threads == kMaxThreads) {
    launch(blocks, tiles, std::integral_constant<int, kMaxThreads>{});
  } else {
    launch(blocks, tiles, std::integral_constant<int, kThreads>{});
  }
  check_launch();
  if (tiles == 1) return;
  const int64_t rows = shape.clips * shape.generations * shape.frames;
  finish_kernel<kStatistics><<<one_launch((rows + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream>>>(
      results, scratch, tiles, rows);
  check_launch();
}

// log_prob[row] = scale * sum of squares + offset
struct LogProb {
  double scale, offset;
  float* log_prob;
  __device__ __forceinline__ void write(int64_t row, const double (&sums)[1]) const {
    log_prob[row] = static_cast<float>(scale * sums[0] + offset);
  }
};

// Calls f(model output type) for a step; the latents are float32.
template <typename F>
void dispatch_output(const Step& step, F f) {
  if (step.latent_dtype != DType::kFloat) throw std::runtime_error("vampo_core: CUDA kernels take float32 latents");
  switch (step.output_dtype) {
    case DType::kFloat:
      return f(float{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    case DType::kHalf:
      return f(__half{});
    default:
      throw std::runtime_error("vampo_core: unsupported dtype of model_output");
  }
}

}  // namespace vampo::cuda
