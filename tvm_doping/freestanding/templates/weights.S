/* The weights, read-only, as part of the program. */
#if defined(__APPLE__)
    .section __TEXT,__const
    .globl _${prefix}_weights
    .p2align 6
_${prefix}_weights:
    .incbin "weights.bin"
#else
    .section .rodata.${prefix}_weights,"a",%progbits
    .globl ${prefix}_weights
    .type ${prefix}_weights,%object
    .size ${prefix}_weights,$weight_bytes
    .p2align 6
${prefix}_weights:
    .incbin "weights.bin"
    .section .note.GNU-stack,"",%progbits
#endif
