/* FlashShard's codecs and optimizer steps for other programs, in plain C: libflashshard_codec.
 *
 * Every function works on memory of the caller, on the calling thread, and keeps nothing. It
 * returns FS_OK, or another status with one line of text in fs_last_error(); then no buffer was
 * changed. Functions may run at the same time on different memory. The formats and formulas are
 * those of docs/numerics.md; results have the same bits on every instruction set.
 *
 * Structs begin with `struct_size`, to be set to sizeof the struct: later versions may append
 * fields, which an older library accepts only when they are zero. Set the rest to zero first: zero
 * stands for "not given".
 */
#ifndef FLASHSHARD_CAPI_FLASHSHARD_H_
#define FLASHSHARD_CAPI_FLASHSHARD_H_

#include <stdint.h>

#if defined(__GNUC__)
#define FS_API __attribute__((visibility("default")))
#else
#define FS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Elements that share a scale; a tensor may be given in pieces that are multiples of it. */
#define FS_GROUP 32
#define FS_NORM_LIMBS 10

typedef enum fs_status {
  FS_OK = 0,
  FS_INVALID_ARGUMENT = 1, /* null pointer, unknown enumerator, wrong struct_size, bad count */
  FS_WRONG_SIZE = 2,       /* a buffer has not exactly the bytes that its contents need */
  FS_MISALIGNED = 3,       /* a buffer, limbs or a counter does not start at a multiple of its
                              element's size */
  FS_OVERLAP = 4,          /* two of a call's buffers, limbs and counters share memory */
  FS_OUT_OF_RANGE = 5,     /* learning rate, betas, ...: no step can use it, or not in fp32 */
  FS_CORRUPT = 6,          /* a stored scale is not one that encoding makes */
  FS_ENVIRONMENT = 7, /* rounding is not to nearest, or denormals are flushed, on this thread */
  FS_INTERNAL = 8,
  FS_DEVICE = 9 /* the GPU is lost or refused the call (flashshard_cuda.h) */
} fs_status;

typedef enum fs_weight_format {
  FS_SPLIT24 = 0,          /* V2: bf16 weight, int8 correction */
  FS_SPLIT32 = 1,          /* V2: bf16 weight, int16 correction: fp32 exactly */
  FS_BF16 = 2,             /* bf16 alone */
  FS_FP32 = 3,             /* fp32 alone */
  FS_CORRECTED24 = 4,      /* FLASHOPTIM_V1: bf16 weight, int8 correction */
  FS_CORRECTED32 = 5,      /* FLASHOPTIM_V1: bf16 weight, int16 correction */
  FS_FP16_CORRECTED24 = 6, /* FLASHOPTIM_V1: fp16 weight, int8 correction */
  FS_FP16_CORRECTED32 = 7, /* FLASHOPTIM_V1: fp16 weight, int16 correction */
  FS_FP16 = 8              /* fp16 alone */
} fs_weight_format;

typedef enum fs_state_format {
  FS_STATE_V2 = 0,           /* 8-bit codes, 16-bit scale codes (8 exponent, 8 mantissa bits) */
  FS_STATE_FP32 = 1,         /* no codes */
  FS_STATE_FLASHOPTIM_V1 = 2 /* 8-bit codes, fp16 scales */
} fs_state_format;

typedef enum fs_moment { FS_MOMENTUM = 0, FS_VARIANCE = 1 } fs_moment;
typedef enum fs_type { FS_TYPE_BF16 = 0, FS_TYPE_FP32 = 1 } fs_type;
typedef enum fs_rounding { FS_NEAREST = 0, FS_STOCHASTIC = 1 } fs_rounding;

typedef enum fs_rule {
  FS_ADAMW = 0,
  FS_ADAM = 1, /* its decay is part of the gradient */
  FS_LION = 2,
  FS_SGD = 3, /* its decay is part of the gradient */
  FS_SGDW = 4
} fs_rule;

/* Memory and its size. A buffer that a call does not need is {NULL, 0}. */
typedef struct fs_buffer {
  void* data;
  uint64_t bytes;
} fs_buffer;

/* fp32 values and the same values as weight and correction. */
typedef struct fs_master {
  uint32_t struct_size;
  int32_t format; /* fs_weight_format */
  int64_t count;
  fs_buffer values;     /* float[count] */
  fs_buffer weight;     /* uint16_t[count], with FS_FP32 float[count] */
  fs_buffer correction; /* int8_t[count] or int16_t[count], as the format has it */
} fs_master;

