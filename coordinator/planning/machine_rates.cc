#include "coordinator/planning/machine_rates.h"

namespace ferry {

WorkerRates RatesOf(const v1::WorkerInfo& info) {
  return {.link = {.alone = info.link_bytes_per_second(),
                   .together = info.link_together_bytes_per_second(),
                   .beside_host = info.link_beside_host_bytes_per_second()},
          .experts = {.read_bytes_per_second = info.expert_read_bytes_per_second(),
                      .flops_per_second = info.expert_flops_per_second()},
          .operation_seconds = info.operation_seconds(),
          .message_seconds = info.message_seconds()};
}

}  // namespace ferry
