/* Calls of a compiled language model ("lm", --weights file) in random order with random arguments: ./fuzz weights.bin CALLS SEED
 *
 * Every buffer ends where a page begins that nobody may touch, and begins behind another: the kernels, which no sanitizer looks
 * into, read and write nothing outside either. What is refused must change nothing. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lm.h"

enum { PAGE = 4096, TOKENS = 300, MOST_STEPS = 11, INSTANCES = 3 };

static uint64_t seed;

static uint64_t below(uint64_t bound)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % bound;
}

static unsigned char *guarded(size_t size) /* the bytes that end at a forbidden page */
{
    size_t whole = (size + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
    unsigned char *start = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (start == MAP_FAILED || mprotect(start + PAGE, whole - 2 * PAGE, PROT_READ | PROT_WRITE)) abort();
    return start + whole - PAGE - size;
}

static void must(int holds, const char *what)
{
    if (holds) return;
    fprintf(stderr, "not so: %s\n", what);
    exit(1);
}

static void random_bits(void *at, size_t size) /* NaN, infinities and denormals among them */
{
    for (size_t i = 0; i < size; i++) ((unsigned char *)at)[i] = (unsigned char)below(256);
}

int main(int count, char **words)
{
    unsigned char *weights = guarded(LM_WEIGHTS_SIZE), *bad = guarded(LM_WEIGHTS_SIZE + 64), *memory[INSTANCES];
    float *output[MOST_STEPS + 1];
    int64_t *tokens[MOST_STEPS + 1];
    struct lm *model[INSTANCES] = {0};
    struct lm_state *state = (struct lm_state *)(void *)guarded(sizeof *state), *after = malloc(sizeof *after);
    FILE *file = count > 3 ? fopen(words[1], "rb") : NULL;
    long calls, refused = 0;

    if (!file || fread(weights, 1, LM_WEIGHTS_SIZE, file) != LM_WEIGHTS_SIZE) return 2;
    fclose(file);
    calls = atol(words[2]);
    seed = strtoull(words[3], NULL, 10) * 2654435761u + 88172645463325252u;
    for (int i = 0; i < INSTANCES; i++) memory[i] = guarded(LM_MEMORY_SIZE);
    for (int t = 0; t <= MOST_STEPS; t++) {
        tokens[t] = (int64_t *)(void *)guarded((size_t)t * 8);
        output[t] = (float *)(void *)guarded((size_t)t * TOKENS * 4);
    }
    for (long call = 0; call < calls; call++) {
        uint64_t which = below(INSTANCES), steps = below(MOST_STEPS + 1), kind = below(8);
        struct lm *self = below(16) ? model[which] : NULL;
        int error = 0;

        if (kind == 0) { /* init: sound, or in too little memory, or with weights of another size, place or content */
            size_t size = below(3) ? LM_MEMORY_SIZE : below(LM_MEMORY_SIZE);
            size_t offset = below(3) ? 0 : 1 + below(63), length = below(3) ? LM_WEIGHTS_SIZE : below(2 * LM_WEIGHTS_SIZE);
            struct lm *made = model[which];
            int damaged = !below(3);

            memcpy(bad + offset, weights, LM_WEIGHTS_SIZE);
            if (damaged) bad[offset + (below(2) ? below(32) : 64 + below(LM_WEIGHTS_SIZE - 64))] ^= (unsigned char)(1 + below(255));
            if (!offset && !damaged && length == LM_WEIGHTS_SIZE)
                error = lm_init(below(16) ? &made : NULL, below(16) ? memory[which] : NULL, size, weights, length);
            else {
                error = lm_init(&made, memory[which], size, below(16) ? bad + offset : NULL, length);
                must(error != LM_OK, "weights of another size, place or content are refused");
            }
            must(size == LM_MEMORY_SIZE || error, "too little memory is refused");
            must(!error || made == model[which], "an init that is refused changes nothing");
            model[which] = made;
        } else if (kind == 1)
            error = lm_reset(self);
        else if (kind == 2)
            error = lm_get_state(self, below(16) ? state : NULL);
        else if (kind == 3) {
            random_bits(state, sizeof *state);
            error = lm_set_state(self, below(16) ? state : NULL);
        } else {
            int inside = 1, known = self && lm_get_state(self, state) == LM_OK;

            if (kind == 4) steps = 1;
            for (uint64_t t = 0; t < steps; t++) {
                int odd = !below(60);
                tokens[steps][t] = odd ? (int64_t)(seed * (below(2) ? 1 : ~0ull)) : (int64_t)below(TOKENS);
                inside &= tokens[steps][t] >= 0 && tokens[steps][t] < TOKENS;
            }
            error = kind == 4 ? lm_step(self, tokens[1], output[1]) : lm_run(self, steps, tokens[steps], output[steps]);
            must((error == LM_OK) == (self && steps && inside), "what is out of range is refused, and nothing else");
            if (error && known) {
                lm_get_state(self, after);
                must(!memcmp(state, after, sizeof *after), "a call that is refused changes no state");
            }
        }
        must(error >= 0 && error <= LM_ERROR_INPUT && lm_error_text(error)[0], "every error has a name");
        refused += error != 0;
    }
    free(after);
    printf("%ld calls, %ld refused\n", calls, refused);
    return 0;
}
