// Mean of a step over part of a frame, shared by every operator that takes a step.
#pragma once

#include "loops.h"

namespace vampo::cpu {

template <typename T, typename M>
VAMPO_CLONES void plain_mean(T* mean, const T* x, const M* m, T a, T b, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) mean[i] = euler_mean(a, x[i], b, static_cast<T>(m[i]));
}

template <typename T, typename M>
VAMPO_CLONES void guided_mean(T* mean, const T* x, const M* m, const M* u, T scale, T a, T b, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    mean[i] = euler_mean(a, x[i], b, guided(static_cast<T>(m[i]), static_cast<T>(u[i]), scale));
  }
}

// Typed view of a Step. A row is one frame of one clip.
template <typename T, typename M>
struct StepView {
  const T* sample;
  const M* model_output;
  const M* uncond;
  const T* guidance_per_frame;
  T guidance_scale, a, b;
  int64_t frames, frame_size;

  explicit StepView(const Step& step)
      : sample(static_cast<const T*>(step.sample)),
        model_output(static_cast<const M*>(step.model_output)),
        uncond(static_cast<const M*>(step.model_output_uncond)),
        guidance_per_frame(static_cast<const T*>(step.guidance_per_frame)),
        guidance_scale(static_cast<T>(step.guidance_scale)),
        a(static_cast<T>(step.a)),
        b(static_cast<T>(step.b)),
        frames(step.shape.frames),
        frame_size(step.shape.frame_size) {}

  T guidance(int64_t row) const { return guidance_per_frame ? guidance_per_frame[row % frames] : guidance_scale; }

  // mean[0, n) of the elements [begin, begin + n) of a row; `mean` may be that part of `sample` itself.
  void mean(T* mean, int64_t row, int64_t begin, int64_t n) const {
    const int64_t at = row * frame_size + begin;
    if (uncond) {
      guided_mean(mean, sample + at, model_output + at, uncond + at, guidance(row), a, b, n);
    } else {
      plain_mean(mean, sample + at, model_output + at, a, b, n);
    }
  }
};

}  // namespace vampo::cpu
