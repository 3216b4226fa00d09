// Threads of a grid as fibers of one thread: each runs until it waits, so that a barrier left out shows as a wrong result in one
// of the orders in which the fibers of a block may run.
#pragma once
#include <ucontext.h>

#include <algorithm>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace emulated {

struct Index { int x, y, z; };
struct Warp {
  uint64_t slots[32];
  int arrived = 0, generation = 0;
};
struct Group {  // a block
  Index index;
  int live = 0, arrived = 0, generation = 0;
  std::vector<Warp> warps;
  std::vector<char> memory;
  std::vector<std::vector<char>> fixed;
};
struct Fiber {
  Index thread;
  int linear;
  Group* group;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  int* waits = nullptr;  // for a generation to differ from `seen`
  int seen = 0;
};
struct Closure {
  virtual ~Closure() = default;
  virtual void run() = 0;
};

inline Fiber* current;
inline ucontext_t scheduler;
inline Closure* body;
constexpr size_t STACK = 64 * 1024;

inline void yield() { swapcontext(&current->context, &scheduler); }
inline void wait(int& arrived, int& generation, int all) {
  if (++arrived == all) {
    arrived = 0;
    ++generation;
    return;
  }
  current->waits = &generation;
  current->seen = generation;
  yield();
}
inline void wait_for_block() {
  Group& group = *current->group;
  wait(group.arrived, group.generation, group.live);
}
inline Warp& warp() { return current->group->warps[current->linear / 32]; }
inline void wait_for_warp(unsigned mask) { wait(warp().arrived, warp().generation, __builtin_popcount(mask)); }
inline void* shared() { return current->group->memory.data(); }
inline void* fixed(size_t number, size_t bytes) {
  auto& pieces = current->group->fixed;
  if (pieces.size() <= number) pieces.resize(number + 1);
  if (pieces[number].size() < bytes) pieces[number].assign(bytes, (char)0xff);
  return pieces[number].data();
}
inline void start() {
  body->run();
  current->done = true;
  yield();
}

// Runs blocks [from, to) of the grid side by side; "" or what went wrong. order: 0 forward, 1 backward, 2 backward, each warp as far
// as it gets before the next; others shuffle by it.
inline std::string run_blocks(Closure& kernel, Index grid, Index block, size_t shared_bytes, int from, int to, unsigned order) {
  int threads = block.x * block.y * block.z;
  std::vector<std::unique_ptr<Group>> groups;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (int b = from; b < to; ++b) {
    groups.push_back(std::make_unique<Group>());
    Group& group = *groups.back();
    group.index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    group.live = threads;
    group.warps.resize((threads + 31) / 32);
    group.memory.assign(shared_bytes + 16, (char)0xff);  // NaN: what was not written shows
    for (int t = 0; t < threads; ++t) {
      fibers.push_back(std::make_unique<Fiber>());
      Fiber& fiber = *fibers.back();
      fiber.linear = t;
      fiber.thread = {t % block.x, t / block.x % block.y, t / block.x / block.y};
      fiber.group = &group;
      fiber.stack = std::make_unique<char[]>(STACK);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = STACK;
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, (void (*)())start, 0);
    }
  }
  std::vector<Fiber*> turn;
  for (auto& fiber : fibers) turn.push_back(fiber.get());
  if (order == 1 || order == 2) std::reverse(turn.begin(), turn.end());
  if (order > 2) std::shuffle(turn.begin(), turn.end(), std::mt19937(order));
  body = &kernel;
  size_t left = turn.size();
  // A grid-wide barrier is waited for by asking again and again: a round in which nobody got on otherwise, a few times, is none.
  for (int idle = 0; left;) {
    bool moved = false;
    size_t width = order == 2 ? 32 : turn.size();
    for (size_t first = 0, again = 0; first < turn.size(); first += again ? 0 : width) {
      again = 0;
      for (size_t i = first; i < std::min(first + width, turn.size()); ++i) {
        Fiber* fiber = turn[i];
        if (fiber->done || (fiber->waits && *fiber->waits == fiber->seen)) continue;
        bool waited = fiber->waits != nullptr;
        fiber->waits = nullptr;
        current = fiber;
        swapcontext(&scheduler, &fiber->context);
        if (fiber->done) {
          --left;
          if (--fiber->group->live && fiber->group->arrived) return "a thread ended while others of its block wait for it";
        }
        bool got_on = waited || fiber->done || fiber->waits;
        moved = moved || got_on;
        again = again || (got_on && order == 2);
      }
    }
    idle = moved ? 0 : idle + 1;
    if (idle > 3) return "all threads wait";
  }
  return "";
}

// A kernel with a copy of its arguments, of 8 bytes at most each: std::tuple would take a third of the time that a kernel compiles.
template <typename... Args> struct Bound : Closure {
  void (*kernel)(Args...);
  uint64_t args[sizeof...(Args) + 1];
  Bound(void (*f)(Args...), void** p) : kernel(f) {
    const size_t sizes[] = {sizeof(Args)..., 0};
    for (size_t i = 0; i < sizeof...(Args); ++i) std::memcpy(&args[i], p[i], sizes[i]);
  }
  template <size_t... I> void call(std::index_sequence<I...>) { kernel(*(Args*)&args[I]...); }
  void run() override { call(std::index_sequence_for<Args...>()); }
};
template <typename... Args> Closure* bind(void (*f)(Args...), void** p) { return new Bound<Args...>(f, p); }

}  // namespace emulated
