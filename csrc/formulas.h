// Scalar maths shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// A table in CUDA's constant memory is an operand of an instruction; a double in the code takes two moves to get there.
#ifdef __CUDACC__
#define VAMPO_INLINE __host__ __device__ __forceinline__
#define VAMPO_TABLE static __constant__
#define VAMPO_UNROLL _Pragma("unroll")
#else
#define VAMPO_INLINE inline __attribute__((always_inline))
#define VAMPO_TABLE static constexpr
#define VAMPO_UNROLL _Pragma("GCC unroll 32")
#endif

namespace vampo {

// Classifier-free guidance u + g (c - u).
template <typename T>
VAMPO_INLINE T guided(T cond, T uncond, T scale) {
  return uncond + scale * (cond - uncond);
}

// Mean of an Euler step, which is affine in the sample x and the model output m.
template <typename T>
VAMPO_INLINE T euler_mean(T a, T x, T b, T m) {
  return a * x + b * m;
}

template <typename To, typename From>
VAMPO_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// u = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
template <typename T>
VAMPO_INLINE void split(float u, T& exponent, T& f) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3;
  const uint32_t offset = bit_cast<uint32_t>(u) - kSqrtHalf;
  exponent = static_cast<T>(static_cast<int32_t>(offset) >> 23);
  f = static_cast<T>(bit_cast<float>((offset & 0x007fffff) + kSqrtHalf)) - T{1};
}

// -2 ln u for u in (0, 1], relative error about 1e-7, by a minimax polynomial.
VAMPO_INLINE float minus_two_log(float u) {
  float exponent, f;
  split(u, exponent, f);
  float q = -2.0f * 0.08734715729951859f;
  q = q * f - 2.0f * -0.14307469129562378f;
  q = q * f - 2.0f * 0.14917995035648346f;
  q = q * f - 2.0f * -0.16570515930652618f;
  q = q * f - 2.0f * 0.19962070882320404f;
  q = q * f - 2.0f * -0.25001755356788635f;
  q = q * f - 2.0f * 0.33333951234817505f;
  q = q * f - 2.0f * -0.49999991059303284f;
  // ln 2 in two parts: the first is exact in few bits, so exponent * kLn2High rounds nowhere.
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  return exponent * (-2.0f * kLn2High) + (-2.0f * f + (f * f * q + exponent * (-2.0f * kLn2Low)));
}

VAMPO_INLINE float square_root(float x) {
#ifdef __CUDA_ARCH__
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));  // one instruction, as no x here is denormal
  return root;
#else
  return std::sqrt(x);
#endif
}

// Two 32-bit words to two independent standard normals (Box and Muller 1958).
VAMPO_INLINE void box_muller(uint32_t x0, uint32_t x1, float& z0, float& z1) {
  const float u = static_cast<float>(x0) * 0x1p-32f + 0x1p-33f;
  const float radius = square_root(minus_two_log(u));
  // The angle is pi/2 (quadrant + t) with t in [-1/2, 1/2) and the quadrant in the two upper bits of `turn`.
  const uint32_t turn = x1 + 0x20000000u;
  const float t = static_cast<float>(static_cast<int32_t>(x1 << 2)) * 0x1p-32f;
  const float y = t * t;
  const float sine =
      t * (((-0.004602177068591118f * y + 0.07968022674322128f) * y - 0.6459634900093079f) * y + 1.5707963705062866f);
  const float cosine = ((-0.020408352836966515f * y + 0.2535986304283142f) * y - 1.2336970567703247f) * y + 1.0f;
  const bool swapped = turn & 0x40000000u;
  const uint32_t x = bit_cast<uint32_t>(swapped ? sine : cosine) ^ ((turn + 0x40000000u) & 0x80000000u);
  const uint32_t s = bit_cast<uint32_t>(swapped ? cosine : sine) ^ (turn & 0x80000000u);
  z0 = radius * bit_cast<float>(x);
  z1 = radius * bit_cast<float>(s);
}

// What follows is the same in double precision, within rounding of the library's functions. It needs none of them but
// the square root, so that it vectorises, and differs between devices by rounding only.

