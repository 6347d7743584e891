// Building blocks of the CUDA kernels.
//
// A block works on one tile, neighboring elements of one frame of one clip, for a slice of the generations: all of them
// where there are enough tiles to fill the device. What a tile reads of the clip (sample, model outputs, target) stays
// in registers while the generations pass by. Sums over a frame are made in a fixed order, which depends neither on the
// slices nor on scheduling: by the block itself where its tile is the whole frame, else from one float per tile in
// scratch memory by a second, tiny kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../formulas.h"
#include "grid.h"
#include "launch.h"

namespace vampo::cuda {

// Generations whose loads are on their way together, for a thread with kCount elements of each: as many as fit into its
// registers.
template <bool kAligned, int kCount>
constexpr int kLoadsTogether = kCount == 4 ? 4 : (kAligned ? 2 : 1);

// Whether four neighboring elements can be moved at once wherever a thread's share begins.
template <typename T>
bool aligned(const T* pointer, const Shape& shape) {
  return shape.frame_size % 4 == 0 && reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(T)) == 0;
}

// A thread's share of its block's work: quads of four neighboring elements, one block of threads apart from each other.
struct Share {
  unsigned clip, frame, row;  // row = clip * frames + frame
  unsigned tile;              // within the frame
  int64_t begin;              // first element within the frame
  int left;                   // elements of the frame from there on
  int64_t first, last;        // generations [first, last)

  // Where the i-th element of the share lies, counted from its first.
  static __device__ constexpr int place(int i) { return i / 4 * (4 * kThreads) + i % 4; }
  __device__ __forceinline__ bool has(int i) const { return place(i) < left; }
};

