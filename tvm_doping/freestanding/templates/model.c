/* $title: the order of its kernels. Written by tvm_doping $version; $prefix.h describes the functions. */
#include "$prefix.h"

#include <string.h>

/* kernels.o. Weights, state and everything in the arena lie at multiples of 64 bytes, which the kernels rely on. */
$declarations
struct $prefix {
    const unsigned char *weights;
    unsigned char *state, *arena;
};

enum { ALIGNMENT = 64, HEAD = 64, STATE_SIZE = $state_bytes };

$weights_source$copy_function$advance
static int check_cpu(void)
{
$check_cpu    return ${PREFIX}_OK;
}

int ${prefix}_init(struct $prefix **model, void *memory, size_t size$weights_parameters)
{
    unsigned char *start = (unsigned char *)memory;
    struct $prefix *self;

    if (!model || !memory$weights_null) return ${PREFIX}_ERROR_NULL;
    if (size < ${PREFIX}_MEMORY_SIZE) return ${PREFIX}_ERROR_MEMORY;
    if (check_cpu()) return ${PREFIX}_ERROR_CPU;
$weights_check    start += (ALIGNMENT - (uintptr_t)start % ALIGNMENT) % ALIGNMENT;
    self = (struct $prefix *)(void *)start;
    self->weights = $weights_start;
    self->state = start + HEAD;
    self->arena = start + HEAD + STATE_SIZE;
    *model = self;
    return ${prefix}_reset(self);
}

int ${prefix}_reset(struct $prefix *model)
{
    if (!model) return ${PREFIX}_ERROR_NULL;
    memset(model->state, 0, STATE_SIZE);
    return ${PREFIX}_OK;
}
$functions
const char *${prefix}_error_text(int error)
{
    switch (error) {
    case ${PREFIX}_OK: return "no error";
    case ${PREFIX}_ERROR_NULL: return "a pointer is null";
    case ${PREFIX}_ERROR_MEMORY: return "fewer than ${PREFIX}_MEMORY_SIZE bytes of memory";
    case ${PREFIX}_ERROR_WEIGHTS: return "not the weights of this model, or not at a multiple of 64 bytes";
    case ${PREFIX}_ERROR_CPU: return "the CPU lacks instructions that the code needs ($features)";
    case ${PREFIX}_ERROR_STEPS: return "no steps$too_many";
    case ${PREFIX}_ERROR_INPUT: return "an input is out of range";
    default: return "no error of this model";
    }
}
