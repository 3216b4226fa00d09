/* y = W x, W (m, n) and x (n) int8, y (m) int32: the least that an int8 dense layer does, activations quantised already.
   Four rows at a time share the loads of x; by the widest multiplication that the target has. */
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "tensor.h"

#ifdef MARK
extern int MARK(void);
#define MARKED (void)MARK()
#else
#define MARKED (void)0
#endif

#if defined(__AVX2__)
enum { STEP = 16 };
typedef __m256i Sum;
typedef __m256i Input;
static inline Sum zero(void) { return _mm256_setzero_si256(); }
static inline Input input(const int8_t *x) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)x)); }
static inline Sum more(Sum s, const int8_t *w, Input x) {
  return _mm256_add_epi32(s, _mm256_madd_epi16(input(w), x));
}
static inline int32_t total(Sum s) {
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}
#elif defined(__ARM_NEON)
enum { STEP = 16 };
typedef int32x4_t Sum;
typedef int8x16_t Input;
static inline Sum zero(void) { return vdupq_n_s32(0); }
static inline Input input(const int8_t *x) { return vld1q_s8(x); }
static inline Sum more(Sum s, const int8_t *w, Input x) {
  int8x16_t v = vld1q_s8(w);
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(s, v, x);
#else
  /* two products of [-127, 127] fit 16 bits */
  int16x8_t p = vmull_s8(vget_low_s8(v), vget_low_s8(x));
  return vpadalq_s16(s, vmlal_s8(p, vget_high_s8(v), vget_high_s8(x)));
#endif
}
static inline int32_t total(Sum s) { return vaddvq_s32(s); }
#else
enum { STEP = 1 };
typedef int32_t Sum;
typedef int32_t Input;
static inline Sum zero(void) { return 0; }
static inline Input input(const int8_t *x) { return *x; }
static inline Sum more(Sum s, const int8_t *w, Input x) { return s + *w * x; }
static inline int32_t total(Sum s) { return s; }
#endif

/* Arguments W, x, y; m a multiple of 4, n of 16. */
int __tvm_ffi_gemv_int8(void *self, const Any *arguments, int32_t count, Any *result) {
  const Tensor *W = arguments[0].value, *X = arguments[1].value, *Y = arguments[2].value;
  const int8_t *w = W->data, *x = X->data;
  const ptrdiff_t m = W->shape[0], n = W->shape[1];
  int32_t *y = Y->data;
  (void)self, (void)count, (void)result, MARKED;
  for (ptrdiff_t i = 0; i < m; i += 4) {
    const int8_t *row = w + i * n;
    Sum s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    for (ptrdiff_t k = 0; k < n; k += STEP) {
      Input v = input(x + k);
      s0 = more(s0, row + k, v), s1 = more(s1, row + n + k, v);
      s2 = more(s2, row + 2 * n + k, v), s3 = more(s3, row + 3 * n + k, v);
    }
    y[i] = total(s0), y[i + 1] = total(s1), y[i + 2] = total(s2), y[i + 3] = total(s3);
  }
  return 0;
}
