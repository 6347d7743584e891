// What the wrapper of every operator needs: checks of tensors, and the place where a kernel runs.
//
// An operator is four files of one name: csrc/<op>.cpp (schema and wrapper), csrc/cpu/<op>.cpp, csrc/cuda/<op>.cu, and
// the declaration of its kernels in csrc/<op>.h. Kernels take plain pointers, see kernels.h; this is where tensors end.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "kernels.h"
#include "stable.h"

#ifdef VAMPO_WITH_CUDA
#include "cuda/grid.h"
#include "cuda/launch.h"
#endif

namespace vampo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kHalf;
    default:
      STD_TORCH_CHECK(false, "vampo_core: unsupported dtype");
  }
}

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> leading, int64_t numel, const char* name) {
  int64_t axis = 0;
  for (const int64_t size : leading) {
    STD_TORCH_CHECK(axis < tensor.dim() && tensor.size(axis) == size, "vampo_core: wrong shape of ", name);
    ++axis;
  }
  STD_TORCH_CHECK(tensor.numel() == numel, "vampo_core: wrong number of elements in ", name);
}

inline void check_like(const Tensor& tensor, ScalarType dtype, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "vampo_core: wrong dtype of ", name);
  STD_TORCH_CHECK(tensor.device() == other.device(), "vampo_core: wrong device of ", name);
}

