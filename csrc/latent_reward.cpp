#include "latent_reward.h"

#include <tuple>

#include "backend.h"

namespace vampo {
namespace {

Shape pred_shape(const Tensor& pred, const Tensor& target) {
  STD_TORCH_CHECK(pred.dim() == 6, "vampo_core: pred must be [B, G, F, C, H, W]");
  const Shape shape{pred.size(0), pred.size(1), pred.size(2), pred.size(3) * pred.size(4) * pred.size(5)};
  STD_TORCH_CHECK(shape.frame_size > 0, "vampo_core: pred must have elements in each frame");
  check_shape(target, {shape.clips, shape.frames}, shape.clips * shape.frames * shape.frame_size, "target");
  check_like(target, pred.scalar_type(), pred, "target");
  return shape;
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> latent_reward(
    const Tensor& pred, const Tensor& target, double l1_weight, double cosine_weight) {
  const Shape shape = pred_shape(pred, target);
  const Tensor in = as_contiguous(pred), expert = as_contiguous(target);
  Tensor reward = new_per_frame(in, shape), l1 = new_per_frame(in, shape), cosine = new_per_frame(in, shape);
  if (reward.numel() == 0) return {reward, l1, cosine};
  typename Backend::Session session(in, Backend::scratch(shape, 4));
  VAMPO_LAUNCH_WITH_SCRATCH(
      latent_reward, shape, dtype_of(in), in.const_data_ptr(), expert.const_data_ptr(), l1_weight, cosine_weight,
      reward.mutable_data_ptr(), l1.mutable_data_ptr(), cosine.mutable_data_ptr());
  return {reward, l1, cosine};
}

STABLE_TORCH_LIBRARY_FRAGMENT(vampo_core, m) {
  m.def("latent_reward(Tensor pred, Tensor target, float l1_weight, float cosine_weight) -> (Tensor, Tensor, Tensor)");
}
VAMPO_KERNELS(latent_reward, latent_reward)

}  // namespace
}  // namespace vampo
