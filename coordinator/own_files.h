#pragma once

// The files that a coordinator needs, and no others: what common/file_access.h allows it.

#include "common/file_access.h"
#include "coordinator/options.h"

namespace ferry {

// Makes the folder of the rates, which is allowed only when it is there. To be called before the coordinator opens anything.
FileAccess FilesOf(const CoordinatorOptions& options);

}  // namespace ferry
