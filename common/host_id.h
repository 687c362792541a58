#pragma once

// Which host a process runs on, as far as sharing memory with another is concerned.

#include <string>

namespace ferry {

// Equal for two processes exactly when a descriptor can be handed from one to the other over an abstract Unix socket:
// the same boot of the same kernel and the same network namespace, in which such sockets have their names.
std::string HostId();

}  // namespace ferry
