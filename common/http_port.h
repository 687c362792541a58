#pragma once

namespace ferry {

inline constexpr int kHttpPort = 8080;  // of HTTP, the default

}  // namespace ferry
