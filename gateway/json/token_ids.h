#pragma once

// Arrays of token ids in requests.

#include <vector>

#include "gateway/json/json.h"

namespace ferry {

// `value` is an array of whole numbers from 0 to UINT32_MAX; `field` names it in errors. Whether the vocabulary has them is the
// engine's to say.
absl::StatusOr<std::vector<uint32_t>> TokenIdsOf(const Json& value, const std::string& field);

}  // namespace ferry
