#include "coordinator/step_plan.h"

namespace ferry {

void Accumulate(const v1::ExpertCounters& part, v1::ExpertCounters* total) {
  total->set_activated(total->activated() + part.activated());
  total->set_resident(total->resident() + part.resident());
  total->set_shipped(total->shipped() + part.shipped());
  total->set_on_host(total->on_host() + part.on_host());
  total->set_bytes_shipped(total->bytes_shipped() + part.bytes_shipped());
  total->set_copies(total->copies() + part.copies());
  total->set_copy_wait_seconds(total->copy_wait_seconds() + part.copy_wait_seconds());
  total->set_host_wait_seconds(total->host_wait_seconds() + part.host_wait_seconds());
  total->set_host_bytes_read(total->host_bytes_read() + part.host_bytes_read());
  total->set_copy_busy_seconds(total->copy_busy_seconds() + part.copy_busy_seconds());
  total->set_compute_seconds(total->compute_seconds() + part.compute_seconds());
  total->set_shipped_unused(total->shipped_unused() + part.shipped_unused());
}

}  // namespace ferry
