// Last line of defence: the Python layer has already named what is wrong with an argument.
#pragma once

#include "kernels.h"
#include "stable.h"

namespace vampo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

}  // namespace vampo
