// A library with NCCL's functions and no GPU, for tests of what loads and waits for NCCL. It is built complete, as an old
// version, and with a function missing. Knobs make its operations fail or last.

#include <atomic>
#include <cstddef>
#include <cstring>
#include <thread>

#ifndef FAKE_NCCL_VERSION
#define FAKE_NCCL_VERSION 22809
#endif

namespace {

struct Id {
  char bytes[128];
};
struct Comm {
  int rank = 0;
};
constexpr int kSuccess = 0, kInProgress = 7;

std::atomic<int> async_error{kSuccess}, init_result{kInProgress}, aborts{0};
std::atomic<bool> abort_blocks{false};

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  *version = FAKE_NCCL_VERSION;
  return kSuccess;
}
int ncclGetUniqueId(Id* id) {
  std::memset(id->bytes, 7, sizeof(id->bytes));
  return kSuccess;
}
int ncclCommInitRankConfig(Comm** comm, int num_ranks, Id id, int rank, const size_t* config) {
  int blocking = 0;
  std::memcpy(&blocking, reinterpret_cast<const char*>(config) + 16, sizeof(blocking));  // behind size, magic and version
  if (num_ranks != 2 || id.bytes[127] != 7 || blocking != 0) return 4;                   // ncclInvalidArgument
  *comm = new Comm{rank};
  return init_result;
}
int ncclCommGetAsyncError(Comm*, int* error) {
  *error = async_error;
  return kSuccess;
}
int ncclCommAbort(Comm* comm) {
  while (abort_blocks) std::this_thread::yield();
  delete comm;
  ++aborts;
  return kSuccess;
}
int ncclSend(const void*, size_t, int, int, Comm*, void*) { return kSuccess; }
#ifndef FAKE_NCCL_WITHOUT_RECV
int ncclRecv(void*, size_t, int, int, Comm*, void*) { return kInProgress; }
#endif
const char* ncclGetErrorString(int) { return "a fault"; }
const char* ncclGetLastError(Comm*) { return "in detail"; }

void FakeNcclReset() {
  async_error = kSuccess;
  init_result = kInProgress;
  abort_blocks = false;
  aborts = 0;
}
void FakeNcclSetAsyncError(int error) { async_error = error; }
void FakeNcclSetInitResult(int result) { init_result = result; }
void FakeNcclBlockAborts(bool block) { abort_blocks = block; }
int FakeNcclAborts() { return aborts; }
}
