#include "runtime/checkpoint/save.h"

#include "runtime/checkpoint/saving.h"

namespace flashshard::checkpoint {

SaveResult save(const SaveRequest& request, Communicator& communicator) {
  Saving saving(request, communicator);
  do {
    saving.work();
  } while (saving.settle());
  return saving.result();
}

}  // namespace flashshard::checkpoint