/* fp32 momenta or variances and the same as codes and scales. */
typedef struct fs_moments {
  uint32_t struct_size;
  int32_t format; /* fs_state_format, not FS_STATE_FP32 */
  int32_t moment; /* fs_moment */
  int32_t reserved;
  int64_t count;
  fs_buffer values; /* float[count]; variances are not negative */
  fs_buffer codes;  /* int8_t[count], uint8_t[count] for variances */
  fs_buffer scales; /* uint16_t[ceil(count / FS_GROUP)] */
} fs_moments;

/* One parameter, or a run of whole groups of it. States that the rule does not have are not given:
 * SGD and Lion have no variance, SGD and SGDW with beta1 = 0 no momentum either; with fp32 state
 * there are no scales. A fresh state is all zero, with V2 scales of FS_FRESH_V2_SCALE. */
typedef struct fs_tensor {
  uint32_t struct_size;
  int32_t weight_format; /* fs_weight_format */
  int32_t state_format;  /* fs_state_format */
  int32_t gradient_type; /* fs_type */
  int64_t count;
  int64_t first_element; /* of the whole parameter, a multiple of FS_GROUP */
  uint64_t seed;         /* of stochastic rounding, with tensor_id, t and the element's index */
  uint64_t tensor_id;
  fs_buffer gradient;
  fs_buffer weight;
  fs_buffer correction;
  fs_buffer momentum; /* codes, or float[count] */
  fs_buffer momentum_scales;
  fs_buffer variance;
  fs_buffer variance_scales;
} fs_tensor;

#define FS_FRESH_V2_SCALE 0x4300

typedef struct fs_step {
  uint32_t struct_size;
  int32_t rule;     /* fs_rule */
  int32_t rounding; /* fs_rounding, of FS_SPLIT24 and FS_BF16 weights and of the codes of
                       FS_STATE_V2; the other formats have one of their own */
  int32_t nesterov; /* SGD, SGDW: 0 or 1 */
  double learning_rate;
  double beta1;   /* SGD, SGDW: the momentum */
  double beta2;   /* AdamW, Adam, Lion */
  double epsilon; /* AdamW, Adam */
  double dampening;
  double weight_decay;
  double peak_learning_rate; /* above 0: a step keeps 1 - weight_decay * learning_rate / this */
  double gradient_factor; /* gradients are multiplied by it first: 1 unless clipped or averaged */
  uint64_t t;             /* steps applied, this one included: from 1 */
} fs_step;

/* "1.0.0": the major number changes when a call or struct does so incompatibly. */
FS_API const char* fs_version(void);
/* "scalar", "avx2", "avx512", "neon": what runs on this processor. */
FS_API const char* fs_instruction_set(void);
/* Of the last call on this thread that did not return FS_OK; "" before. The text is overwritten by
 * the thread's next error and lives as long as the thread. */
FS_API const char* fs_last_error(void);

/* Groups with a value outside the format's domain (NaN and infinity included) are left as they were
 * and their number is added to *rejected_groups (start with 0), which may be null. */
FS_API fs_status fs_encode_master(const fs_master* call, int64_t* rejected_groups);
FS_API fs_status fs_decode_master(const fs_master* call);
/* Codes are rounded to nearest, always: small or slow averages that are encoded so after every step
 * never fall (docs/numerics.md, "Why stochastic"). fs_apply_step with FS_STOCHASTIC lets them. */
FS_API fs_status fs_encode_moments(const fs_moments* call, int64_t* rejected_groups);
FS_API fs_status fs_decode_moments(const fs_moments* call);

/* One optimizer step. A group in which a new value would leave its format, as after a gradient that
 * is not finite, keeps its weight and states, and their number is added to *rejected_groups (start
 * with 0), which may be null. */
FS_API fs_status fs_apply_step(const fs_tensor* tensor, const fs_step* step,
                               int64_t* rejected_groups);

/* Adds the exact sum of squares of `count` elements to limbs[FS_NORM_LIMBS] (start with zeros),
 * with the same result at every order and split at groups; those of several ranks may be added.
 * Limbs outside 0 to 2^62 are no such sums: FS_INVALID_ARGUMENT.
 * Groups with an element of 2^60 or more are left out and their number is added to
 * *nonfinite_groups (start with 0), which may be null. */
FS_API fs_status fs_add_squares(fs_buffer values, int32_t type, int64_t count, int64_t* limbs,
                                int64_t* nonfinite_groups);
/* The square root of the sum, rounded once from it to double, then once more. */
FS_API fs_status fs_norm(const int64_t* limbs, double* norm);
/* Counts the groups with an element that is NaN, infinite or at least 2^60: no step should see it.
 */
FS_API fs_status fs_check_finite(fs_buffer values, int32_t type, int64_t count,
                                 int64_t* nonfinite_groups);

#ifdef __cplusplus
}
#endif

#endif /* FLASHSHARD_CAPI_FLASHSHARD_H_ */
