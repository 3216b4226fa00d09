/* Runs the model on golden.bin, inputs and results by PyTorch, and compares. Written by tvm_doping $version.
 *
 * Allowed is $tolerance times the larger of 1 and the largest golden value.
 *
 *     ./$prefix [FOLDER]     where golden.bin$weights_too is; default: here
 */
#include "$prefix.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = $golden_steps };

$arrays
static union { /* an instance, in memory that is there from the start */
    double align;
    unsigned char bytes[${PREFIX}_MEMORY_SIZE];
} memory;
static struct $prefix *model;
static int failed;

static FILE *open_file(const char *folder, const char *name)
{
    char path[4096];
    FILE *file;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "no file %s\n", path);
        exit(2);
    }
    return file;
}

static void read_values(FILE *file, void *values, size_t bytes)
{
    if (fread(values, 1, bytes, file) != bytes) {
        fprintf(stderr, "a file is too short\n");
        exit(2);
    }
}

static void check(int error)
{
    if (error) {
        fprintf(stderr, "%s\n", ${prefix}_error_text(error));
        exit(2);
    }
}

static void report(const char *name, const char *way, double error, double allowed)
{
    int ok = error <= allowed; /* false for a NaN */

    printf("%-24s %s: difference %.3g, allowed %.3g%s\n", name, way, error, allowed, ok ? "" : ": FAILED");
    failed |= !ok;
}

$comparisons
int main(int count, char **arguments)
{
    const char *folder = count > 1 ? arguments[1] : ".";
    FILE *file = open_file(folder, "golden.bin");
$load
    fclose(file);
$weights_load    check(${prefix}_init(&model, &memory, sizeof memory$weights_arguments));
$runs    printf("%s\n", failed ? "FAILED" : "all as PyTorch gave it");
    return failed;
}
