#include "philox_normal.h"

#include "backend.h"

namespace vampo {
namespace {

template <typename Backend>
void philox_normal(int64_t seed, int64_t first_clip, const Tensor& out) {
  STD_TORCH_CHECK(out.dim() == 6, "vampo_core: out must be [B, G, F, C, H, W]");
  check_writable(out, "out");
  const DType dtype = dtype_of(out);
  STD_TORCH_CHECK(dtype == DType::kFloat || dtype == DType::kDouble, "vampo_core: unsupported dtype of out");
  const Shape shape{out.size(0), out.size(1), out.size(2), out.size(3) * out.size(4) * out.size(5)};
  check_counter(first_clip, shape);
  if (out.numel() == 0) return;
  typename Backend::Session session(out);
  VAMPO_LAUNCH(
      philox_normal, shape, dtype, static_cast<uint64_t>(seed), static_cast<uint32_t>(first_clip),
      out.mutable_data_ptr());
}

STABLE_TORCH_LIBRARY_FRAGMENT(vampo_core, m) {
  m.def("philox_normal(SymInt seed, SymInt first_clip, Tensor(a!) out) -> ()");
}
VAMPO_KERNELS(philox_normal, philox_normal)

}  // namespace
}  // namespace vampo
