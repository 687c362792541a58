#pragma once

// Tells whether two processes can share memory.

#include <string>

namespace ferry {

// Equal for two processes exactly when a descriptor can be handed from one to the other over an abstract Unix socket:
// the same boot of the same kernel and the same network namespace, in which such sockets have their names.
std::string MachineId();

}  // namespace ferry
