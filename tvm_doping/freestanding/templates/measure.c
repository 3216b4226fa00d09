/* How much stack the model's functions use: they run on a stack that was painted before. Written by tvm_doping $version.
 * POSIX threads; needed for this measurement only.
 */
#include "$prefix.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STACK = 1 << 20, STEPS = $measured_steps, PAINT = 0xA5 };

$arrays
static union {
    double align;
    unsigned char bytes[${PREFIX}_MEMORY_SIZE];
} memory;
static struct $prefix *model;

static void *nothing(void *unused)
{
    return unused;
}

static void *work(void *unused)
{
    int error = $call;

    if (error) fprintf(stderr, "%s\n", ${prefix}_error_text(error));
    return unused;
}

static long used(void *(*function)(void *))
{
    pthread_attr_t attributes;
    pthread_t thread;
    void *stack;
    long left = 0;

    if (posix_memalign(&stack, 4096, STACK)) exit(2);
    memset(stack, PAINT, STACK);
    pthread_attr_init(&attributes);
    if (pthread_attr_setstack(&attributes, stack, STACK)) exit(2);
    if (pthread_create(&thread, &attributes, function, NULL)) exit(2);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    while (left < STACK && ((unsigned char *)stack)[left] == PAINT) left++;
    free(stack);
    return STACK - left;
}

int main(void)
{
    int error;
$weights_load
    error = ${prefix}_init(&model, &memory, sizeof memory$weights_arguments);
    if (error) {
        fprintf(stderr, "%s\n", ${prefix}_error_text(error));
        return 2;
    }
    printf("stack %ld\nmemory %zu\n", used(work) - used(nothing), sizeof memory);
    return 0;
}
