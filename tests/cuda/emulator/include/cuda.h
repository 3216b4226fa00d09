// What the CUDA C of a kernel needs to compile as C++: its keywords, its indices and its functions, on fibers (fibers.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fibers.h"
#include "ptx.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define threadIdx (emulated::current->thread)
#define blockIdx (emulated::current->group->index)

// A GPU's min and max give the other operand for a NaN.
static inline float max(float a, float b) { return std::fmax(a, b); }
static inline float min(float a, float b) { return std::fmin(a, b); }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static inline void __syncthreads() { emulated::wait_for_block(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::wait_for_warp(mask); }
static inline void __threadfence() {}
static inline unsigned __activemask() { return 0xffffffffu; }
static inline int atomicAdd(int* at, int value) { int old = *at; *at += value; return old; }
static inline float __ldg(const float* at) { return *at; }
static inline float __ldcg(const float* at) { return *at; }
// What a thread reads anew while it waits for other blocks: they must run meanwhile.
static inline int __ldcv(const int* at) { emulated::yield(); return *at; }

template <typename T> static inline T exchanged(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "values of up to 64 bits");
  emulated::Warp& warp = emulated::warp();
  std::memcpy(&warp.slots[emulated::current->linear % 32], &value, sizeof(T));
  emulated::wait_for_warp(mask);
  T result;
  std::memcpy(&result, &warp.slots[source & 31], sizeof(T));
  emulated::wait_for_warp(mask);
  return result;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  return exchanged(mask, v, (emulated::current->linear % 32) / width * width + source % width);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T v, int by, int width = 32) {
  int lane = emulated::current->linear % 32;
  return exchanged(mask, v, lane % width + by < width ? lane + by : lane);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T v, int by, int width = 32) {
  int lane = emulated::current->linear % 32;
  return exchanged(mask, v, lane % width >= by ? lane - by : lane);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
  int lane = emulated::current->linear % 32;
  return exchanged(mask, v, lane ^ with);
}