// Factors of minimax polynomials, of the highest power first.
VAMPO_TABLE double kLogFactors[] = {
    0.026259864395059444,  -0.0594377125876568,  0.06444421108963665,  -0.05669643772565927, 0.05686585537339873,
    -0.062025600107261776, 0.06682375886233116,  -0.07148420480023412, 0.076916546465268,    -0.0833299913609137,
    0.09090921328672855,   -0.10000011277649974, 0.11111111107647632,  -0.1249999978954668,  0.1428571428268799,
    -0.16666666668629757,  0.2000000000003205,   -0.24999999999992914, 0.3333333333333326,   -0.5};
VAMPO_TABLE double kSineFactors[] = {1.5918129280835e-10,     -2.5051131844808866e-08, 2.7557316102551507e-06,
                                     -0.00019841269836758574, 0.008333333333330948,    -0.16666666666666666};
VAMPO_TABLE double kCosineFactors[] = {-1.1382632416743525e-11, 2.0876146268281356e-09, -2.755731727172921e-07,
                                       2.4801587298765686e-05,  -0.0013888888888887398, 0.041666666666666664};

template <int kCount>
VAMPO_INLINE double polynomial(const double (&factors)[kCount], double x) {
  double sum = factors[0];
  VAMPO_UNROLL
  for (int i = 1; i < kCount; ++i) sum = sum * x + factors[i];
  return sum;
}

VAMPO_INLINE double minus_two_log_double(float u) {
  double exponent, f;
  split(u, exponent, f);
  constexpr double kLn2High = 0.6931471805592082, kLn2Low = 7.371002565167799e-13;
  return -2.0 * (exponent * kLn2High + (f + (f * f * polynomial(kLogFactors, f) + exponent * kLn2Low)));
}

VAMPO_INLINE void box_muller(uint32_t x0, uint32_t x1, double& z0, double& z1) {
  const float u = static_cast<float>(x0) * 0x1p-32f + 0x1p-33f;
  const double radius = std::sqrt(minus_two_log_double(u));
  // The angle, rounded as in the reference, is pi/2 quadrant + r with |r| <= pi/4. Its exact scaling comes last, so
  // that no compiler can fuse the rounded product with the subtraction. Of the two parts of pi/2, the first is exact in
  // few bits, so its multiples round nowhere.
  constexpr double kHalfPiHigh = 1.5707963267341256, kHalfPiLow = 6.077100506506192e-11;
  const double angle = static_cast<double>(x1) * 6.283185307179586 * 0x1p-32;
  const int32_t quadrant = static_cast<int32_t>(((x1 >> 29) + 1) >> 1);  // 0 to 4
  const double turns = static_cast<double>(quadrant);
  const double r = (angle - turns * kHalfPiHigh) - turns * kHalfPiLow;
  const double y = r * r;
  const double sine = r + r * y * polynomial(kSineFactors, y);
  const double cosine = 1.0 + (y * y * polynomial(kCosineFactors, y) - 0.5 * y);
  const bool swapped = quadrant & 1;
  const double x = radius * (swapped ? sine : cosine), w = radius * (swapped ? cosine : sine);
  z0 = bit_cast<double>(bit_cast<uint64_t>(x) ^ (static_cast<uint64_t>((quadrant + 1) & 2) << 62));
  z1 = bit_cast<double>(bit_cast<uint64_t>(w) ^ (static_cast<uint64_t>(quadrant & 2) << 62));
}

VAMPO_INLINE void multiply(uint32_t x, uint32_t factor, uint32_t& high, uint32_t& low) {
#ifdef __CUDA_ARCH__
  // One instruction, where nvcc needs another one to take the high word out of a 64-bit product.
  asm("{ .reg .b64 p; mul.wide.u32 p, %2, %3; mov.b64 {%1, %0}, p; }" : "=r"(high), "=r"(low) : "r"(x), "r"(factor));
#else
  const uint64_t product = static_cast<uint64_t>(x) * factor;
  high = static_cast<uint32_t>(product >> 32);
  low = static_cast<uint32_t>(product);
#endif
}

constexpr uint32_t kPhiloxFactor0 = 0xD2511F53, kPhiloxFactor1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxKey0 = 0x9E3779B9, kPhiloxKey1 = 0xBB67AE85;  // added in every round

