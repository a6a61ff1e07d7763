/* Uses the installed C library from C: one value there and back. */
#include <stdio.h>

#include "kernels/capi/flashshard.h"

int main(void) {
  float value = 1.25f;
  uint16_t weight = 0;
  int8_t correction = 0;
  fs_master call = {sizeof(fs_master),
                    FS_SPLIT24,
                    1,
                    {&value, sizeof(value)},
                    {&weight, sizeof(weight)},
                    {&correction, sizeof(correction)}};
  if (fs_encode_master(&call, NULL) != FS_OK) {
    fprintf(stderr, "%s\n", fs_last_error());
    return 1;
  }
  value = 0.0f;
  if (fs_decode_master(&call) != FS_OK) return 1;
  printf("flashshard_codec %s (%s): %g\n", fs_version(), fs_instruction_set(), value);
  return value == 1.25f ? 0 : 1;
}
