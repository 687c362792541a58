#include "common/system_call_filter.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ferry {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "add the architecture's AUDIT_ARCH_ number"
#endif

// x32 programs make calls of x86-64 with this bit, which no list of numbers below has.
constexpr uint32_t kX32Bit = 0x40000000;

constexpr uint32_t kForbidden[] = {
    // To execute.
    SYS_execve,
    SYS_execveat,
    // To trace, or to read the memory of, other processes.
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_kcmp,
    SYS_pidfd_getfd,
    // To mount, and to enter another root or namespace.
    SYS_mount,
    SYS_umount2,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_pivot_root,
    SYS_chroot,
    SYS_setns,
    SYS_unshare,
    SYS_swapon,
    SYS_swapoff,
    // To load code into the kernel.
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    // Keyrings, handles, personalities.
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    SYS_personality,
    // The machine's own.
    SYS_reboot,
    SYS_acct,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_clock_adjtime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_quotactl,
#if defined(__x86_64__)
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
#endif
};
constexpr uint32_t kSocketFamilies[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};

sock_filter Load(size_t offset) { return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)); }
sock_filter Return(uint32_t action) { return BPF_STMT(BPF_RET | BPF_K, action); }
sock_filter SkipIfEqual(uint32_t value, uint8_t instructions) {
  return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, instructions, 0);
}
sock_filter SkipUnlessEqual(uint32_t value, uint8_t instructions) {
  return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, instructions);
}

// Each comparison is followed by what it leads to, since a jump of BPF reaches 255 instructions at most.
std::vector<sock_filter> Filter() {
  const sock_filter allow = Return(SECCOMP_RET_ALLOW), refuse = Return(SECCOMP_RET_ERRNO | EPERM);
  std::vector<sock_filter> filter = {Load(offsetof(seccomp_data, arch)), SkipIfEqual(kArchitecture, 1),
                                     Return(SECCOMP_RET_KILL_PROCESS), Load(offsetof(seccomp_data, nr))};
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kX32Bit, 0, 1));
  filter.push_back(refuse);
  for (const uint32_t call : kForbidden) {
    filter.push_back(SkipUnlessEqual(call, 1));
    filter.push_back(refuse);
  }
  filter.push_back(SkipIfEqual(SYS_socket, 1));
  filter.push_back(allow);
  filter.push_back(Load(offsetof(seccomp_data, args)));  // the lower half of the first one: both architectures are little-endian
  for (const uint32_t family : kSocketFamilies) {
    filter.push_back(SkipUnlessEqual(family, 1));
    filter.push_back(allow);
  }
  filter.push_back(refuse);
  return filter;
}

}  // namespace

bool BoundSystemCalls() {
  std::vector<sock_filter> filter = Filter();
  const sock_fprog program = {.len = static_cast<uint16_t>(filter.size()), .filter = filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
}

}  // namespace ferry
