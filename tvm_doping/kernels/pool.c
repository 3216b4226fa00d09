/* The threads of a session. They run the regions of a kernel together: each calls the region's function with its number.
 *
 * A library starts regions through two pointers that TVM's code generator leaves in it. doping_install turns them to the
 * functions below; which pool a call uses is a property of the calling thread (doping_use), so that sessions do not meet.
 * Plain C11 and pthreads.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { void* sync_handle; int32_t num_task; } Group; /* TVMParallelGroupEnv */
typedef int (*Region)(int task, Group* group, void* data);      /* FTVMParallelLambda */

extern int (*__TVMBackendParallelLaunch)(Region, void*, int);
extern int (*__TVMBackendParallelBarrier)(int, Group*);

/* A thread waits with pauses, which answers within 100 ns, then asleep. Workers stay AWAKE between steps that follow each other.
 *
 * Where other programs want the cores, a thread can be away for milliseconds, many times what a step takes. So a region does not
 * wait for threads: those that join in time run it, each for a larger share (results do not depend on how many there are).
 * Who is late costs time once, then for `rest` times as long the calling thread runs alone: a few per cent. Threads that come but
 * are slow are given some regions first: after a pause their cores' caches are cold, and the next region is faster. */
enum { US = 1000, SPIN = 50 * US, AWAKE = 200 * US, HURRY = 2 * US, SLOW = 3 };

typedef struct Pool {
    _Alignas(64) atomic_ullong call;    /* region's number << 32 | CLOSED | how many workers have joined it */
    _Alignas(64) atomic_ullong started; /* number of the region that was started last */
    _Alignas(64) atomic_ullong arrived; /* at the barrier */
    _Alignas(64) atomic_ullong passed;  /* barriers passed */
    _Alignas(64) atomic_int sleeping;
    Region run;
    void* data;
    Group group;
    atomic_int stop, failed;
    atomic_ullong late;         /* ns that threads waited at the region's barriers */
    uint64_t patience, rest;    /* how long a region is held up for a thread, ns */
    uint64_t alone_until, hurry_until;
    int count, begun;           /* threads in all; those besides the calling one */
    int slow;                   /* regions in a row at whose barriers threads waited too long */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct Worker { struct Pool* pool; int task, core; uint32_t seen; uint64_t regions; pthread_t thread; } workers[];
} Pool;

static const uint64_t CLOSED = 1u << 31;
static _Thread_local Pool* current;

static inline void pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Until *word >> shift is no longer `seen`; asleep after `spin` ns. Returns how long that took, 0 for a moment. */
static uint64_t await(Pool* pool, atomic_ullong* word, int shift, uint64_t seen, uint64_t spin) {
    uint64_t begin = 0, waited = 0;
    for (unsigned i = 1; atomic_load_explicit(word, memory_order_acquire) >> shift == seen; i++) {
        pause_core();
        if (i % 64) continue;
        if (!begin) begin = now();
        waited = now() - begin;
        if (waited < spin) continue;
        pthread_mutex_lock(&pool->lock);
        atomic_fetch_add(&pool->sleeping, 1);
        while (atomic_load(word) >> shift == seen) pthread_cond_wait(&pool->wake, &pool->lock);
        atomic_fetch_sub(&pool->sleeping, 1);
        pthread_mutex_unlock(&pool->lock);
        return now() - begin;
    }
    return waited;
}

/* Sequentially consistent, as `sleeping` is: a thread that is about to sleep sees the new value, or is seen here. */
static void set(Pool* pool, atomic_ullong* word, uint64_t value) {
    atomic_store(word, value);
    if (atomic_load(&pool->sleeping)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void barrier(Pool* pool) {
    uint64_t before = atomic_load_explicit(&pool->passed, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)pool->group.num_task) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        set(pool, &pool->passed, before + 1);
    } else {
        uint64_t waited = await(pool, &pool->passed, 0, before, SPIN);
        if (waited) atomic_fetch_add(&pool->late, waited);
    }
}

static int on_barrier(int task, Group* group) {
    (void)task;
    if (group->sync_handle) barrier(group->sync_handle);
    return 0;
}

/* Whether a worker is in time for the region that it has seen; *order: how many were before it. */
static int join(Pool* pool, uint32_t region, int* order) {
    unsigned long long call = atomic_load(&pool->call);
    while (call >> 32 == region && !(call & CLOSED))
        if (atomic_compare_exchange_weak(&pool->call, &call, call + 1)) {
            *order = (int)(uint32_t)call;
            return 1;
        }
    return 0;
}

static void* work(void* argument) {
    struct Worker* self = argument;
    Pool* pool = self->pool;
#ifdef __linux__
    if (self->core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(self->core, &set);
        sched_setaffinity(0, sizeof set, &set);
    }
#endif
    for (;;) {
        int order;
        await(pool, &pool->call, 32, self->seen, AWAKE);
        if (atomic_load(&pool->stop)) return NULL;
        self->seen = (uint32_t)(atomic_load(&pool->call) >> 32);
        if (!join(pool, self->seen, &order)) continue;
        await(pool, &pool->started, 0, (uint32_t)(self->seen - 1), SPIN);
        /* of a team with all, the same rows each time: they are in this core's cache */
        int task = pool->group.num_task == pool->count ? self->task : order + 1;
        self->regions++;
        if (pool->run(task, &pool->group, pool->data)) atomic_store(&pool->failed, 1);
        barrier(pool);
    }
}