template <int kQuads = 1>
__device__ __forceinline__ Share share_of(const Shape& shape, const Grid& grid) {
  Share share;
  const unsigned tile = blockIdx.x / grid.slices, slice = blockIdx.x - tile * grid.slices;
  share.row = tile / grid.tiles;
  share.tile = tile - share.row * grid.tiles;
  share.clip = share.row / static_cast<unsigned>(shape.frames);
  share.frame = share.row - share.clip * static_cast<unsigned>(shape.frames);
  share.begin = int64_t{share.tile} * (4 * kQuads * blockDim.x) + threadIdx.x * 4;
  share.left = static_cast<int>(min(shape.frame_size - share.begin, int64_t{16} * kThreads));
  share.first = slice * grid.generations;
  share.last = min(share.first + grid.generations, shape.generations);
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

// Reads a share of the frame that begins at `frame`; elements beyond its end read as 0.
template <bool kAligned, int kCount, typename T>
__device__ __forceinline__ void load(float (&to)[kCount], const T* frame, const Share& share) {
#pragma unroll
  for (int i = 0; i < kCount; i += kAligned ? 4 : 1) {
    const T* from = frame + share.begin + Share::place(i);
    if (!kAligned) {
      to[i] = share.has(i) ? to_float(*from) : 0.0f;
    } else if (share.has(i)) {
      const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(from);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[i + j] = to_float(quad.v[j]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) to[i + j] = 0.0f;
    }
  }
}

template <bool kAligned, int kCount, typename T>
__device__ __forceinline__ void store(T* frame, const float (&from)[kCount], const Share& share) {
#pragma unroll
  for (int i = 0; i < kCount; i += kAligned ? 4 : 1) {
    if (!share.has(i)) continue;
    T* to = frame + share.begin + Share::place(i);
    if (!kAligned) {
      from_float(*to, from[i]);
    } else {
      Quad<T> quad;
#pragma unroll
      for (int j = 0; j < 4; ++j) from_float(quad.v[j], from[i + j]);
      *reinterpret_cast<Quad<T>*>(to) = quad;
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

  template <bool kAligned, int kCount>
  __device__ __forceinline__ void mean(float (&to)[kCount], const Share& share) const {
    const int64_t frame = share.row * shape.frame_size;
    float x[kCount], m[kCount];
    load<kAligned>(x, sample + frame, share);
    load<kAligned>(m, model_output + frame, share);
    if (uncond) {
      float u[kCount];
      load<kAligned>(u, uncond + frame, share);
      const float scale = guidance(share);
#pragma unroll
      for (int i = 0; i < kCount; ++i) m[i] = guided(m[i], u[i], scale);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = euler_mean(a, x[i], b, m[i]);
  }
};

// Sums of kCount values, a power of two, over the warp: while their distance halves, lanes share the values out among
// themselves, so that four values take 6 shuffles instead of 20. Returns the sum of value lane / (32 / kCount).
template <int kCount>
__device__ __forceinline__ float warp_sums(float (&values)[kCount]) {
  static_assert(kCount <= 32 && (kCount & (kCount - 1)) == 0);
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) {
    const int offset = half * (32 / kCount);
    const bool upper = threadIdx.x & offset;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? values[half + i] : values[i], given = upper ? values[i] : values[half + i];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, given, offset);
    }
  }
#pragma unroll
  for (int offset = 16 / kCount; offset > 0; offset /= 2) values[0] += __shfl_xor_sync(0xffffffffu, values[0], offset);
  return values[0];
}

// Goes through the block's generations, kTogether at a time: fetch(generation, values) for each of them, then
// add(generation, values, sums), which adds the thread's part to kStatistics sums over the frame. prepare() comes once,
// before the first add; a block that has few generations waits for memory only once if the reads of both are on their
// way together. Writes a generation's results where the tile is the whole frame, else the tile's sums to scratch
// [kStatistics][clips, generations, frames][tiles].
template <int kStatistics, int kCount, int kTogether, typename Results, typename Fetch, typename Prepare, typename Add>
__device__ __forceinline__ void sum_generations(
    const Shape& shape, const Grid& grid, const Share& share, const Results& results, float* scratch, Fetch fetch,
    Prepare prepare, Add add) {
  constexpr int kWarps = kThreads / 32, kLanes = 32 / kStatistics;
  constexpr bool kOverlaps = kCount == 4;  // there are registers for what prepare() and fetch() read at the same time
  __shared__ float warps[kStatistics][kWarps][kMaxGenerations];
  const unsigned lane = threadIdx.x % 32, count = static_cast<unsigned>(share.last - share.first);
  if (!kOverlaps) prepare();
  for (unsigned start = 0; start < count; start += kTogether) {
    float values[kTogether][kCount];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (start + k < count) fetch(share.first + start + k, values[k]);
    }
    if (kOverlaps && start == 0) prepare();
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (start + k >= count) break;
      float sums[kStatistics] = {};
      add(share.first + start + k, values[k], sums);
      const float sum = warp_sums(sums);
      if (lane % kLanes == 0) warps[lane / kLanes][threadIdx.x / 32][start + k] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x >= count) return;
  const int64_t row = action_row(shape, share, share.first + threadIdx.x);
  double sums[kStatistics];
#pragma unroll
  for (int statistic = 0; statistic < kStatistics; ++statistic) {
    sums[statistic] = 0.0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sums[statistic] += warps[statistic][warp][threadIdx.x];
  }
  if (grid.tiles == 1) {
    results.write(row, sums);
  } else {
    const int64_t rows = shape.clips * shape.generations * shape.frames;
#pragma unroll
    for (int statistic = 0; statistic < kStatistics; ++statistic)
      scratch[(statistic * rows + row) * grid.tiles + share.tile] = static_cast<float>(sums[statistic]);
  }
}

// One warp per row of [clips, generations, frames]: its results from the sums of its tiles.
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

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, void* stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Calls launch_sums(grid, elements of a thread as a type) for a kernel that sums over frames, and what finishes its
// sums.
template <int kStatistics, typename Results, typename LaunchSums>
void sum_over_frames(
    const Shape& shape, const Results& results, const float* scratch, void* stream, LaunchSums launch_sums) {
  const Grid grid = sum_grid(shape, num_processors());
  if (sum_quads(shape) == 1) {
    launch_sums(grid, std::integral_constant<int, 4>{});
  } else {
    launch_sums(grid, std::integral_constant<int, 16>{});
  }
  if (grid.tiles == 1) return;
  const int64_t rows = shape.clips * shape.generations * shape.frames;
  constexpr int kRows = kThreads / 32;  // of a block
  const Grid finish{one_launch((rows + kRows - 1) / kRows), kThreads, 1, 1, 1};
  launch(finish_kernel<kStatistics, Results>, finish, stream, results, scratch, grid.tiles, rows);
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
