/* Runs kernels compiled by TVM without TVM: once for a trace of their blocks, many times for the time that a round of all takes.
   FUNCTIONS, COUNTS and the tensors come from tables.h, which is generated for each program. C99, Linux. */
#define _POSIX_C_SOURCE 200112L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tensor.h"
typedef int Function(void *self, const Any *arguments, int32_t count, Any *result);
enum { TENSOR_POINTER = 7, ARENA = 1 << 28 };

#include "tables.h"

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; i++) fputs(parts[i], stderr);
  exit(3);
}

/* Workspaces are given back in the reverse order: a stack of them. */
static char *arena;
static size_t used;
static void *take(int type, int id, uint64_t size, int code, int bits) {
  void *memory = arena + used;
  (void)type, (void)id, (void)code, (void)bits;
  used += (size + 63) / 64 * 64;
  if (used > ARENA) exit(4);
  return memory;
}
static int give(int type, int id, void *memory) {
  (void)type, (void)id;
  used = (size_t)((char *)memory - arena);
  return 0;
}
extern __attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern __attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *);

static Any arguments[TENSORS];
static void all(void) {
  Any result = {0, 0, NULL};
  for (int k = 0, at = 0; k < KERNELS; at += counts[k], k++)
    if (functions[k](NULL, arguments + at, counts[k], &result)) exit(5);
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* run DATA: one round. run DATA SECONDS: prints the median and the least microseconds of a round. */
int main(int argc, char **argv) {
  static double samples[100000];
  FILE *data = argc > 1 ? fopen(argv[1], "rb") : NULL;
  if (!data || posix_memalign((void **)&arena, 4096, ARENA)) return 2;
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = take;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = give;
  for (int i = 0; i < TENSORS; i++) {
    /* a page of its own for each, and a vector behind its end */
    if (posix_memalign(&tensors[i].data, 4096, sizes[i] + 4096)) return 2;
    if (fread(tensors[i].data, 1, sizes[i], data) != sizes[i]) return 2;
    arguments[i].type_index = TENSOR_POINTER;
    arguments[i].value = &tensors[i];
  }
  all();
  if (argc > 2) {
    double end = now() + atof(argv[2]);
    int count = 0;
    for (int i = 0; i < 3; i++) all();
    while (count < 100000 && (count < 7 || now() < end)) {
      double start = now();
      all();
      samples[count++] = 1e6 * (now() - start);
    }
    qsort(samples, (size_t)count, sizeof(double), ascending);
    printf("%.4f %.4f %d\n", samples[count / 2], samples[0], count);
  }
  for (int i = 0; argc > 3 && i < TENSORS; i++) fwrite(tensors[i].data, 1, sizes[i], stdout);
  return 0;
}