/* The next region, with those that join in time: how many they are with the calling thread. */
static int team(Pool* pool, uint64_t begin) {
    uint64_t number = (uint32_t)((atomic_load(&pool->call) >> 32) + 1), all = number << 32 | (unsigned)(pool->count - 1);
    uint64_t patience = begin < pool->hurry_until ? HURRY : pool->patience;
    set(pool, &pool->call, number << 32);
    while (atomic_load_explicit(&pool->call, memory_order_acquire) != all && now() - begin < patience) pause_core();
    int joined = (int)(uint32_t)atomic_fetch_or(&pool->call, CLOSED), size = joined + 1;
    pool->group.num_task = size;
    set(pool, &pool->started, number);
    if (size == 1) pool->alone_until = now() + pool->rest * (now() - begin);
    else if (size < pool->count) pool->hurry_until = now() + pool->rest * pool->patience;
    return size;
}

static int on_launch(Region run, void* data, int tasks) {
    (void)tasks;
    Pool* pool = current;
    Group alone = {NULL, 1};
    uint64_t begin = pool ? now() : 0;
    if (!pool || begin < pool->alone_until) return run(0, &alone, data);
    pool->run = run, pool->data = data;
    atomic_store_explicit(&pool->failed, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->late, 0, memory_order_relaxed);
    int size = team(pool, begin);
    if (size == 1) return run(0, &alone, data);
    int failed = run(0, &pool->group, data);
    barrier(pool);
    uint64_t took = now() - begin;
    /* shares may differ, but not by half of the whole */
    if (atomic_load(&pool->late) <= took / 2 * (unsigned)(size - 1)) pool->slow = 0;
    else if (pool->slow < SLOW) pool->slow++;
    else pool->alone_until = begin + took + pool->rest * took;
    return failed || atomic_load(&pool->failed) ? -1 : 0;
}

/* What follows is called through TVM's calling convention, as functions of the library: library["doping_open"]. */
typedef struct { int32_t type; uint32_t zero; int64_t value; } Value; /* TVMFFIAny */
enum { INTEGER = 1 };

static void close_pool(Pool* pool) {
    atomic_store(&pool->stop, 1);
    set(pool, &pool->call, ((atomic_load(&pool->call) >> 32) + 1) << 32 | CLOSED);
    for (int i = 0; i < pool->begun; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

int __tvm_ffi_doping_install(void* self, const Value* arguments, int count, Value* result) {
    (void)self, (void)arguments, (void)count, (void)result;
    __TVMBackendParallelLaunch = on_launch;
    __TVMBackendParallelBarrier = on_barrier;
    return 0;
}

/* (pool): the calling thread's regions run in it from now on; 0: in the thread alone. */
int __tvm_ffi_doping_use(void* self, const Value* arguments, int count, Value* result) {
    (void)self, (void)count, (void)result;
    current = (Pool*)(intptr_t)arguments[0].value;
    return 0;
}

int __tvm_ffi_doping_close(void* self, const Value* arguments, int count, Value* result) {
    (void)self, (void)count, (void)result;
    close_pool((Pool*)(intptr_t)arguments[0].value);
    return 0;
}

/* (pool, worker) -> how many regions it has run. */
int __tvm_ffi_doping_regions(void* self, const Value* arguments, int count, Value* result) {
    (void)self, (void)count;
    Pool* pool = (Pool*)(intptr_t)arguments[0].value;
    result->type = INTEGER, result->zero = 0, result->value = (int64_t)pool->workers[arguments[1].value].regions;
    return 0;
}

/* (patience, rest, core, ...) -> pool: one thread for each core given, pinned to it (-1: not pinned), and the calling one.
 * 0 on failure. */
int __tvm_ffi_doping_open(void* self, const Value* arguments, int count, Value* result) {
    (void)self;
    size_t size = sizeof(Pool) + (size_t)(count - 2) * sizeof(struct Worker);
    Pool* pool = aligned_alloc(64, (size + 63) / 64 * 64);
    result->type = INTEGER, result->zero = 0, result->value = 0;
    if (!pool) return 0;
    memset(pool, 0, size);
    pool->count = count - 1;
    pool->patience = (uint64_t)arguments[0].value, pool->rest = (uint64_t)arguments[1].value;
    pool->group.sync_handle = pool;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 0; i + 2 < count; i++) {
        struct Worker* worker = &pool->workers[i];
        *worker = (struct Worker){.pool = pool, .task = i + 1, .core = (int)arguments[i + 2].value};
        if (pthread_create(&worker->thread, NULL, work, worker)) {
            close_pool(pool);
            return 0;
        }
        pool->begun++;
    }
    result->value = (int64_t)(intptr_t)pool;
    return 0;
}