inline void check_writable(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "vampo_core: ", name, " is written to and must be contiguous");
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// An uninitialised contiguous tensor of `like`'s dtype, on its device. torch::stable::new_empty would look up its
// operator by name at every call, which costs as much as the rest of a small operator.
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes) {
  constexpr size_t kMaxDim = 6;
  STD_TORCH_CHECK(sizes.size() <= kMaxDim, "vampo_core: too many dimensions");
  int64_t strides[kMaxDim], stride = 1;
  for (size_t axis = sizes.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= std::max<int64_t>(1, sizes.begin()[axis]);
  }
  int32_t dtype = 0, device_type = 0, device_index = 0;
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

// Where kernels run: a session lives as long as a call, and scratch() says how much memory kernels need beside tensors.
struct Cpu {
  static constexpr bool kOnDevice = false;
  struct Session {
    explicit Session(const Tensor&, int64_t = 0) {}
  };
  static int64_t scratch(const Shape&, int) { return 0; }
};

#ifdef VAMPO_WITH_CUDA
struct Cuda {
  static constexpr bool kOnDevice = true;
  // The tensor's device made current, torch's stream on it, and scratch memory, if any, from torch's allocator.
  struct Session {
    torch::stable::accelerator::DeviceGuard guard;
    void* stream;
    OptionalTensor scratch;
    explicit Session(const Tensor& latents, int64_t scratch_floats = 0)
        : guard(latents.get_device_index()), stream(cuda::current_stream(latents.get_device_index())) {
      if (scratch_floats > 0) scratch = new_tensor(latents, {scratch_floats});
    }
    float* floats() { return scratch ? static_cast<float*>(scratch->mutable_data_ptr()) : nullptr; }
  };
  static int64_t scratch(const Shape& shape, int statistics) { return cuda::scratch_floats(shape, statistics); }
};
#endif

// In a wrapper with `Backend` and `session`: runs the backend's kernel.
#define VAMPO_LAUNCH(kernel, ...)              \
  if constexpr (Backend::kOnDevice) {          \
    cuda::kernel(__VA_ARGS__, session.stream); \
  } else {                                     \
    cpu::kernel(__VA_ARGS__);                  \
  }
#define VAMPO_LAUNCH_WITH_SCRATCH(kernel, ...)                   \
  if constexpr (Backend::kOnDevice) {                            \
    cuda::kernel(__VA_ARGS__, session.floats(), session.stream); \
  } else {                                                       \
    cpu::kernel(__VA_ARGS__);                                    \
  }

// One result per clip, generation and frame.
inline Tensor new_per_frame(const Tensor& like, const Shape& shape) {
  return new_tensor(like, {shape.clips, shape.generations, shape.frames});
}

// Contiguous inputs of a step, kept alive while the kernel's pointers are in use.
struct StepInputs {
  Tensor sample, model_output;
  OptionalTensor uncond, guidance;
  Step step;

  StepInputs(
      const Tensor& sample_, const Tensor& model_output_, const OptionalTensor& uncond_,
      const OptionalTensor& guidance_, double guidance_scale, double a, double b, double sigma_up, int64_t generations)
      : sample(as_contiguous(sample_)), model_output(as_contiguous(model_output_)), step{} {
    STD_TORCH_CHECK(sample.dim() == 5, "vampo_core: sample must be [B, F, C, H, W]");
    const int64_t clips = sample.size(0), frames = sample.size(1);
    const int64_t frame_size = sample.size(2) * sample.size(3) * sample.size(4);
    STD_TORCH_CHECK(frame_size > 0, "vampo_core: sample must have elements in each frame");
    check_latent_dtype(sample);
    check_shape(model_output, {clips, frames}, sample.numel(), "model_output");
    check_output(model_output, model_output.scalar_type(), "model_output");
    if (uncond_) {
      uncond = as_contiguous(*uncond_);
      check_shape(*uncond, {clips, frames}, sample.numel(), "model_output_uncond");
      check_output(*uncond, model_output.scalar_type(), "model_output_uncond");
    }
    if (guidance_) {
      guidance = as_contiguous(*guidance_);
      check_shape(*guidance, {frames}, frames, "guidance_per_frame");
      check_like(*guidance, sample.scalar_type(), sample, "guidance_per_frame");
    }
    step.sample = sample.const_data_ptr();
    step.model_output = model_output.const_data_ptr();
    step.model_output_uncond = uncond ? uncond->const_data_ptr() : nullptr;
    step.guidance_per_frame = guidance ? guidance->const_data_ptr() : nullptr;
    step.guidance_scale = guidance_scale;
    step.a = a;
    step.b = b;
    step.sigma_up = sigma_up;
    step.latent_dtype = dtype_of(sample);
    step.output_dtype = dtype_of(model_output);
    step.shape = {clips, generations, frames, frame_size};
  }

  void check_latents(const Tensor& tensor, int64_t generations, const char* name) const {
    check_shape(tensor, {sample.size(0), generations, sample.size(1)}, sample.numel() * generations, name);
    check_like(tensor, sample.scalar_type(), sample, name);
  }

 private:
  static void check_latent_dtype(const Tensor& tensor) {
    const DType dtype = dtype_of(tensor);
    STD_TORCH_CHECK(dtype == DType::kFloat || dtype == DType::kDouble, "vampo_core: unsupported dtype of sample");
  }

  void check_output(const Tensor& tensor, ScalarType dtype, const char* name) const {
    check_like(tensor, dtype, sample, name);
    const bool both_double = dtype_of(tensor) == DType::kDouble && dtype_of(sample) == DType::kDouble;
    const bool neither_double = dtype_of(tensor) != DType::kDouble && dtype_of(sample) != DType::kDouble;
    STD_TORCH_CHECK(both_double || neither_double, "vampo_core: float64 is for all tensors or none, see ", name);
  }
};

// Clips, generations, frames and blocks of four elements are 32-bit words of the noise counter.
inline void check_counter(int64_t first_clip, const Shape& shape) {
  constexpr int64_t kWord = int64_t{1} << 32;
  STD_TORCH_CHECK(
      first_clip >= 0 && first_clip + shape.clips <= kWord && shape.generations <= kWord && shape.frames <= kWord &&
          shape.frame_size / 4 <= kWord,
      "vampo_core: sizes exceed the noise counter");
}

#define VAMPO_STEP_ARGS                                                                          \
  "Tensor sample, Tensor model_output, Tensor? model_output_uncond, Tensor? guidance_per_frame," \
  " float guidance_scale, float a, float b"

// Registers `wrapper<Cpu>` and, where it is built, `wrapper<Cuda>` as the kernels of an operator.
#ifdef VAMPO_WITH_CUDA
#define VAMPO_KERNELS(op, wrapper)                 \
  STABLE_TORCH_LIBRARY_IMPL(vampo_core, CPU, m) {  \
    m.impl(#op, TORCH_BOX(&wrapper<Cpu>));         \
  }                                                \
  STABLE_TORCH_LIBRARY_IMPL(vampo_core, CUDA, m) { \
    m.impl(#op, TORCH_BOX(&wrapper<Cuda>));        \
  }
#else
#define VAMPO_KERNELS(op, wrapper)                \
  STABLE_TORCH_LIBRARY_IMPL(vampo_core, CPU, m) { \
    m.impl(#op, TORCH_BOX(&wrapper<Cpu>));        \
  }
#endif

}  // namespace vampo
