// The PTX instructions that kernels name, with the registers of a lane as PTX's manual lays matrices out ("Matrix fragments for
// mma.m16n8k16"). `emulation.as_cpp` turns asm("name ..." : outputs : inputs) into ptx_name(outputs, inputs).
#pragma once
#include <cstdint>
#include <cstring>

#include "cuda_fp16.h"
#include "fibers.h"

namespace emulated {

inline float from_half(uint32_t bits) {
  half value;
  value.bits = (uint16_t)bits;
  return value;
}
inline float from_bfloat16(uint32_t bits) {
  uint32_t u = bits << 16;
  float value;
  std::memcpy(&value, &u, 4);
  return value;
}
inline uint32_t to_half(float value) { return half(value).bits; }
inline uint32_t to_bfloat16(float value) {
  uint32_t u;
  std::memcpy(&u, &value, 4);
  if (value != value) return 0x7fffu;
  return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

// What every lane of the warp gives, all of which must come here.
inline void gathered(uint32_t low, uint32_t high, uint32_t (*all)[2]) {
  Warp& warp = emulated::warp();
  warp.slots[current->linear % 32] = (uint64_t)high << 32 | low;
  wait_for_warp(0xffffffffu);
  for (int lane = 0; lane < 32; ++lane) {
    all[lane][0] = (uint32_t)warp.slots[lane];
    all[lane][1] = (uint32_t)(warp.slots[lane] >> 32);
  }
  wait_for_warp(0xffffffffu);
}

// c (16 x 8) += a (16 x 16) b (16 x 8): products exact, their sum rounded once.
inline void mma(float (*widened)(uint32_t), float* const c[4], const uint32_t a[4], const uint32_t b[2]) {
  uint32_t words[3][32][2];
  gathered(a[0], a[1], words[0]);
  gathered(a[2], a[3], words[1]);
  gathered(b[0], b[1], words[2]);
  int g = current->linear % 32 / 4, t = current->linear % 4;
  for (int i = 0; i < 4; ++i) {
    int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = *c[i];
    for (int k = 0; k < 16; ++k) {
      int owner = k % 8 / 2, shift = k % 2 * 16;
      uint32_t x = words[k / 8][row % 8 * 4 + owner][row / 8] >> shift & 0xffffu;
      uint32_t y = words[2][column * 4 + owner][k / 8] >> shift & 0xffffu;
      sum += (double)widened(x) * widened(y);
    }
    *c[i] = (float)sum;
  }
}

}  // namespace emulated

struct uint4 { unsigned x, y, z, w; };

// d = {a, b}: the first in the upper half
static inline void ptx_cvt_rn_f16x2_f32(unsigned& d, float a, float b) { d = emulated::to_half(a) << 16 | emulated::to_half(b); }
static inline void ptx_cvt_rn_bf16x2_f32(unsigned& d, float a, float b) {
  d = emulated::to_bfloat16(a) << 16 | emulated::to_bfloat16(b);
}

#define EMULATED_MMA(name, widened)                                                                                        \
  static inline void ptx_mma_sync_aligned_m16n8k16_row_col_f32_##name##_##name##_f32(                                       \
      float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) { \
    float* const c[4] = {&c0, &c1, &c2, &c3};                                                                               \
    const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};                                                                 \
    emulated::mma(widened, c, a, b);                                                                                        \
  }
EMULATED_MMA(f16, emulated::from_half)
EMULATED_MMA(bf16, emulated::from_bfloat16)
