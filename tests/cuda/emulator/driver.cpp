// The part of CUDA's driver and runtime that TVM's runtime and sessions call, with emulated kernels: memory is the host's. Streams
// run at once, or as late as they may (emulator_late): when something waits for them, so that an order left out shows; 2: others then
// take turns with the one that is waited for, so that memory that two of them use shows.
// A module is found by its image, which `emulator_register` has tied to a library of kernels compiled for the host.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "include/fibers.h"

using Run = std::string (*)(void* closure, const int* grid, const int* block, size_t shared, bool together, unsigned order);
using Bind = void* (*)(void** params);
struct Kernel {
  Run run;
  Bind bind;
};
struct Call {
  std::function<int()> run;
  std::function<bool()> ready = [] { return true; };  // whether it would wait for no other stream
};
struct Stream {
  bool capturing = false;
  std::vector<std::function<int()>> recorded;
  std::deque<Call> waiting;
  long submitted = 0, done = 0;  // calls
  bool busy = false;             // in the middle of one
};
struct Event {
  void* stream = nullptr;
  long after = 0;  // calls of the stream
};
struct Graph {
  std::vector<std::function<int()>> calls;
};
struct Attribute {
  int id;
  char padding[4];
  int value;
  char rest[60];
};
struct Config {
  unsigned grid[3], block[3], shared;
  void* stream;
  Attribute* attributes;
  unsigned count;
};

static std::map<std::string, std::string> images;  // the image's first bytes -> a library
static std::map<void*, std::pair<void*, size_t>> allocations;
static std::string last_error = "no error";
static std::vector<std::string> log_lines;
static Stream default_stream;
static std::set<Stream*> streams;
static std::set<void*> pinned;
static std::recursive_mutex mutex;
static int late = 0;
static int late_error = 0;
static unsigned order = 0;
static int multiprocessors = 132;
static const size_t SHARED = 232448;  // of a block, sm_90
static const int COOPERATIVE = 2;     // CU_LAUNCH_ATTRIBUTE_COOPERATIVE

static Stream& stream_of(void* handle) { return (size_t)handle > 2 ? *(Stream*)handle : default_stream; }
static int fail(int code, const std::string& text) {
  last_error = text;
  return code;
}
static int submit(void* handle, std::function<int()> call) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  Stream& stream = stream_of(handle);
  if (stream.capturing) return stream.recorded.push_back(call), 0;
  ++stream.submitted;
  if (late) return stream.waiting.push_back({call}), 0;
  ++stream.done;
  return call();
}
static void take(Stream& stream) {
  auto call = stream.waiting.front();
  stream.waiting.pop_front();
  stream.busy = true;
  if (int error = call.run()) late_error = error;
  stream.busy = false;
  ++stream.done;
}
static int drain(Stream& stream, long until) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  while (stream.done < until && !stream.waiting.empty()) {
    take(stream);
    if (late != 2) continue;
    for (auto other : std::vector<Stream*>(streams.begin(), streams.end()))
      if (!other->busy && other != &stream && !other->waiting.empty() && other->waiting.front().ready()) take(*other);
  }
  int error = late_error;
  late_error = 0;
  return error;
}
static bool live(void* handle) { return (size_t)handle <= 2 || streams.count((Stream*)handle); }
static bool on_gpu(const void* at) {
  auto next = allocations.upper_bound((void*)at);
  if (next == allocations.begin()) return false;
  --next;
  return (char*)at < (char*)next->second.first + next->second.second;
}
static int drain_all() {
  int error = drain(default_stream, default_stream.submitted);
  for (auto stream : streams)
    if (int its = drain(*stream, stream->submitted)) error = its;
  return error;
}

extern "C" {
void emulator_register(const char* image, size_t size, const char* library) { images[std::string(image, size)] = library; }
void emulator_order(unsigned value) { order = value; }
void emulator_late(int value) { drain_all(), late = value; }
void emulator_multiprocessors(int count) { multiprocessors = count; }
size_t emulator_log(char* out, size_t room) {
  std::string all;
  for (auto& line : log_lines) all += line + "\n";
  if (room > all.size()) std::memcpy(out, all.c_str(), all.size() + 1), log_lines.clear();
  return all.size();
}

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int number) { return *device = number, 0; }
int cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size, "emulated"), 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  // compute capability, multiprocessors
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? multiprocessors : attribute == 97 ? (int)SHARED : 1024;
  return 0;
}
int cuGetErrorName(int, const char** text) { return *text = last_error.c_str(), 0; }
int cuGetErrorString(int, const char** text) { return *text = last_error.c_str(), 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuTensorMapEncodeTiled(...) { return 801; }
int cuModuleLoadData(void** module, const void* image) {
  for (auto& [key, library] : images)
    if (!std::memcmp(image, key.data(), key.size())) {
      *module = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
      return *module ? 0 : fail(200, dlerror());
    }
  return fail(200, "an image that no library was registered for");
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  auto run = (Run)dlsym(module, "emulated_run");
  auto bind = (Bind)dlsym(module, (std::string("bind_") + name).c_str());
  if (!run || !bind) return fail(500, std::string("no kernel ") + name);
  *function = new Kernel{run, bind};
  return 0;
}
int cuLaunchKernelEx(const Config* config, void* function, void** params, void**) {
  auto kernel = (Kernel*)function;
  bool together = false;
  for (unsigned i = 0; i < config->count; ++i)
    if (config->attributes[i].id == COOPERATIVE) together = config->attributes[i].value;
  int grid[3] = {(int)config->grid[0], (int)config->grid[1], (int)config->grid[2]};
  std::vector<int> block(config->block, config->block + 3);
  int threads = block[0] * block[1] * block[2];
  size_t shared = config->shared;
  if (shared > SHARED) return fail(1, "more shared memory than a block may take");
  if (together && grid[0] * grid[1] * grid[2] > multiprocessors * (int)(SHARED / std::max<size_t>(shared, SHARED / 2)))
    return fail(720, "too many blocks in cooperative launch");
  log_lines.push_back("grid " + std::to_string(grid[0]) + "x" + std::to_string(grid[1]) + " threads " + std::to_string(threads) +
                      " shared " + std::to_string(shared) + (together ? " cooperative" : "") +
                      (stream_of(config->stream).capturing ? " captured" : ""));
  void* closure = kernel->bind(params);
  auto copy = std::vector<int>(grid, grid + 3);
  return submit(config->stream, [=]() {
    std::string error = kernel->run(closure, copy.data(), block.data(), shared, together, order);
    return error.empty() ? 0 : fail(719, error);
  });
}

int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }
const char* cudaGetErrorName(int) { return "emulated"; }
const char* cudaGetErrorString(int) { return last_error.c_str(); }
int cudaSetDevice(int) { return 0; }
int cudaGetDevice(int* device) { return *device = 0, 0; }
int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) { return cuDeviceGetAttribute(value, attribute, device); }
int cudaGetDeviceProperties(void*, int) { return fail(801, "no properties"); }
int cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = (size_t)1 << 33, 0; }

