/* $title: $summary.
 *
 * Compiled for $target by tvm_doping $version; README.md says how to use it. Functions return ${PREFIX}_OK or an error. Nothing is
 * allocated, nothing is global: an instance lies in memory that you give, and instances may run in different threads.
 */
#ifndef ${PREFIX}_H
#define ${PREFIX}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ${PREFIX}_BATCH $batch /* streams side by side */
$max_steps#define ${PREFIX}_MEMORY_SIZE $memory /* bytes of an instance, wherever they lie */
$weights_size
enum ${prefix}_error {
    ${PREFIX}_OK = 0,
    ${PREFIX}_ERROR_NULL = 1,    /* a pointer is null */
    ${PREFIX}_ERROR_MEMORY = 2,  /* fewer than ${PREFIX}_MEMORY_SIZE bytes */
    ${PREFIX}_ERROR_WEIGHTS = 3, /* not the weights of this model, or not at a multiple of 64 bytes */
    ${PREFIX}_ERROR_CPU = 4,     /* the CPU lacks instructions that the code needs */
    ${PREFIX}_ERROR_STEPS = 5,   /* no steps$too_many */
    ${PREFIX}_ERROR_INPUT = 6    /* an input is out of range: outside the table that it is looked up in */
};

struct $prefix;
$state_struct
/* Make an instance in `size` bytes of memory, its state zero. It needs no end: the memory is yours. */
int ${prefix}_init(struct $prefix **model, void *memory, size_t size$weights_parameters);

/* Back to the zero state. */
int ${prefix}_reset(struct $prefix *model);
$functions
/* What an error means, in English. */
const char *${prefix}_error_text(int error);

#ifdef __cplusplus
}
#endif

#endif
