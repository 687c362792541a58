#pragma once

// Names of metadata that belong to the wire contract, where a stream has to say something before its first message.

namespace ferry {

// Of streams to a worker, and of Shutdown: the incarnation that is meant, in decimal digits.
inline constexpr char kIncarnationKey[] = "ferry-incarnation";

// Of Worker.RunSteps: the key of the rings (BeginEpochResponse) that its steps go through. A stream without it, or of an epoch
// that is over, takes none.
inline constexpr char kStepRingsKey[] = "ferry-rings";

}  // namespace ferry
