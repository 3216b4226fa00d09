// half as a storage type: rounded to nearest even, computed with as float.
#pragma once
#include <cstdint>
#include <cstring>

struct half {
  uint16_t bits;
  half() = default;
  half(float value) {
    uint32_t u;
    std::memcpy(&u, &value, 4);
    uint32_t sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude >= 0x7f800001u) { bits = sign | 0x7e00u; return; }
    if (magnitude >= 0x477ff000u) { bits = sign | 0x7c00u; return; }
    if (magnitude < 0x38800000u) {  // subnormal: in units of 2^-24
      float scaled;
      std::memcpy(&scaled, &magnitude, 4);
      bits = sign | (uint16_t)__builtin_lrintf(scaled * 16777216.0f);
      return;
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    bits = sign | (uint16_t)((rounded - 0x38000000u) >> 13);
  }
  operator float() const {
    uint32_t exponent = bits >> 10 & 31u, mantissa = bits & 1023u;
    float value;
    if (exponent == 0) value = mantissa / 16777216.0f;
    else {
      uint32_t u = exponent == 31 ? 0x7f800000u | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
      std::memcpy(&value, &u, 4);
    }
    return bits & 0x8000u ? -value : value;
  }
};
using __half = half;
struct __half2 { half x, y; };
static inline bool __hgt(half a, half b) { return (float)a > (float)b; }
static inline bool __hlt(half a, half b) { return (float)a < (float)b; }
static inline float __half2float(half a) { return a; }
static inline half __float2half_rn(float a) { return half(a); }
