/* DLPack's DLTensor and TVM FFI's TVMFFIAny, as their stable C interface lays them out. */
#ifndef TENSOR_H
#define TENSOR_H
#include <stdint.h>

typedef struct {
  void *data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;
typedef struct {
  int32_t type_index;
  uint32_t padding;
  void *value;
} Any;

#endif