// Philox4x32-10 (Salmon et al. 2011): the words of a counter become random ones.
VAMPO_INLINE void philox(uint64_t seed, uint32_t& x0, uint32_t& x1, uint32_t& x2, uint32_t& x3) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  VAMPO_UNROLL
  for (int round = 0; round < 10; ++round) {
    uint32_t high0, low0, high1, low1;
    multiply(x0, kPhiloxFactor0, high0, low0);
    multiply(x2, kPhiloxFactor1, high1, low1);
    x0 = high1 ^ x1 ^ key0;
    x1 = low1;
    x2 = high0 ^ x3 ^ key1;
    x3 = low0;
    key0 += kPhiloxKey0;
    key1 += kPhiloxKey1;
  }
}

// Four standard normals from the counter (block, frame, generation, clip). Element e of a frame is word e % 4 of block
// e / 4, see vampo_core/ops/reference.py.
template <typename T>
VAMPO_INLINE void philox_normal(
    uint64_t seed, uint32_t block, uint32_t frame, uint32_t generation, uint32_t clip, T& z0, T& z1, T& z2, T& z3) {
  uint32_t x0 = block, x1 = frame, x2 = generation, x3 = clip;
  philox(seed, x0, x1, x2, x3);
  box_muller(x0, x1, z0, z1);
  box_muller(x2, x3, z2, z3);
}

// Constant part of the per-element log-density: -ln sigma - ln(2 pi) / 2.
inline double log_normalizer(double sigma) {
  return -std::log(sigma) - 0.9189385332046727;
}

// Cosine of two vectors from their product and squares; a zero vector gives 0 (torch.nn.functional.cosine_similarity).
VAMPO_INLINE double cosine_similarity(double product, double squares_x, double squares_y) {
  constexpr double kEps = 1e-8;
  const double norm_x = std::sqrt(squares_x), norm_y = std::sqrt(squares_y);
  return product / ((norm_x < kEps ? kEps : norm_x) * (norm_y < kEps ? kEps : norm_y));
}

// Rewards of a group that lie within a few units in the last place of the largest one differ by rounding only. The
// same rule: vampo_core/ops/spread.py.
constexpr double kSpreadUlps = 4.0;
template <typename T>
VAMPO_INLINE bool is_flat(T lowest, T highest) {
  constexpr double kEpsilon = sizeof(T) == sizeof(float) ? 0x1p-23 : 0x1p-52;
  const double low = static_cast<double>(lowest), high = static_cast<double>(highest);
  const double magnitude = high > -low ? high : -low;  // the larger of |low| and |high|, as low <= high
  return high - low <= kSpreadUlps * kEpsilon * magnitude;
}

// Advantages within one group, whose members lie `stride` apart; the standard deviation is the unbiased one.
template <typename T>
VAMPO_INLINE void advantages_of_group(
    const T* rewards, int64_t generations, int64_t stride, double eps, double clip, bool normalize_std, T* advantages) {
  const double base = rewards[0];  // equal rewards become exact zeros, and their mean stays one
  double mean = 0.0, squares = 0.0;
  T lowest = rewards[0], highest = rewards[0];
  for (int64_t g = 0; g < generations; ++g) {
    const T reward = rewards[g * stride];
    mean += reward - base;
    if (reward < lowest) lowest = reward;
    if (reward > highest) highest = reward;
  }
  mean /= static_cast<double>(generations);
  for (int64_t g = 0; g < generations; ++g) {
    const double centered = rewards[g * stride] - base - mean;
    squares += centered * centered;
  }
  const double std = std::sqrt(squares / static_cast<double>(generations - 1));
  const double scale = is_flat(lowest, highest) ? 0.0 : normalize_std ? 1.0 / (std + eps) : 1.0;
  for (int64_t g = 0; g < generations; ++g) {
    double advantage = (rewards[g * stride] - base - mean) * scale;
    if (advantage < -clip) advantage = -clip;  // NaN passes both
    if (advantage > clip) advantage = clip;
    advantages[g * stride] = static_cast<T>(advantage);
  }
}

}  // namespace vampo