// Memory ends at a page that nobody may touch, and begins as NaN.
int cudaMalloc(void** out, size_t size) {
  size_t room = (size + 63) / 64 * 64, page = 4096, whole = (room + page - 1) / page * page + page;
  char* base = (char*)mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return fail(2, "out of memory");
  mprotect(base + whole - page, page, PROT_NONE);
  *out = base + whole - page - room;
  std::memset(*out, 0xff, room);
  std::lock_guard<std::recursive_mutex> lock(mutex);
  allocations[*out] = {base, whole};
  return 0;
}
int cudaFree(void* at) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  drain_all();
  auto found = allocations.find(at);
  if (found == allocations.end()) return at ? fail(1, "memory that was not allocated") : 0;
  munmap(found->second.first, found->second.second);
  allocations.erase(found);
  return 0;
}
int cudaMallocHost(void** out, size_t size) {
  *out = std::aligned_alloc(64, (size + 63) / 64 * 64);
  return pinned.insert(*out), 0;
}
int cudaFreeHost(void* at) {
  drain_all(), pinned.erase(at);
  return std::free(at), 0;
}
// Memory of the host that is not pinned is copied at once into a place of the driver's, or waited for.
int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void* stream) {
  bool host = !on_gpu(from) && !pinned.count((void*)from);
  if (host && !stream_of(stream).capturing) {
    std::string staged((const char*)from, size);
    return submit(stream, [=]() { return std::memmove(to, staged.data(), size), 0; });
  }
  int error = submit(stream, [=]() { return std::memmove(to, from, size), 0; });
  if (!on_gpu(to) && !pinned.count(to) && !stream_of(stream).capturing) return drain(stream_of(stream), stream_of(stream).submitted);
  return error;
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, void* stream) {
  return cudaMemcpyAsync(to, from, size, 0, stream);
}
int cudaMemsetAsync(void* to, int byte, size_t size, void* stream) {
  return submit(stream, [=]() { return std::memset(to, byte, size), 0; });
}
int cudaStreamCreate(void** stream) {
  auto made = new Stream;
  streams.insert(made);
  return *stream = made, 0;
}
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) {
  int error = drain(stream_of(stream), stream_of(stream).submitted);
  streams.erase((Stream*)stream);
  return delete (Stream*)stream, error;
}
int cudaStreamSynchronize(void* stream) { return drain(stream_of(stream), stream_of(stream).submitted); }
int cudaEventCreate(void** event) { return *event = new Event, 0; }
int cudaEventCreateWithFlags(void** event, unsigned) { return cudaEventCreate(event); }
int cudaEventDestroy(void* event) { return delete (Event*)event, 0; }
int cudaEventRecord(void* event, void* stream) {
  if (!live(stream)) return fail(400, "a stream that was destroyed");
  return *(Event*)event = {stream, stream_of(stream).submitted}, 0;
}
static int reach(Event event) { return live(event.stream) ? drain(stream_of(event.stream), event.after) : 0; }
int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto then = *(Event*)event;
  int error = submit(stream, [=]() { return reach(then); });
  if (late && !stream_of(stream).waiting.empty())
    stream_of(stream).waiting.back().ready = [=]() { return !live(then.stream) || stream_of(then.stream).done >= then.after; };
  return error;
}
int cudaEventSynchronize(void* event) { return reach(*(Event*)event); }
int cudaEventElapsedTime(float* ms, void*, void*) { return *ms = 1, 0; }
int cudaStreamBeginCapture(void* stream, int) {
  if (!stream) return fail(900, "the default stream cannot be captured");
  stream_of(stream).capturing = true;
  return 0;
}
int cudaStreamEndCapture(void* stream, void** graph) {
  Stream& ended = stream_of(stream);
  ended.capturing = false;
  *graph = new Graph{std::move(ended.recorded)};
  ended.recorded.clear();
  return 0;
}
int cudaGraphInstantiate(void** exec, void* graph, unsigned long long) { return *exec = new Graph(*(Graph*)graph), 0; }
int cudaGraphLaunch(void* exec, void* stream) {
  log_lines.push_back("graph");
  return submit(stream, [=]() {
    for (auto& call : ((Graph*)exec)->calls)
      if (int error = call()) return error;
    return 0;
  });
}
int cudaGraphDestroy(void* graph) { return delete (Graph*)graph, 0; }
int cudaGraphExecDestroy(void* exec) { return delete (Graph*)exec, 0; }
}
