#include "group_advantages.h"

#include <limits>

#include "backend.h"

namespace vampo {
namespace {

// `rewards` [B, G] or [B, G, F], seen as frames of one element.
Shape reward_shape(const Tensor& rewards) {
  STD_TORCH_CHECK(rewards.dim() == 2 || rewards.dim() == 3, "vampo_core: rewards must be [B, G] or [B, G, F]");
  STD_TORCH_CHECK(rewards.size(1) >= 2, "vampo_core: rewards must hold groups of at least 2");
  return {rewards.size(0), rewards.size(1), rewards.dim() == 3 ? rewards.size(2) : 1, 1};
}

template <typename Backend>
Tensor group_advantages(const Tensor& rewards, double eps, const std::optional<double>& clip, bool normalize_std) {
  const Shape shape = reward_shape(rewards);
  const Tensor in = as_contiguous(rewards);
  Tensor advantages = in.dim() == 3 ? new_per_frame(in, shape) : new_tensor(in, {shape.clips, shape.generations});
  if (in.numel() == 0) return advantages;
  typename Backend::Session session(in);
  VAMPO_LAUNCH(
      group_advantages, shape, dtype_of(in), in.const_data_ptr(), eps,
      clip.value_or(std::numeric_limits<double>::infinity()), normalize_std, advantages.mutable_data_ptr());
  return advantages;
}

STABLE_TORCH_LIBRARY_FRAGMENT(vampo_core, m) {
  m.def("group_advantages(Tensor rewards, float eps, float? clip, bool normalize_std) -> Tensor");
}
VAMPO_KERNELS(group_advantages, group_advantages)

}  // namespace
}  // namespace vampo
