#include "common/nccl/nccl_library.h"

#include <dlfcn.h>
#include <net/if.h>

#include <cstdlib>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace ferry {
namespace {

constexpr int kSystemError = 2, kRemoteError = 6;  // ncclSystemError: of sockets, mostly

template <typename Function>
absl::Status Find(void* handle, const char* name, const std::string& file, Function** function) {
  *function = reinterpret_cast<Function*>(::dlsym(handle, name));
  if (*function != nullptr) return absl::OkStatus();
  return FailedPrecondition("%s is no NCCL that Ferry can use: it has no function %s", file, name);
}

std::string Interfaces() {
  std::string names;
  struct if_nameindex* const all = ::if_nameindex();
  if (all == nullptr) return names;
  const absl::Cleanup freed = [all] { ::if_freenameindex(all); };
  for (const struct if_nameindex* each = all; each->if_index != 0; ++each) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", each->if_name);
  }
  return names;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const NcclLibrary>> NcclLibrary::Load(const std::string& path) {
  const std::string file = path.empty() ? "libnccl.so.2" : path;
  void* const handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const why = ::dlerror();
    return FailedPrecondition("NCCL cannot be loaded (--nccl-library says from where): %s", why != nullptr ? why : file);
  }
  std::shared_ptr<NcclLibrary> library(new NcclLibrary());
  const absl::Status usable = library->Resolve(handle, file);
  if (!usable.ok()) {
    ::dlclose(handle);
    return usable;
  }
  // Never closed: NCCL has threads of its own.
  return library;
}

absl::Status NcclLibrary::Resolve(void* handle, const std::string& file) {
  RETURN_IF_ERROR(Find(handle, "ncclGetVersion", file, &GetVersion));
  RETURN_IF_ERROR(CheckVersion(file));
  RETURN_IF_ERROR(Find(handle, "ncclGetUniqueId", file, &GetUniqueId));
  RETURN_IF_ERROR(Find(handle, "ncclCommInitRankConfig", file, &CommInitRankConfig));
  RETURN_IF_ERROR(Find(handle, "ncclCommGetAsyncError", file, &CommGetAsyncError));
  RETURN_IF_ERROR(Find(handle, "ncclCommAbort", file, &CommAbort));
  RETURN_IF_ERROR(Find(handle, "ncclSend", file, &Send));
  RETURN_IF_ERROR(Find(handle, "ncclRecv", file, &Recv));
  RETURN_IF_ERROR(Find(handle, "ncclGetErrorString", file, &GetErrorString));
  return Find(handle, "ncclGetLastError", file, &GetLastError);
}

absl::Status NcclLibrary::CheckVersion(const std::string& file) {
  int version = 0;
  if (const int result = GetVersion(&version); result != kSuccess) {
    return FailedPrecondition("%s does not tell its version: NCCL error %d", file, result);
  }
  // From 2.9 on, a version is major * 10000 + minor * 100 + patch.
  version_ = absl::StrFormat("%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
  if (version >= kOldest && version / 10000 == 2) return absl::OkStatus();
  if (version < 10000) version_ = absl::StrFormat("%d.%d.%d", version / 1000, version / 100 % 10, version % 100);
  return FailedPrecondition("%s is NCCL %s, want 2.%d or later of version 2", file, version_, kOldest / 100 % 100);
}

absl::Status NcclLibrary::StatusOf(int result, const char* what, ncclComm* comm) const {
  if (result == kSuccess || result == kInProgress) return absl::OkStatus();
  const char* const name = GetErrorString(result);
  const char* const detail = GetLastError(comm);
  const std::string message = absl::StrFormat("NCCL: %s: %s%s%s", what, name != nullptr ? name : std::to_string(result),
                                              detail != nullptr && *detail != '\0' ? ": " : "", detail != nullptr ? detail : "");
  if (result == kSystemError || result == kRemoteError) return absl::UnavailableError(message);
  return absl::InternalError(message);
}

absl::Status PrepareNcclEnvironment(const std::string& interface) {
  if (!interface.empty() && ::if_nametoindex(interface.c_str()) == 0) {
    return FailedPrecondition("--nccl-interface %s: this host has no such interface; it has %s", interface, Interfaces());
  }
  // "=": that name alone, not every name that begins so.
  ::setenv("NCCL_SOCKET_IFNAME", absl::StrCat("=", interface.empty() ? "lo" : interface).c_str(), /*overwrite=*/1);
  ::setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/1);
  return absl::OkStatus();
}

}  // namespace ferry
